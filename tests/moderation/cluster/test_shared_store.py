"""Machines with one database and one store: a purge holds on all, whoever writes meanwhile."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.cache.object_client import StoredObjects
from proxy.model.selection import Selection
from proxy.service import Service
from tests.fakes.world import World
from tests.moderation.cluster import LEASE, SHORT_LEASE
from tests.processes import until

pytestmark = pytest.mark.slow


@asynccontextmanager
async def machine(
    world: World, folder: Path, name: str, database: str, *, lease: float = LEASE
) -> AsyncIterator[Service]:
    """A machine with a folder of its own."""
    sections: dict[str, Any] = {
        "cache": {"path": folder / name},
        "cluster": {"database": database, "lease": lease},
        "store": {"url": (folder / "store").as_uri()},
    }
    async with world.service(world.config(**sections)) as service:
        yield service


def objects_in(folder: Path) -> list[Path]:
    """The objects of the store."""
    return [path for path in (folder / "store").rglob("*") if path.is_file()]


async def settled(service: Service) -> None:
    """Wait until everything was written that waited for the disk and the store."""
    assert service._shared is not None
    writer = service._shared.writer
    await until(lambda: service._writer._pending == {} and writer._writes == {})


async def test_a_purge_on_one_machine_is_one_on_all(
    world: World, tmp_path: Path, database_url: str
) -> None:
    """Catches a copy on a disk or in the store that the next miss brings back."""
    did, cid = world.add_blob()
    async with (
        machine(world, tmp_path, "one", database_url) as one,
        machine(world, tmp_path, "two", database_url) as two,
    ):
        assert (await one.get_image("avatar", did, cid)).cache == "miss"
        await settled(one)
        assert (await two.get_image("avatar", did, cid)).cache == "hit"
        await settled(two)
        await one.moderator.purge(Selection(did), by="admin")
        assert objects_in(tmp_path) == []
        assert (await two.get_image("avatar", did, cid)).cache == "miss"


async def test_a_write_under_way_on_another_machine_does_not_outlive_a_purge(
    world: World, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a purge that lists the store before the other machine's write is there."""
    did, cid = world.add_blob()
    begun, release = threading.Event(), threading.Event()
    put = StoredObjects.put

    def held(objects: StoredObjects, path: str, content: bytes, *, replaces: bool = False) -> bool:
        begun.set()
        release.wait()
        return put(objects, path, content, replaces=replaces)

    monkeypatch.setattr(StoredObjects, "put", held)
    async with (
        machine(world, tmp_path, "one", database_url) as one,
        machine(world, tmp_path, "two", database_url) as two,
        trio.open_nursery() as nursery,
    ):
        await two.get_image("avatar", did, cid)
        await trio.to_thread.run_sync(begun.wait)

        async def purge() -> None:
            await one.moderator.purge(Selection(did), by="admin")

        nursery.start_soon(purge)
        await until(lambda: two.blocks.purges_pending == 1)
        release.set()
        await until(lambda: not nursery.child_tasks)
        await settled(two)
        # A mark may be left, which leads to nothing.
        assert [path for path in objects_in(tmp_path) if "owners" in path.parts] == []


async def test_what_a_machine_wrote_after_a_purge_and_left_behind_goes_when_it_is_back(
    world: World, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a purged object that comes back: its node was stopped before the write, went on
    after the purge, and died before it took the write back."""
    monkeypatch.setattr("proxy.moderation.moderator.FINISH_SECONDS", 0.05)
    did, cid = world.add_blob()
    async with machine(world, tmp_path, "one", database_url) as one:
        async with machine(world, tmp_path, "two", database_url) as two:
            await two.get_image("avatar", did, cid)
            await settled(two)
            written = {path: path.read_bytes() for path in objects_in(tmp_path)}
        await one.moderator.purge(Selection(did), by="admin")
        assert objects_in(tmp_path) == []
        for path, content in written.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        async with machine(world, tmp_path, "two", database_url):
            await until(lambda: len(one.moderator.store.audit(9)) == 2)
            await until(lambda: one.moderator.store.audit(9)[-1].removed is not None)
            assert objects_in(tmp_path) == []
            assert (await one.get_image("avatar", did, cid)).cache == "miss"
        first, again = one.moderator.store.audit(2)
        assert (again.action, again.by, first.by) == ("purge", "store", "admin")
        await settled(one)
        # That purge is none that the next one to come back repeats.
        async with machine(world, tmp_path, "two", database_url):
            assert len(one.moderator.store.audit(9)) == 2


async def test_the_object_of_a_machine_that_was_killed_goes_with_the_purge(
    world: World, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a purge that lists the store before the lease of a node that died has ended: the node
    had written, and removes nothing any more."""
    did, cid = world.add_blob()
    listed_after: list[bool] = []
    async with (
        machine(world, tmp_path, "one", database_url) as one,
        machine(world, tmp_path, "two", database_url, lease=SHORT_LEASE) as two,
    ):
        await two.get_image("avatar", did, cid)
        await settled(two)
        (token,) = one.blocks._members.living() - {one.blocks._members.token}  # type: ignore[attr-defined]
        dead = trio.Event()

        async def never(version: int, written: object) -> None:
            await dead.wait()

        # It says nothing any more, as a killed process does, and renews nothing.
        monkeypatch.setattr(two.blocks, "_acknowledge", never)
        pages = StoredObjects.pages

        def watched(objects: StoredObjects, prefix: str) -> object:
            listed_after.append(token not in one.blocks._members.living())  # type: ignore[attr-defined]
            return pages(objects, prefix)

        monkeypatch.setattr(StoredObjects, "pages", watched)
        two.blocks._members.renew = lambda: None  # type: ignore[attr-defined]
        await one.moderator.purge(Selection(did), by="admin")
        assert objects_in(tmp_path) == []
        assert set(listed_after) == {True}
        dead.set()

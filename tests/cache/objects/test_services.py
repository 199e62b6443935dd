"""Two machines with a folder each, and one store: what one made, the other serves."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import trio
from PIL import Image

from proxy.config import Config
from proxy.errors import BlobBlocked
from proxy.lifecycle import open_moderator
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.moderation.moderator import FINISH_SECONDS
from proxy.service import Service
from tests.cache.objects.conftest import Bucket, s3
from tests.fakes.streams import FakeJetstream
from tests.fakes.world import World
from tests.processes import until


@asynccontextmanager
async def machine(
    world: World, bucket: Bucket, name: str = "cache", **store: Any
) -> AsyncIterator[Service]:
    """A service with a folder of its own on ``bucket``."""
    async with world.service(configured(world, bucket, name, **store)) as service:
        yield service


def configured(
    world: World, bucket: Bucket, name: str = "cache", *, accounts: Any = None, **store: Any
) -> Config:
    """The configuration of ``machine``."""
    path = world.cache_path.parent / name
    settings = bucket.settings | store
    return world.config(cache={"path": path}, store=settings, accounts=accounts or {})


async def made(service: Service, *args: str) -> bytes:
    """A picture that ``service`` makes, once it is in the store."""
    image = await service.get_image(*args)
    assert image.cache == "miss"
    await shared(service)
    return image.data


async def shared(service: Service) -> None:
    """Wait until everything that waited for the disk and the store was written."""
    assert service._shared is not None
    writer = service._shared.writer
    await until(lambda: service._writer._pending == {} and writer._writes == {})


async def test_a_miss_on_one_machine_is_a_hit_on_the_other(world: World, bucket: Bucket) -> None:
    """Catches a fetch, a decode or other bytes for what a neighbour has made already."""
    did, cid = world.add_blob()
    async with machine(world, bucket, "one") as one, machine(world, bucket, "two") as two:
        data = await made(one, "avatar", did, cid)
        fetches = len(world.pds.requests)
        image = await two.get_image("avatar", did, cid)
        assert (image.data, image.cache) == (data, "hit")
        assert len(world.pds.requests) == fetches
        # It is on this machine from now on.
        await shared(two)
        bucket.clear()
        key = next(iter(two._memory._entries._entries))
        two._memory.purge(Selection(did))
        assert (await two.get(key, DEFAULT_PRESETS[key.preset])).data == data


async def test_a_new_preset_of_a_shared_source_fetches_nothing(
    world: World, bucket: Bucket
) -> None:
    """Catches a second getBlob for bytes that the store has."""
    did, cid = world.add_blob()
    async with machine(world, bucket, "one", sources=True) as one:
        await made(one, "avatar", did, cid)
    fetches = len(world.pds.requests)
    async with machine(world, bucket, "two", sources=True) as two:
        image = await two.get_image("banner", did, cid)
        assert image.cache == "miss"
        assert Image.open(BytesIO(image.data)).size == (640, 300)
        assert len(world.pds.requests) == fetches


async def test_a_machine_that_was_emptied_serves_from_the_store_as_it_was(
    world: World, bucket: Bucket
) -> None:
    """Catches a result whose age begins anew on the machine that takes it over."""
    did, cid = world.add_blob()
    async with machine(world, bucket, "one") as one:
        await made(one, "avatar", did, cid)
        seen = await one_disk(one).last_checked(next(iter(one._memory._entries._entries)).blob)
    async with machine(world, bucket, "two") as two:
        await two.get_image("avatar", did, cid)
        await shared(two)
        blob = next(iter(two._memory._entries._entries)).blob
        found = await one_disk(two).last_checked(blob)
    assert seen is not None
    assert found == pytest.approx(seen, abs=5)
    assert found <= seen + 1


async def test_an_account_that_is_gone_is_gone_from_the_store_when_this_disk_has_nothing_of_it(
    world: World, bucket: Bucket
) -> None:
    """Catches a deleted account's pictures that come back from the store after an eviction."""
    jetstream = FakeJetstream()
    world.directory_network.add(jetstream)
    did, cid = world.add_blob()
    async with machine(world, bucket, "one") as one:
        await made(one, "avatar", did, cid)
    config = configured(world, bucket, "emptied", accounts={"url": "wss://jetstream.example"})
    async with world.service(config):
        await until(lambda: bool(jetstream.open))
        status = {"active": False, "did": did, "seq": 1, "status": "deleted"}
        jetstream.send({"did": did, "time_us": 1, "kind": "account", "account": status})
        await until(lambda: not any(cid in path for path in bucket.paths()))


def one_disk(service: Service) -> Any:
    """The disk tier of a service."""
    return service._cache


@pytest.mark.parametrize("what", ["owner", "blob", "pair"])
async def test_each_purge_leaves_no_object(world: World, bucket: Bucket, what: str) -> None:
    """Catches an object that a purge does not find: the next miss would bring it back."""
    did, cid = world.add_blob()
    other = world.make_account()
    world.add_blob(did=other)
    selections = {
        "owner": [Selection(did), Selection(other)],
        "blob": [Selection(cid=cid)],
        "pair": [Selection(did, cid), Selection(other, cid)],
    }[what]
    async with machine(world, bucket, sources=True) as service:
        for owner in (did, other):
            for preset in ("avatar", "banner"):
                await service.get_image(preset, owner, cid)
        await shared(service)
        assert len(bucket.paths()) == 8  # for each owner two results, a source, and a mark
        for selection in selections:
            await service.moderator.purge(selection, by="admin")
        assert bucket.paths() == []
        image = await service.get_image("avatar", did, cid)
        assert image.cache == "miss"


async def test_a_command_purges_the_store_too(world: World, bucket: Bucket) -> None:
    """Catches ``imageproxy cache purge`` that leaves what the next miss brings back."""
    did, cid = world.add_blob()
    config = configured(world, bucket)
    async with world.service(config) as service:
        await made(service, "avatar", did, cid)
        async with open_moderator(config) as moderator:
            assert await moderator.purge(Selection(did), by="cli") == 2
        assert bucket.paths() == []


async def test_a_blocked_picture_is_not_served_from_the_store(world: World, bucket: Bucket) -> None:
    """Catches a store that is asked before the blocks."""
    did, cid = world.add_blob()
    async with machine(world, bucket) as service:
        await made(service, "avatar", did, cid)
        await service.moderator.block(Selection(did, cid), by="admin")
        with pytest.raises(BlobBlocked):
            await service.get_image("avatar", did, cid)
        assert bucket.paths() == []


@pytest.mark.parametrize("damage", ["bytes", "swapped", "cut"])
async def test_wrong_bytes_are_made_anew(world: World, bucket: Bucket, damage: str) -> None:
    """Catches wrong bytes under a right URL, here and on the next machine."""
    did, cid = world.add_blob()
    async with machine(world, bucket, "one") as one:
        data = await made(one, "avatar", did, cid)
        await made(one, "banner", did, cid)
        first, second = (path for path in bucket.paths() if "@" in path)
        contents = {path: bucket.read(path) for path in (first, second)}
        for path, other in ((first, second), (second, first)):
            bucket.write(
                path,
                {
                    "bytes": contents[path][:-9] + b"\x00" * 9,
                    "swapped": contents[other],
                    "cut": contents[path][:-1],
                }[damage],
            )
    async with machine(world, bucket, "two") as two:
        image = await two.get_image("avatar", did, cid)
        assert (image.data, image.cache) == (data, "miss")
        await shared(two)
    async with machine(world, bucket, "three") as three:
        image = await three.get_image("avatar", did, cid)
        assert (image.data, image.cache) == (data, "hit")


async def test_a_dead_store_costs_no_answer_and_no_block(world: World, dead: Bucket) -> None:
    """Catches a service that needs the store, and a block that waits for it."""
    did, cid = world.add_blob()
    async with machine(world, dead) as service:
        assert (await service.get_image("avatar", did, cid)).cache == "miss"
        await shared(service)
        with trio.fail_after(FINISH_SECONDS):
            await service.moderator.block(Selection(did, cid), by="admin")
        with pytest.raises(BlobBlocked):
            await service.get_image("avatar", did, cid)
        # The purge is kept: of the store it is not done.
        await until(lambda: service.blocks.purges_pending == 1)
        with trio.fail_after(FINISH_SECONDS):
            await service.moderator.purge(Selection(did), by="admin")
        count = service.metrics.registry.get_sample_value
        assert count("imageproxy_store_requests_total", {"operation": "get", "outcome": "failed"})


async def test_a_purge_that_did_not_reach_the_store_is_finished_later(
    world: World, local: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a purge that is given up, and a picture that comes back meanwhile."""
    monkeypatch.setattr("proxy.moderation.moderator.FINISH_SECONDS", 0.05)
    did, cid = world.add_blob()
    async with machine(world, local) as service:
        await made(service, "avatar", did, cid)
        assert service._shared is not None
        store = service._shared.store
        purge = store.purge
        failures = 3

        async def fail(*selections: Selection) -> int:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError("the store does not answer")
            return await purge(*selections)

        monkeypatch.setattr(store, "purge", fail)
        assert await service.moderator.purge(Selection(did), by="admin") == 1
        # While it is unfinished, the store is not asked: this one is made anew.
        image = await service.get_image("avatar", did, cid)
        assert image.cache == "miss"
        await until(lambda: service.blocks.purges_pending == 0)
        assert failures == 0
        assert [path for path in local.paths() if "@" in path] == []


async def test_without_a_store_nothing_of_it_is_imported(world: World) -> None:
    """Catches a cost for those that have one machine."""
    program = "import sys, proxy.lifecycle; sys.exit('obstore' in sys.modules)"
    done = await trio.run_process([sys.executable, "-c", program], check=False)
    assert done.returncode == 0


def test_a_folder_is_a_store(tmp_path: Path) -> None:
    """Catches a bucket of the tests that is not what the service writes to."""
    bucket = Bucket({"url": (tmp_path / "store").as_uri()})
    bucket.write("a/b", b"x")
    assert bucket.paths() == ["a/b"]
    assert bucket.read("a/b") == b"x"


async def test_no_disk_waits_for_the_store(world: World, dead: Bucket) -> None:
    """Catches files of a blocked picture on other machines' disks while the store is down."""
    did, cid = world.add_blob()
    async with machine(world, dead) as service:
        await service.get_image("avatar", did, cid)
        await shared(service)
        assert await service.moderator.block(Selection(did, cid), by="admin") == 1
        first, later = service.moderator.store.audit(10)
        assert (first.action, first.by, first.removed) == ("block", "admin", 1)
        assert (later.action, later.by, later.removed) == ("purge", "store", None)


async def test_a_store_that_never_answers_is_served_around(world: World) -> None:
    """Catches a time-out of the library's own: half a minute for each miss."""
    did, cid = world.add_blob()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = s3(silent.getsockname()[1], "bucket") | {"timeout": 0.2}
        async with machine(world, Bucket(place)) as service:
            image = await service.get_image("avatar", did, cid)
            assert image.cache == "miss"
            count = service.metrics.registry.get_sample_value
            outcomes = [
                count("imageproxy_store_requests_total", {"operation": "get", "outcome": outcome})
                for outcome in ("timeout", "failed")
            ]
            assert [each for each in outcomes if each] == [1]

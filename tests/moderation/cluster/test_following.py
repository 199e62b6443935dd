"""What a process of a cluster says that it follows: no more than is in force, and removed, here."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from proxy.cache.layout import IMAGES
from proxy.coordination.cluster.lease import Lease
from proxy.coordination.cluster.members import Members
from proxy.model.selection import Covering, Selection
from proxy.moderation import blocks
from proxy.moderation.cluster.blocks import ClusterBlocks
from proxy.moderation.cluster.node_files import NodeFiles
from proxy.moderation.cluster.schema import migrate
from proxy.moderation.cluster.store import ClusterStore
from proxy.moderation.decision_store import Changes
from proxy.shared.postgres import PostgresDatabase, PostgresError
from tests.moderation import A2, B1, BLOB, OWNER, decide
from tests.processes import until

pytestmark = pytest.mark.slow


@pytest.fixture
def database(database_url: str) -> Iterator[PostgresDatabase]:
    """An empty database, whose tables are made by its first use."""
    found = PostgresDatabase(database_url, lock=1, patience=30, prepare=migrate)
    with closing(found):
        yield found


class Follower:
    """A process that follows.

    Attributes:
        removed: what it removed from its disk.
    """

    def __init__(self, store: ClusterStore, database: PostgresDatabase, folder: Path) -> None:
        self.removed: list[Selection] = []
        self.members = Members(database, folder, Lease(600), None)
        self.blocks = ClusterBlocks(store, self.members, NodeFiles(folder, store, self._remove))

    @asynccontextmanager
    async def following(
        self, written: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    ) -> AsyncIterator[None]:
        """Follow while the block runs."""

        def forget(_covering: Covering) -> None:
            """It keeps nothing in memory."""

        async with trio.open_nursery() as nursery:
            await nursery.start(self.blocks.follow, forget, written)
            yield
            nursery.cancel_scope.cancel()

    async def _remove(self, *selections: Selection) -> int:
        self.removed += selections
        await trio.lowlevel.checkpoint()
        return 0


async def test_a_version_is_followed_when_the_last_page_of_its_changes_is_in_force(
    tmp_path: Path, database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches changes that are forgotten, or confirmed, because those before them were read."""
    monkeypatch.setattr(blocks, "AT_ONCE", 1)
    failures: list[int] = []

    class Interrupted(ClusterStore):
        def changes(self, after: int, limit: int) -> Changes:
            if after == 1 and not failures:
                failures.append(after)
                raise PostgresError("the connection ended between two pages")
            return super().changes(after, limit)

    process = Follower(Interrupted(database, ""), database, tmp_path)
    async with process.following():
        version = decide(ClusterStore(database, ""), OWNER, BLOB)
        await until(lambda: process.blocks.is_blocked(A2))
        await until(lambda: process.blocks.is_blocked(B1) and process.blocks.problem is None)
        await until(lambda: not process.members.late(version))
    assert failures


async def test_what_was_decided_without_a_process_is_removed_though_it_confirms_something_earlier(
    tmp_path: Path, database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a confirmation of before that notes as removed what is only about to be."""
    store = ClusterStore(database, "")
    process = Follower(store, database, tmp_path)
    followed = {"database": store.identity()[0], "removed": 0}
    (tmp_path / "cluster.json").write_text(json.dumps(followed), encoding="utf-8")
    begun, released = trio.Event(), trio.Event()
    calls = 0

    async def written() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # the confirmation of the first decision
            begun.set()
            await released.wait()
        elif calls > 2:  # this process joins anew
            released.set()
            await until(lambda: 1 in noted)

    confirming = process.blocks._acknowledging
    noted: list[int] = []
    note = process.members.note

    def note_and_tell(version: int) -> None:
        note(version)
        noted.append(version)

    monkeypatch.setattr(process.members, "note", note_and_tell)
    async with process.following(written):
        await until(lambda: calls == 1 and process.blocks.problem is None)
        first = store.record("block", [(OWNER, "")], by="a test", owner="nobody")
        await begun.wait()
        store.finish(first.purge, 0)
        with database.reading() as rows:
            rows.execute("UPDATE members SET expires = clock_timestamp()")
        process.members.lease.end()
        second = store.record("block", [(BLOB, "")], by="a test", owner="nobody")
        store.finish(second.purge, 0)
        process.blocks.nudge()
        await until(lambda: calls > 2 or confirming.statistics().tasks_waiting > 0)
        released.set()
        await until(lambda: process.blocks.problem is None)
    assert BLOB in process.removed


async def test_a_machine_that_joined_during_a_purge_removes_what_it_missed(
    tmp_path: Path, database: PostgresDatabase
) -> None:
    """Catches a folder that counts as new whenever it is back, as long as a purge is unfinished."""
    store = ClusterStore(database, "")
    store.record("purge", [(OWNER, "")], by="a test", owner="nobody")
    first = Follower(store, database, tmp_path)
    async with first.following():
        await until(lambda: first.blocks.problem is None)
    (tmp_path / IMAGES / "made meanwhile").mkdir(parents=True)
    missed = store.record("purge", [(BLOB, "")], by="a test", owner="nobody")
    store.finish(missed.purge, 0)
    again = Follower(store, database, tmp_path)
    async with again.following():
        await until(lambda: again.blocks.problem is None)
    # What is not finished yet is removed once more, when it is.
    assert set(again.removed) == {OWNER, BLOB}


async def test_a_full_disk_holds_no_decision_up_and_what_it_did_not_note_is_removed_again(
    tmp_path: Path, database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches one machine without room, for which the decisions of all fail; and one that forgets
    after a full disk what was decided while it was away."""
    store = ClusterStore(database, "")
    first = Follower(store, database, tmp_path)
    async with first.following():
        await until(lambda: first.blocks.problem is None)
        with monkeypatch.context() as full:
            full.setattr(Path, "write_text", _no_room)
            recorded = store.record("purge", [(OWNER, "")], by="a test", owner="nobody")
            version = store.finish(recorded.purge, 0)
            first.blocks.nudge()
            await until(lambda: not first.members.late(version))
    assert [name for name in os.listdir(tmp_path) if "cluster" in name] == ["cluster.json"]
    again = Follower(store, database, tmp_path)
    async with again.following():
        await until(lambda: again.blocks.problem is None)
    assert OWNER in again.removed


def _no_room(path: Path, _text: str, **_options: str) -> int:
    path.touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

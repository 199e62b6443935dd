"""What a process knows to be blocked: as soon as it is decided, and nothing served in doubt."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from proxy.coordination.change_watch import ChangeWatch
from proxy.coordination.liveness import Liveness
from proxy.coordination.replicas import SERVES_NOTHING
from proxy.errors import BlobBlocked, ModerationUnreadable
from proxy.model.keys import BlobKey
from proxy.model.selection import Everything, Selection
from proxy.moderation import blocks, folder_blocks
from proxy.moderation.decision_store import BlocksSnapshot
from proxy.moderation.store import ModerationStore
from tests.cache import blob_cid, owner
from tests.moderation import (
    A1,
    A2,
    ALL,
    B1,
    BLOB,
    OWNER,
    PAIR,
    Process,
    StoreIn,
    checkpoint,
    decide,
    followers_in,
    lift,
    plant_older,
)
from tests.processes import PATIENCE, until

GARBAGE = b"this is no database, and it is long enough" * 1000


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "RETRY_SECONDS", 0.01)


async def refuses(process: Process) -> bool:
    """Whether every blob is refused as one of which nothing can be told."""
    refused = 0
    for blob in ALL:
        assert process.blocks.is_blocked(blob) or process.blocks.problem is None
        try:
            process.blocks.check(blob)
        except ModerationUnreadable:
            refused += 1
        except BlobBlocked:
            pass
    assert refused in (0, len(ALL))
    return refused > 0


async def test_blocks_are_in_force_when_following_begins(tmp_path: Path, store_in: StoreIn) -> None:
    """Catches a first request that comes before the blocks do."""
    decide(store_in(tmp_path), OWNER)
    process = Process(tmp_path)
    assert await refuses(process), "nothing was read yet"
    async with process.following():
        assert process.blocked() == [A1, A2]
        for blob in ALL:
            if blob in (A1, A2):
                with pytest.raises(BlobBlocked):
                    process.blocks.check(blob)
            else:
                process.blocks.check(blob)
    assert await refuses(process), "nobody follows any more"


async def test_blocks_of_an_older_version_are_in_force_at_the_first_start(tmp_path: Path) -> None:
    """Catches an upgrade that serves until somebody lists the blocks."""
    plant_older(tmp_path, (owner(1), "", "", 1.0))
    process = Process(tmp_path)
    async with process.following():
        assert process.blocked() == [A1, A2]


async def test_other_processes_take_a_block_over_and_its_lifting(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches workers that go on serving what another one's operator took down."""
    process, store = Process(tmp_path), store_in(tmp_path)
    async with process.following():
        for selection, covered in ((PAIR, [A1]), (OWNER, [A1, A2]), (BLOB, [A1, A2, B1])):
            decide(store, selection)
            await until(lambda covered=covered: process.blocked() == covered)  # type: ignore[misc]
        lift(store, OWNER)
        await until(lambda: process.blocked() == [A1, B1])
        decide(store, BLOB, by="labeler")
        lift(store, BLOB)
        lift(store, PAIR)
        decide(store, Selection(did=owner(9)))  # seen after those before it
        await until(lambda: process.blocks.is_blocked(BlobKey(owner(9), blob_cid(1))))
        assert process.blocked() == [A1, B1], "the labeler's block stands"
        assert len(process.blocks) == 2


async def test_one_more_block_is_not_read_with_all_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_in: StoreIn
) -> None:
    """Catches a million rows read anew by every process for each new one."""
    store = store_in(tmp_path)
    decide(store, OWNER)
    process = Process(tmp_path)
    async with process.following():

        def never(_self: ModerationStore) -> None:
            raise AssertionError("all was read again")

        monkeypatch.setattr(ModerationStore, "load", never)
        decide(store, BLOB)
        await until(lambda: process.blocked() == [A1, A2, B1])


async def test_a_file_without_changes_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_in: StoreIn
) -> None:
    """Catches a query fifty times a second, in every worker."""
    monkeypatch.setattr(folder_blocks, "POLL_SECONDS", 0)
    decide(store_in(tmp_path), OWNER)
    process = Process(tmp_path)
    async with process.following():
        for _ in range(5):
            await trio.lowlevel.checkpoint()

        def never(*_arguments: object) -> None:
            raise AssertionError("it was read")

        monkeypatch.setattr(ModerationStore, "changes", never)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
    assert process.blocks.problem == "stopped"


async def test_many_changes_come_in_steps_and_are_all_there_when_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_in: StoreIn
) -> None:
    """Catches an acknowledgement after the first step of a bulk."""
    monkeypatch.setattr(blocks, "AT_ONCE", 3)
    process, store = Process(tmp_path), store_in(tmp_path)
    selections = [Selection(did=owner(number)) for number in range(20)]
    async with process.following():
        noted: list[tuple[int, int]] = []
        note = process.replicas.note

        def noting(version: int) -> None:
            noted.append((version, len(process.blocks)))
            note(version)

        monkeypatch.setattr(process.replicas, "note", noting)
        version = decide(store, *selections)
        await until(lambda: not process.replicas.late(version))
    assert noted == [(version, 20)]


async def test_it_says_that_it_follows_only_when_writes_under_way_have_ended(
    tmp_path: Path,
    store_in: StoreIn,
) -> None:
    """Catches a purge that a write, begun before the block, undoes."""
    process, store = Process(tmp_path), store_in(tmp_path)
    async with process.following():
        await until(lambda: not process.replicas.late(0))
        process.written = trio.Event()
        first = decide(store, PAIR)
        await until(lambda: process.blocked() == [A1])
        assert process.replicas.late(first) == {process.replicas.token}
        second = decide(store, OWNER)
        await until(lambda: process.blocked() == [A1, A2])
        assert process.replicas.late(first)
        process.written.set()
        await until(lambda: not process.replicas.late(second))


async def test_what_is_decided_is_forgotten_in_the_step_in_which_it_comes_into_force(
    tmp_path: Path,
    store_in: StoreIn,
) -> None:
    """Catches a copy in memory that outlives a purge by another process."""
    process, store = Process(tmp_path), store_in(tmp_path)
    async with process.following():
        assert process.forgot() == ALL, "of what was before nothing is known"
        since = len(process.forgotten)
        store.record("purge", [(PAIR, "")], by="a test", owner="nobody")
        await until(lambda: process.forgot(since) == [A1])
        since = len(process.forgotten)
        decide(store, OWNER)
        await until(lambda: process.forgot(since) == [A1, A2])
        assert process.blocked() == [A1, A2]


async def test_what_is_only_purged_is_forgotten_again_when_the_disk_is_done(
    tmp_path: Path,
    store_in: StoreIn,
) -> None:
    """Catches a copy that came back into memory from a disk that was not purged yet."""
    process, store = Process(tmp_path), store_in(tmp_path)
    older = store.record("purge", [(PAIR, "")], by="a test", owner="nobody")
    async with process.following():
        recorded = store.record("purge", [(PAIR, "")], by="a test", owner="nobody")
        blocked = store.record("block", [(BLOB, "")], by="a test", owner="nobody")
        await until(lambda: process.blocked() == [A1, B1])
        assert process.blocks.purges_pending == 3
        for purge, forgotten in (
            (blocked.purge, []),  # it is not served, so it did not come back
            (recorded.purge, [A1]),
            (older.purge, ALL),  # what that was is not known here
        ):
            since, pending = len(process.forgotten), process.blocks.purges_pending
            store.finish(purge, 1)
            await until(lambda: process.blocks.purges_pending == pending - 1)  # noqa: B023
            assert process.forgot(since) == forgotten


def damage(path: Path) -> None:
    """What a failing disk, or somebody who overwrites it, leaves."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(GARBAGE)


def lose(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(GARBAGE)
    lose(path)
    other.rename(path)


@pytest.mark.parametrize("happens", [damage, lose, replace])
async def test_while_the_store_cannot_be_read_nothing_is_served_and_then_it_is_again(
    tmp_path: Path, happens: Callable[[Path], None], store_in: StoreIn
) -> None:
    """Catches "what was last read stays in force": what came since would be served."""
    store = store_in(tmp_path)
    decide(store, OWNER)
    process = Process(tmp_path)
    async with process.following():
        kept = tmp_path / "kept"
        with closing(sqlite3.connect(store.path)) as source, closing(sqlite3.connect(kept)) as copy:
            source.backup(copy)
        checkpoint(store.path)
        with capture_logs() as logs:
            happens(store.path)

            async def refused() -> bool:
                return await refuses(process)

            await until(refused)
            # Nobody need wait for it: its mark says so soon after.
            await until(lambda: not process.replicas.late(SERVES_NOTHING))
            await process.started_again(5)
            assert await refuses(process)
            told = [line for line in logs if line["log_level"] == "error"]
            assert len(told) <= 2, "it is told once, not with each try"
            assert all(str(store.path.parent) in line["path"] for line in told)
            lose(store.path)
            shutil.move(kept, store.path)
            decide(store_in(tmp_path), BLOB)
            forgotten = len(process.forgotten)
            await until(lambda: process.blocks.problem is None)
        assert process.blocked() == [A1, A2, B1]
        assert any(isinstance(each, Everything) for each in process.forgotten[forgotten - 1 :])
        decide(store_in(tmp_path), Selection(cid=blob_cid(2)))
        await until(lambda: process.blocked() == ALL)


async def test_who_cannot_read_is_waited_for_until_its_writes_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_in: StoreIn
) -> None:
    """Catches a purge that is answered while a result of before it is being written."""
    process, store = Process(tmp_path), store_in(tmp_path)
    others = followers_in(tmp_path)
    async with process.following():
        await until(lambda: not others.late(store.version()))

        def fail(*_arguments: object) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        with monkeypatch.context() as failing:
            failing.setattr(ModerationStore, "changes", fail)
            failing.setattr(ModerationStore, "load", fail)
            process.written = trio.Event()
            recorded = store.record("purge", [(PAIR, "")], by="a test", owner="nobody")
            await until(lambda: process.blocks.problem is not None)
            waiting = process.written.statistics
            await until(lambda: waiting().tasks_waiting > 0 or not others.late(recorded.version))
            assert others.late(recorded.version) == {process.replicas.token}
            process.written.set()
            await until(lambda: not others.late(recorded.version))
            assert await refuses(process)


async def test_damage_is_noticed_also_where_the_log_has_all_there_is(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a look through connections that have read before, which see nothing of it."""
    store = store_in(tmp_path)
    decide(store, OWNER)
    process = Process(tmp_path)
    async with process.following():
        starts = process.replicas.starts
        damage(store.path)
        await until(lambda: process.replicas.starts > starts)


async def test_a_store_that_cannot_be_read_at_the_start_serves_nothing_until_it_can(
    tmp_path: Path,
    store_in: StoreIn,
) -> None:
    """Catches a start that fails for good, and one without the blocks that are there."""
    store = store_in(tmp_path)
    store.close()
    path = store.path
    path.write_bytes(GARBAGE)
    process = Process(tmp_path)
    async with process.following():
        assert process.blocks.problem == "file is not a database"
        assert await refuses(process)
        path.unlink()
        decide(store_in(tmp_path), PAIR)
        await until(lambda: process.blocks.problem is None)
        assert process.blocked() == [A1]


async def test_a_store_that_was_lost_is_not_made_anew_by_a_process_that_read_it(
    tmp_path: Path,
    store_in: StoreIn,
) -> None:
    """Catches an empty file in place of the blocks, and everything served."""
    process = Process(tmp_path)
    async with process.following():
        store_in(tmp_path).close()
        lose(tmp_path / "moderation.sqlite3")
        await until(lambda: process.blocks.problem is not None)
        await process.started_again()
        assert await refuses(process)
        assert not (tmp_path / "moderation.sqlite3").exists()


@pytest.mark.parametrize(("owner", "name"), [(ModerationStore, "changes"), (ChangeWatch, "stamp")])
async def test_a_read_that_hangs_closes_it_while_it_hangs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    store_in: StoreIn,
    owner: type,
    name: str,
) -> None:
    """Catches hits out of memory for as long as a disk does not tell what is blocked."""
    process, store = Process(tmp_path), store_in(tmp_path)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    async with process.following():
        read = getattr(owner, name)
        hanging, goes_on = trio.Event(), trio.Event()

        def hang(*arguments: object) -> object:
            trio.from_thread.run_sync(hanging.set)
            trio.from_thread.run(goes_on.wait)
            return read(*arguments)

        monkeypatch.setattr(owner, name, hang)
        decide(store, OWNER)
        await hanging.wait()
        assert process.blocks.problem is None
        now += blocks.PATIENCE_SECONDS + 1
        assert await refuses(process)
        goes_on.set()
        await until(lambda: process.blocks.problem is None)
        # What is new may be read a step after the look that found something new.
        await until(lambda: process.blocked() == [A1, A2])


async def test_a_slow_listing_of_the_marks_holds_up_nothing_of_what_this_process_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_in: StoreIn
) -> None:
    """Catches an event loop that waits for a lock which a thread holds while it lists."""
    process, store = Process(tmp_path), store_in(tmp_path)
    really_list = Liveness._marks
    lists, may_end = threading.Event(), threading.Event()
    ended: list[bool] = []

    def list_slowly(self: Liveness) -> Iterable[str]:
        lists.set()
        ended.append(may_end.wait(PATIENCE))
        return really_list(self)

    marks = Liveness(tmp_path / "followers")
    async with process.following(), trio.open_nursery() as nursery:
        monkeypatch.setattr(Liveness, "_marks", list_slowly)
        nursery.start_soon(trio.to_thread.run_sync, process.replicas.living)
        await until(lists.is_set)
        version = decide(store, OWNER)
        await until(lambda: marks.noted(process.replicas.token) == version)
        may_end.set()
    assert ended == [True]


async def test_a_mark_that_somebody_deleted_is_left_anew(tmp_path: Path, store_in: StoreIn) -> None:
    """Catches a process for which no block waits, and that does not know it."""
    process, store = Process(tmp_path), store_in(tmp_path)
    async with process.following():
        shutil.rmtree(tmp_path / "followers")
        await until(lambda: (tmp_path / "followers" / process.replicas.token).exists())
        await until(lambda: process.blocks.problem is None)
        version = decide(store, OWNER)
        await until(lambda: not process.replicas.late(version))
        assert process.blocked() == [A1, A2]


async def test_a_folder_that_takes_no_mark_serves_nothing(tmp_path: Path) -> None:
    """Catches a process that nobody can wait for, and that serves."""
    (tmp_path / "followers").write_bytes(b"a file in the way")
    process = Process(tmp_path)
    async with process.following():
        assert await refuses(process)
        (tmp_path / "followers").unlink()
        await until(lambda: process.blocks.problem is None)


async def test_who_serves_without_a_store_is_waited_for_and_stops_when_there_is_one(
    tmp_path: Path, store_in: StoreIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a disk that takes files again: what another process blocks there is served by the
    one that has not looked yet, and while it reads."""
    process, others = Process(tmp_path), followers_in(tmp_path)
    make, load = ModerationStore.make_at_first_start, ModerationStore.load
    is_full = True
    served_meanwhile: list[bool] = []

    def make_if_there_is_room(store: ModerationStore) -> None:
        if is_full:
            raise OSError(errno.EDQUOT, "no room")
        make(store)

    def look_and_load(store: ModerationStore) -> BlocksSnapshot:
        served_meanwhile.append(process.blocks.problem is None)
        return load(store)

    monkeypatch.setattr(ModerationStore, "make_at_first_start", make_if_there_is_room)
    monkeypatch.setattr(ModerationStore, "load", look_and_load)
    async with process.following():
        assert process.blocks.problem is None
        assert others.late(1) == {process.replicas.token}
        await until(lambda: process.replicas.looks >= 2)
        assert process.blocks.problem is None
        assert others.late(1) == {process.replicas.token}
        with closing(store_in(tmp_path)) as store:
            version = decide(store, OWNER)
            is_full = False
            await until(lambda: not others.late(version))
        assert process.blocked() == [A1, A2]
    assert served_meanwhile == [False]


async def test_a_writer_that_holds_the_file_does_not_hold_it_up(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a poll that waits for a lock on the event loop, and one that closes for it."""
    process, store = Process(tmp_path), store_in(tmp_path)
    async with process.following():
        with store._writing() as connection:
            connection.execute("INSERT INTO cursors VALUES ('x', 1)")
            await process.looked_again(5)
            assert process.blocks.problem is None
        decide(store, OWNER)
        await until(lambda: process.blocked() == [A1, A2])


async def test_a_mark_is_gone_with_its_process(tmp_path: Path) -> None:
    """Catches a block that waits five seconds for a service that has ended."""
    process = Process(tmp_path)
    async with process.following():
        assert os.listdir(tmp_path / "followers") == [process.replicas.token]
    assert os.listdir(tmp_path / "followers") == []

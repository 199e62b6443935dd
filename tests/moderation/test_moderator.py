"""The order of a decision: kept, followed by all, purged, answered; and what interrupts it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from proxy.coordination.replicas import FolderReplicas
from proxy.model.selection import Selection
from proxy.moderation import moderator as moderating
from proxy.moderation.interface import Cursors, Decisions, NotInForce
from proxy.moderation.moderator import Again, Moderator
from proxy.moderation.store import ModerationStore
from tests.cache import owner
from tests.logs import logged_by
from tests.moderation import A1, A2, BLOB, OWNER, PAIR, Process, StoreIn, decide, followers_in
from tests.processes import ROOT, run, until


class Here:
    """A process that decides, and the cache that it purges.

    Attributes:
        removed: what it purged, in order.
        may_remove: a purge waits for it.
        failures: raised by purges, one each.
        invalidated: what a CDN was told of.
        steps: what was done of all this, in order.
    """

    def __init__(self, folder: Path, store_in: StoreIn) -> None:
        self.store = store_in(folder)
        self.replicas = followers_in(folder)
        self.removed: list[tuple[Selection, ...]] = []
        self.may_remove = trio.Event()
        self.may_remove.set()
        self.failures: list[Exception] = []
        self.invalidated: list[Sequence[Selection]] = []
        self.steps: list[str] = []
        self.moderator = Moderator(
            self.store, self.replicas, remove=self._remove, invalidate=self._invalidate
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Moderator]:
        """Be there while the block runs."""
        self.replicas.enter()
        try:
            yield self.moderator
        finally:
            self.replicas.leave()

    @asynccontextmanager
    async def finishing(self) -> AsyncIterator[None]:
        """Finish what others left while the block runs."""
        async with self.running(), trio.open_nursery() as nursery:
            nursery.start_soon(self.moderator.keep_finishing)
            yield
            nursery.cancel_scope.cancel()

    async def _remove(self, *selections: Selection) -> int:
        await self.may_remove.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.removed.append(selections)
        self.steps.append("removed")
        return len(selections) * 10

    async def _invalidate(self, selections: Sequence[Selection]) -> Again:
        assert self.store.unfinished(), "a crash would lose it"
        self.steps.append("noted for the CDN")
        self.invalidated.append(selections)
        return self._invalidate_again

    async def _invalidate_again(self) -> None:
        self.steps.append("noted again" if self.store.unfinished() else "noted after the end")


@pytest.fixture
def here(tmp_path: Path, store_in: StoreIn) -> Here:
    return Here(tmp_path, store_in)


@pytest.fixture
def _impatient(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here.moderator, "_patience", 0.05)


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moderating, "FINISH_SECONDS", 0.01)


def test_the_moderator_has_the_interface_that_sources_need(here: Here) -> None:
    """Catches a method whose arguments drift from those that feeds give."""
    decisions: Decisions = here.moderator
    cursors: Cursors = here.moderator
    assert (decisions, cursors) == (here.moderator, here.moderator)


async def test_a_block_is_kept_then_followed_by_all_then_purged_then_answered(
    here: Here, tmp_path: Path
) -> None:
    """Catches each wrong order: a purge that a process not yet following undoes, an answer
    before it, and an answer before everybody follows."""
    others = [Process(tmp_path) for _ in range(3)]
    for other in others:
        other.written = trio.Event()
    here.may_remove = trio.Event()
    answers: list[int] = []

    async def block() -> None:
        answers.append(await here.moderator.block(OWNER, by="a test", reason="why"))

    async with here.running(), trio.open_nursery() as nursery:
        following = [await nursery.start(follow, other) for other in others]
        nursery.start_soon(block)
        for other in others:
            await until(lambda other=other: other.blocked() == [A1, A2])  # type: ignore[misc]
        (purge,) = here.store.unfinished()
        assert purge.owner == here.replicas.token
        here.may_remove.set()
        for other in others:
            assert (here.removed, answers) == ([], []), "one still has a write under way"
            other.written.set()
        await until(lambda: bool(answers))
        assert (answers, here.removed) == ([10], [(OWNER,)])
        assert here.store.unfinished() == []
        assert here.invalidated == [[OWNER]]
        # Afterwards nobody would know any more what of the owner there was. And until it is removed
        # the CDN may fetch it from nginx, after it was told.
        assert here.steps == ["noted for the CDN", "removed", "noted again"]
        (row,) = here.store.audit(10)
        assert (row.by, row.action, row.did, row.reason, row.removed) == (
            ("a test", "block", owner(1), "why", 10)
        )
        for scope in following:
            scope.cancel()


async def follow(process: Process, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        async with process.following():
            task_status.started(scope)
            await trio.sleep_forever()


async def test_a_purge_answers_when_all_have_forgotten_what_came_back_meanwhile(
    here: Here, tmp_path: Path
) -> None:
    """Catches a copy that another process read from a disk not yet purged, and kept."""
    other = Process(tmp_path)
    here.may_remove = trio.Event()
    async with here.running() as moderator, other.following(), trio.open_nursery() as nursery:
        since = len(other.forgotten)

        async def purge() -> None:
            assert await moderator.purge(PAIR, by="a test") == 10
            assert other.forgot(since) == [A1], "before the answer"

        nursery.start_soon(purge)
        await until(lambda: other.blocks.purges_pending == 1)
        assert other.forgot(since) == [A1]
        since = len(other.forgotten)
        here.may_remove.set()
    # What came back was served until then, to a CDN too.
    assert here.steps == ["noted for the CDN", "removed", "noted again", "noted after the end"]


@pytest.mark.slow
async def test_a_cdn_is_told_at_the_end_also_where_who_asked_for_a_purge_goes_away(
    here: Here, tmp_path: Path
) -> None:
    """Catches a copy that a CDN fetched from another process, which had not forgotten yet."""
    other = Process(tmp_path)
    here.may_remove = trio.Event()
    async with other.following(), here.running() as moderator, trio.open_nursery() as nursery:
        nursery.start_soon(partial(moderator.purge, PAIR, by="a test"))
        await until(lambda: other.blocks.purges_pending == 1)
        await until(lambda: not here.replicas.late(here.store.version()))
        other.written = trio.Event()
        here.may_remove.set()
        await until(lambda: here.store.unfinished() == [])
        await until(lambda: other.written.statistics().tasks_waiting > 0)
        assert here.steps[-1] == "noted again"
        nursery.cancel_scope.cancel()
    assert here.steps[-1] == "noted after the end"


@pytest.mark.usefixtures("_often")
async def test_a_cdn_is_told_at_the_end_of_a_purge_that_another_finishes(
    here: Here, tmp_path: Path
) -> None:
    """Catches a purge whose second half tells the CDN less than its first would have."""
    here.store.record("purge", [(PAIR, "")], by="a test", owner="who died")
    async with here.finishing(), Process(tmp_path).following():
        await until(lambda: here.steps[-1:] == ["noted after the end"])


async def test_no_process_is_waited_for_that_has_ended_or_serves_nothing(
    here: Here, tmp_path: Path
) -> None:
    """Catches five seconds, and an error, for a process that was killed."""
    async with run(["-c", STUCK, str(tmp_path)], {}) as killed:
        await killed.line_with("there")
        assert here.replicas.late(1), "while it lives it is waited for"
    closed = Process(tmp_path)
    async with here.running() as moderator, closed.following():
        await closed.blocks._close(OSError("no disk"))
        await moderator.block(OWNER, by="a test")
    assert here.removed == [(OWNER,)]


STUCK = """
import sys, time
from pathlib import Path
from proxy.coordination.replicas import FolderReplicas
replicas = FolderReplicas(Path(sys.argv[1]) / "followers")
replicas.enter()
replicas.note(0)
print("there", flush=True)
time.sleep(1000)
"""


@pytest.mark.usefixtures("_impatient", "_often")
async def test_a_process_that_lives_and_does_not_follow_makes_the_call_fail_loudly(
    here: Here, tmp_path: Path
) -> None:
    """Catches an answer that claims what one process does not do."""
    stuck = followers_in(tmp_path)
    stuck.enter()
    stuck.note(0)
    async with here.finishing():
        with pytest.raises(NotInForce, match="do not follow yet: 1"):
            await here.moderator.block(OWNER, by="a test")
        assert here.removed, "what could be done was"
        assert here.store.blocks_now(A1)
        assert here.store.unfinished(), "the stuck one may bring something back"
        with pytest.raises(NotInForce):
            await here.moderator.lift(OWNER, by="a test")
        assert not here.store.blocks_now(A1)
        times = len(here.removed)
        stuck.note(100)
        await until(lambda: here.store.unfinished() == [])
        assert len(here.removed) > times, "it was purged once more"
    stuck.leave()


async def test_what_cannot_be_kept_is_neither_purged_nor_claimed(here: Here) -> None:
    """Catches "blocked" told of a block that the next start forgets."""
    here.store.close()
    here.store.path.write_bytes(b"this is no database" * 1000)
    async with here.running() as moderator:
        for work in (moderator.block, moderator.purge, moderator.lift, moderator.lift_any):
            with pytest.raises(sqlite3.Error):
                await work(OWNER, by="a test")
    assert here.removed == []


async def test_a_bulk_is_kept_in_steps_and_purged_in_one(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a walk over the whole cache for each of 100,000."""
    monkeypatch.setattr(moderating, "AT_ONCE", 4)
    entries = [(Selection(did=owner(number)), f"reason {number}") for number in range(10)]
    kept: list[int] = []
    async with here.running() as moderator:
        assert await moderator.block_all(iter(entries), by="a", on_kept=kept.append) == 100
        assert await moderator.block_all([], by="a") == 0
    assert kept == [4, 4, 2]
    assert here.removed == [tuple(selection for selection, _ in entries)]
    assert [row.reason for row in here.store.audit(100)] == [reason for _, reason in entries]
    assert here.store.unfinished() == []


async def test_a_source_lifts_its_own_block_and_the_operator_any(here: Here) -> None:
    """Catches a negated label that lifts the operator's block."""
    async with here.running() as moderator:
        await moderator.block(OWNER, by="admin")
        await moderator.block(OWNER, by="labeler")
        assert await moderator.lift(OWNER, by="labeler") is True
        assert await moderator.lift(OWNER, by="labeler") is False
        assert here.store.blocks_now(A1)
        await moderator.block(OWNER, by="labeler")
        assert await moderator.lift_any(OWNER, by="bob") is True
        assert not here.store.blocks_now(A1)
        assert await moderator.lift_any(OWNER, by="bob") is False


async def test_each_decision_is_a_line_of_the_log(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an audit that needs the host to be read."""
    async with here.running() as moderator:
        with logged_by(moderating, monkeypatch) as logs:
            await moderator.block(PAIR, by="alice", reason="a court said so")
            await moderator.purge(OWNER, by="bob", reason="a wish")
            await moderator.lift(PAIR, by="alice", reason="an appeal")
    lines = [line for line in logs if line["event"] == "decided"]
    fields = ("action", "by", "did", "cid", "reason")
    assert [tuple(line[name] for name in fields) for line in lines] == [
        ("block", "alice", PAIR.did, PAIR.cid, "a court said so"),
        ("purge", "bob", OWNER.did, None, "a wish"),
        ("lift", "alice", PAIR.did, PAIR.cid, "an appeal"),
    ]


async def test_decisions_at_once_are_all_carried_out(here: Here, tmp_path: Path) -> None:
    """Catches a lock that has each wait for all before it, or lets one be lost."""
    other = Process(tmp_path)
    async with here.running() as moderator, other.following():
        async with trio.open_nursery() as nursery:
            for number in range(50):
                selection = Selection(did=owner(number))
                nursery.start_soon(partial(moderator.block, selection, by="a test"))
        assert len(other.blocks) == 50
    assert {each for (each,) in here.removed} == {Selection(did=owner(n)) for n in range(50)}


# Interrupted.

DIES = """
import os, signal, sys
from pathlib import Path
import trio
from proxy.model.selection import Selection
from proxy.model.identifiers import parse_did
from proxy.coordination.replicas import FolderReplicas
from proxy.moderation.moderator import Again, Moderator
from proxy.moderation.store import ModerationStore

folder, action, did = Path(sys.argv[1]), sys.argv[2], parse_did(sys.argv[3])

async def remove(*selections):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    replicas = FolderReplicas(folder / "followers")
    replicas.enter()
    moderator = Moderator(ModerationStore(folder / "moderation.sqlite3"), replicas, remove=remove)
    await getattr(moderator, action)(Selection(did=did), by="who died")

trio.run(main)
"""


def die_at_the_purge(folder: Path, action: str, did: str) -> None:
    """A process that is killed between keeping a decision and removing anything."""
    arguments = [sys.executable, "-c", DIES, str(folder), action, did]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("action", ["block", "purge"])
async def test_what_a_crash_interrupted_is_finished_at_the_next_start(
    here: Here, tmp_path: Path, action: str
) -> None:
    """Catches a purge that is kept in memory alone."""
    die_at_the_purge(tmp_path, action, owner(1))
    assert here.store.blocks_now(A1) == (action == "block")
    assert len(here.store.unfinished()) == 1
    async with here.finishing():
        await until(lambda: here.store.unfinished() == [])
    assert here.removed == [(OWNER,)]
    assert here.invalidated == [[OWNER]]
    assert here.store.audit(1)[0].removed == 10
    assert not list((tmp_path / "followers").iterdir()), "the dead one is buried"


@pytest.mark.usefixtures("_often")
async def test_what_a_crash_interrupted_is_finished_by_one_that_lives(
    here: Here, tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a purge that waits for a restart; and, with two, one that is done twice."""
    second = Here(tmp_path, store_in)
    async with here.finishing(), second.finishing():
        await trio.to_thread.run_sync(die_at_the_purge, tmp_path, "block", owner(1))
        await until(lambda: here.store.unfinished() == [])
    assert here.removed + second.removed == [(OWNER,)]


@pytest.mark.usefixtures("_often")
async def test_a_purge_under_way_is_not_taken_over(
    here: Here, tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches purges that every process repeats while one is at them."""
    second = Here(tmp_path, store_in)
    here.may_remove = trio.Event()
    looked = trio.Event()
    unfinished = ModerationStore.unfinished
    async with here.finishing(), second.finishing(), trio.open_nursery() as nursery:
        nursery.start_soon(partial(here.moderator.block, OWNER, by="a test"))
        await until(lambda: len(here.store.unfinished()) == 1)
        looks = 0

        def count(store: ModerationStore) -> object:
            nonlocal looks
            looks += 1
            if looks == 10:
                trio.from_thread.run_sync(looked.set)
            return unfinished(store)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ModerationStore, "unfinished", count)
            await looked.wait()
        here.may_remove.set()
    assert (here.removed, second.removed) == ([(OWNER,)], [])


@pytest.mark.usefixtures("_often")
async def test_a_purge_that_fails_is_tried_again_until_it_succeeds(here: Here) -> None:
    """Catches a disk error that leaves a blocked picture there for ever."""
    here.failures = [OSError("disk"), OSError("disk"), OSError("disk")]
    async with here.finishing():
        with pytest.raises(OSError, match="disk"):
            await here.moderator.block(OWNER, by="a test")
        assert here.store.blocks_now(A1), "kept it is"
        await until(lambda: here.store.unfinished() == [])
    assert here.removed == [(OWNER,)]


@pytest.mark.usefixtures("_often")
async def test_a_decision_whose_caller_goes_away_is_carried_out_in_the_end(here: Here) -> None:
    """Catches a client's time-out that leaves a block without its purge."""
    here.may_remove = trio.Event()
    async with here.finishing():
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(here.moderator.block, OWNER, by="a test"))
                await until(lambda: len(here.store.unfinished()) == 1)
                scope.cancel()
        here.may_remove.set()
        await until(lambda: here.store.unfinished() == [])
    assert here.removed == [(OWNER,)]


async def test_one_purge_that_fails_does_not_hold_up_the_others(
    here: Here, tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a list of the dead's purges of which only the first is tried."""
    for selection in (OWNER, PAIR, BLOB):
        decide(store_in(tmp_path), selection)
    here.failures = [OSError("disk")]
    async with here.finishing():
        await until(lambda: len(here.store.unfinished()) == 1)
    assert here.removed == [(PAIR,), (BLOB,)]


def test_a_process_is_late_if_it_lives_and_has_not_confirmed(tmp_path: Path) -> None:
    """Catches a mark that is taken for an acknowledgement."""
    first, second = FolderReplicas(tmp_path), FolderReplicas(tmp_path)
    assert first.late(1) == frozenset()
    first.enter()
    second.enter()
    assert first.late(10) == frozenset()
    second.note(4)
    assert first.late(4) == frozenset()
    assert first.late(5) == second.late(5) == {second.token}
    second.leave()
    assert first.late(5) == frozenset()
    with pytest.raises(FileNotFoundError):
        second.note(5)

"""Two processes decide: whatever one does between two steps of the other, promises hold.

A step of a process ends where it lets go of the store, of the cache or of the CDN's queue. At every
such place the other does each operation as a whole, and the first one dies, or goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from proxy.model.keys import BlobKey
from proxy.model.selection import Selection
from proxy.moderation import moderator as moderating
from proxy.moderation.decision_store import DecisionStore
from proxy.moderation.moderator import Again, Moderator
from proxy.moderation.store import ModerationStore
from tests.cache import blob_cid, owner
from tests.moderation import AnyStoreIn, StoreIn

ADMIN, LABELER = "admin", "labeler:a"


@dataclass
class Story:
    """What two processes do with two pictures of an owner of their own.

    Attributes:
        cached: what is served, to the CDN too.
        copies: what the CDN has.
        waiting: what the CDN was not told of yet.
        shared: what a store that machines share has; None: there is none.
        is_out: the store does not answer.
    """

    store: DecisionStore
    number: int
    cached: set[BlobKey] = field(default_factory=set)
    copies: set[BlobKey] = field(default_factory=set)
    queued: list[Selection] = field(default_factory=list)
    waiting: list[Selection] = field(default_factory=list)
    living: set[str] = field(default_factory=set)
    shared: set[BlobKey] | None = None
    is_out: bool = False

    def __post_init__(self) -> None:
        self.first = BlobKey(owner(self.number), blob_cid(2 * self.number))
        self.second = BlobKey(owner(self.number), blob_cid(2 * self.number + 1))
        self.cached |= {self.first, self.second}
        self.copies |= self.cached

    def queue(self, selections: Sequence[Selection]) -> None:
        self.queued += selections
        self.waiting += selections

    def tell_cdn(self) -> None:
        told, self.waiting = self.waiting, []
        self.copies = {
            blob for blob in self.copies if not any(each.covers_blob(blob) for each in told)
        }

    @property
    def one(self) -> Selection:
        return Selection(*self.first)

    @property
    def other(self) -> Selection:
        return Selection(*self.second)

    def deciders(self, selection: Selection) -> set[str]:
        """Whose blocks of exactly ``selection`` stand."""
        exactly = (selection.did, selection.cid)
        found = self.store.blocks_of(selection)
        return {each.by for each in found if (each.did, each.cid) == exactly}


class Dead(BaseException):
    """The process ended here."""


class Process:
    """One that decides; also its mark among the others.

    Attributes:
        step: awaited before each step.
    """

    def __init__(self, story: Story, token: str) -> None:
        self.story = story
        self.token = token
        self.step: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.moderator = Moderator(
            story.store,
            self,
            remove=self._remove,
            invalidate=self._invalidate,
            shared=None if story.shared is None else self,
        )
        setattr(self.moderator, "_in_thread", self._at_once)  # noqa: B010
        story.living.add(token)

    async def _at_once(self, work: Callable[[], object]) -> object:
        await self.step()
        return work()

    async def _remove(self, *selections: Selection) -> int:
        await self.step()
        gone = {
            blob for blob in self.story.cached if any(each.covers_blob(blob) for each in selections)
        }
        self.story.cached -= gone
        return len(gone)

    is_resting = False

    async def purge(self, *selections: Selection) -> int:
        """Purge the store that machines share."""
        await self.step()
        if self.story.is_out or self.story.shared is None:
            raise OSError("it does not answer")
        gone = {
            blob for blob in self.story.shared if any(each.covers_blob(blob) for each in selections)
        }
        self.story.shared -= gone
        return len(gone)

    async def _invalidate(self, selections: Sequence[Selection]) -> Again:
        async def queue() -> None:
            await self.step()
            self.story.queue(selections)

        await queue()
        return queue

    def enter(self) -> None:
        self.story.living.add(self.token)

    def note(self, version: int) -> None:
        """It is not asked for."""

    def leave(self) -> None:
        self.story.living.discard(self.token)

    def living(self) -> frozenset[str]:
        return frozenset(self.story.living)

    def serving(self) -> int:
        return 0

    def late(self, version: int) -> frozenset[str]:
        return frozenset()


async def block(process: Process) -> None:
    await process.moderator.block(process.story.one, by=ADMIN)


async def block_as_labeler(process: Process) -> None:
    await process.moderator.block(process.story.one, by=LABELER)


async def block_many(process: Process) -> None:
    story = process.story
    await process.moderator.block_all([(story.one, ""), (story.other, "")], by=ADMIN)


async def purge(process: Process) -> None:
    await process.moderator.purge(process.story.one, by=ADMIN)


async def purge_owner(process: Process) -> None:
    await process.moderator.purge(Selection(did=process.story.first.did), by=ADMIN)


async def lift(process: Process) -> None:
    await process.moderator.lift(process.story.one, by=ADMIN)


async def lift_as_labeler(process: Process) -> None:
    await process.moderator.lift(process.story.one, by=LABELER)


async def take_over(process: Process) -> None:
    """Finish what others began: they were stopped or cut off, and count as dead."""
    others = process.story.living - {process.token}
    process.story.living -= others
    await process.moderator._finish_abandoned()
    process.story.living |= others


async def send_to_cdn(process: Process) -> None:
    """The CDN is told, and its clients ask it at once for what there is."""
    await trio.lowlevel.checkpoint()
    process.story.tell_cdn()
    process.story.copies |= process.story.cached


DECISIONS = (block, block_as_labeler, block_many, purge, purge_owner)
LIFTS = (lift, lift_as_labeler)
ALL = (*DECISIONS, *LIFTS, take_over, send_to_cdn)

Operation = Callable[[Process], Awaitable[None]]


BLOCKED_BY: dict[Operation, str] = {block: ADMIN, block_many: ADMIN, block_as_labeler: LABELER}
LIFTED_BY: dict[Operation, str] = {lift: ADMIN, lift_as_labeler: LABELER}


def covered(operation: Operation, story: Story) -> set[BlobKey]:
    """What nothing may be cached of when it has answered."""
    if operation in (block_many, purge_owner):
        return {story.first, story.second}
    return {story.first} if operation in DECISIONS else set()


def standing(operation: Operation, before: set[str]) -> set[str]:
    """Who blocks the first picture when it has answered."""
    if operation in BLOCKED_BY:
        return before | {BLOCKED_BY[operation]}
    return before - {LIFTED_BY[operation]} if operation in LIFTED_BY else before


@pytest.fixture
def stories(tmp_path: Path, store_in: StoreIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    """Stories of different owners, one after the other, in one store."""
    return stories_of(store_in(tmp_path), monkeypatch)


@pytest.fixture
def stories_anywhere(
    tmp_path: Path, any_store_in: AnyStoreIn, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Story]:
    """``stories`` in each kind of database."""
    return stories_of(any_store_in(tmp_path), monkeypatch)


def stories_of(store: DecisionStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    monkeypatch.setattr(moderating, "AT_ONCE", 1)
    if isinstance(store, ModerationStore):
        # What a loss of power leaves is not asked here.
        monkeypatch.setattr(store._file, "_synchronous", "OFF")
        store.close()
    return (Story(store, number) for number in range(1, 10_000))


def name(part: object) -> str:
    return getattr(part, "__name__", str(part)).replace("_", " ")


async def happens(
    story: Story,
    first: Operation,
    second: Operation | None = None,
    *,
    at: int = -1,
    stops_at: int = -1,
    dies_at: int = -1,
    leaves_at: int = -1,
) -> int:
    """How many steps ``first`` took.

    Args:
        at: before this step of ``first``, ``second`` is done.
        stops_at: before this step of ``second``, ``first`` goes on, and ``second`` after its end.
        dies_at: before this step the process of ``first`` ends.
        leaves_at: at this step who asked for ``first`` goes away. Its process goes on.
    """
    mine, other = Process(story, f"mine {story.number}"), Process(story, f"other {story.number}")
    stopped, goes_on = trio.Event(), trio.Event()
    steps = others_steps = 0

    async def step() -> None:
        nonlocal steps
        number, steps = steps, steps + 1
        if number == at:
            nursery.start_soon(do_second)
            await stopped.wait()
        if number == dies_at:
            raise Dead
        if number == leaves_at:
            scope.cancel()
            await trio.lowlevel.checkpoint()

    async def step_of_other() -> None:
        nonlocal others_steps
        number, others_steps = others_steps, others_steps + 1
        if number == stops_at:
            stopped.set()
            await goes_on.wait()

    async def do_second() -> None:
        assert second is not None
        before = story.deciders(story.one)
        await second(other)
        assert not story.cached & covered(second, story), "it has answered"
        if not goes_on.is_set():
            assert story.deciders(story.one) == standing(second, before), "it has answered"
        stopped.set()

    mine.step, other.step = step, step_of_other
    async with trio.open_nursery() as nursery:
        try:
            with trio.CancelScope() as scope:
                await first(mine)
                assert not story.cached & covered(first, story), "it has answered"
        except Dead:
            pass
        if leaves_at < 0:
            mine.leave()
        goes_on.set()
    # A purge that nobody would finish any more is one that was forgotten.
    for is_out in (story.is_out, False):
        story.is_out = is_out
        if leaves_at < 0:
            await take_over(Process(story, f"last {story.number}"))
        else:
            await mine.moderator._finish_abandoned()
    assert story.store.unfinished() == []
    story.tell_cdn()
    for decision in story.store.audit(4):
        if decision.action != "lift" and decision.did == story.first.did:
            selection = Selection(decision.did, decision.cid)
            assert selection in story.queued, "the CDN would keep it"
            assert not any(map(selection.covers_blob, story.copies)), "the CDN has it again"
            left = story.cached | (story.shared or set())
            assert not any(map(selection.covers_blob, left)), "it was recorded"
    return steps


@pytest.mark.parametrize("second", ALL, ids=name)
@pytest.mark.parametrize("first", [block, block_many, purge], ids=name)
async def test_no_purge_is_forgotten_wherever_its_process_ends(
    first: Operation, second: Operation, stories: Iterator[Story]
) -> None:
    """Catches a purge that is kept in memory, or carried out before it is kept."""
    steps = await happens(next(stories), first)
    assert steps > 3
    for at in range(steps):
        for dies_at in range(at, steps + 1):
            await happens(next(stories), first, second, at=at, dies_at=dies_at)


@pytest.mark.parametrize("is_out", [False, True])
@pytest.mark.parametrize("ends", ["dies_at", "leaves_at"])
@pytest.mark.parametrize("first", [block_many, purge], ids=name)
async def test_no_purge_of_a_shared_store_is_forgotten(
    first: Operation, ends: str, is_out: bool, stories: Iterator[Story]
) -> None:
    """Catches a decision that is answered without the store, and of which nobody knows then."""
    for at in range(20):
        story = next(stories)
        story.shared, story.is_out = {story.first, story.second}, is_out
        dies_at, leaves_at = (at, -1) if ends == "dies_at" else (-1, at)
        if await happens(story, first, dies_at=dies_at, leaves_at=leaves_at) <= at:
            break
    assert at > 5


@pytest.mark.parametrize("second", [take_over, block_many], ids=name)
async def test_a_bulk_is_not_forgotten_beside_what_stops_in_between(
    second: Operation, stories_anywhere: Iterator[Story]
) -> None:
    """Catches a purge that another process, which took it for abandoned, calls finished: it has
    grown meanwhile."""
    stories = stories_anywhere
    steps = await happens(next(stories), block_many)
    for at in range(steps):
        for stops_at in range(7):
            for dies_at in range(at, steps + 1):
                story = next(stories)
                await happens(story, block_many, second, at=at, stops_at=stops_at, dies_at=dies_at)


@pytest.mark.parametrize("second", ALL, ids=name)
@pytest.mark.parametrize("first", LIFTS, ids=name)
async def test_a_lift_takes_the_block_of_one_decider(
    first: Operation, second: Operation, stories: Iterator[Story]
) -> None:
    """Catches a lift that takes what another decider has decided between two of its steps."""
    for at in range(3):
        story = next(stories)
        before = Process(story, f"before {story.number}")
        await block(before)
        await block_as_labeler(before)
        before.leave()
        await happens(story, first, second, at=at)
        left = {ADMIN, LABELER} - {LIFTED_BY[first]}
        assert left - {LIFTED_BY.get(second)} <= story.deciders(story.one)

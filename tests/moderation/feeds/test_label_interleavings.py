"""Whatever happens while a labelled record is asked for, what labels ask for is blocked afterwards.

Every sequence of a few events is tried; each question begins by itself, and its answer is one of
the events.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
import trio.testing

from proxy.config import LabelsSection
from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from proxy.moderation.feeds.label_enforcer import LabelEnforcer
from proxy.moderation.feeds.label_records import RecordReader, RecordUnknown
from proxy.moderation.feeds.label_store import SCHEMA, FeedStore
from proxy.moderation.feeds.labels import Label, LabelledRecord
from proxy.observability.metrics import Metrics
from proxy.shared.sqlite import Database
from tests.cache import blob_cid, owner
from tests.fakes.sites import record_cid
from tests.moderation.feeds import EPOCH, Told, wall_clock

FIRST, SECOND = record_cid({"text": "first"}), record_cid({"text": "second"})
"""Two versions of a record, each with a picture of its own."""

PICTURES: dict[str | None, Cid] = {None: blob_cid(1), FIRST: blob_cid(1), SECOND: blob_cid(2)}

MOD = "did:web:mod"


@dataclass(eq=False)
class Question:
    """A record that is being asked for."""

    record: LabelledRecord
    answered: trio.Event
    fails: bool = False


class Records(RecordReader):
    """Records whose answers come when a test says so."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    async def blobs(self, record: LabelledRecord) -> frozenset[Cid]:
        """See ``RecordReader.blobs``."""
        question = Question(record, trio.Event())
        self.questions.append(question)
        try:
            await question.answered.wait()
        finally:
            self.questions.remove(question)
        if question.fails:
            raise RecordUnknown("no answer")
        return frozenset((PICTURES[record.cid],))


class Labeler:
    """A labeler with two values, whose labels on one record are carried out."""

    def __init__(self, store: FeedStore, nursery: trio.Nursery, did: Did) -> None:
        self.told = Told()
        self._record = LabelledRecord(did, "app.bsky.feed.post", "key")
        self.records = Records()
        self.made: dict[str, Label] = {}
        self._store = store
        self._nursery = nursery
        self._cts = EPOCH
        self._scope = trio.CancelScope()

    async def start(self) -> None:
        """Carry labels out."""
        self._scope = trio.CancelScope()
        self.enforcer = LabelEnforcer(
            LabelsSection.model_construct(subscribe=(Did(MOD),), values=("a", "b"), scope="owner"),
            store=self._store,
            decisions=self.told,
            records=self.records,
            metrics=Metrics(),
            clock=wall_clock,
        )
        self._nursery.start_soon(self._run)
        await trio.testing.wait_all_tasks_blocked()

    async def stop(self) -> None:
        """End that, as the end of a process does."""
        self._scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    async def _run(self) -> None:
        with self._scope:
            await self.enforcer.run()

    async def send(self, label: Label) -> None:
        """Send a label, and note it if no newer one is known."""
        known = self.made.get(label.val)
        if known is None or label.cts >= known.cts:
            self.made[label.val] = label
        await self.enforcer.put(label)

    def label(self, val: str, *, is_new: bool = True) -> Label:
        """A label on the record; ``is_new``: later than all before it."""
        self._cts += is_new
        return Label(MOD, self._record.uri, "", val, False, self._cts, None, b"", b"")

    def wanted(self) -> set[Selection]:
        """What the labels that stand ask for."""
        return {
            Selection(self._record.did, PICTURES[label.cid or None])
            for label in self.made.values()
            if not label.neg and (label.exp is None or label.exp > wall_clock())
        }


async def label(labeler: Labeler) -> None:
    await labeler.send(labeler.label("a"))


async def negate(labeler: Labeler) -> None:
    await labeler.send(replace(labeler.label("a"), neg=True))


async def label_otherwise(labeler: Labeler) -> None:
    await labeler.send(labeler.label("b"))


async def negate_the_other(labeler: Labeler) -> None:
    await labeler.send(replace(labeler.label("b"), neg=True))


async def label_the_second_version(labeler: Labeler) -> None:
    """At the same moment as the label before it."""
    await labeler.send(replace(labeler.label("a", is_new=False), cid=SECOND))


async def send_again(labeler: Labeler) -> None:
    """As after a reconnection."""
    if "a" in labeler.made:
        await labeler.send(labeler.made["a"])


async def send_what_is_old(labeler: Labeler) -> None:
    await labeler.send(replace(labeler.label("a"), cts=EPOCH - 1))


async def label_for_a_minute(labeler: Labeler) -> None:
    await labeler.send(replace(labeler.label("a"), exp=wall_clock() + 60))


async def let_time_pass(labeler: Labeler) -> None:
    await trio.sleep(61)


async def answer(labeler: Labeler) -> None:
    for question in labeler.records.questions[:1]:
        question.answered.set()


async def fail(labeler: Labeler) -> None:
    for question in labeler.records.questions[:1]:
        question.fails = True
        question.answered.set()


async def restart(labeler: Labeler) -> None:
    await labeler.stop()
    await labeler.start()


EVENTS = (
    negate,
    label_otherwise,
    negate_the_other,
    label_the_second_version,
    send_again,
    send_what_is_old,
    label_for_a_minute,
    let_time_pass,
    answer,
    fail,
    restart,
)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
async def test_afterwards_exactly_what_labels_ask_for_is_blocked(
    count: int, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches an answer that is kept for a label that took the place of the one that asked."""
    at_rest = trio.testing.wait_all_tasks_blocked
    with closing(FeedStore(Database(tmp_path / "x", SCHEMA, synchronous="NORMAL"))) as store:
        for number, events in enumerate(itertools.product(EVENTS, repeat=count)):
            async with trio.open_nursery() as nursery:
                labeler = Labeler(store, nursery, owner(number))
                await labeler.start()
                for event in (label, *events):
                    await event(labeler)
                    await at_rest()
                for _ in range(count + 1):
                    while labeler.records.questions:
                        await answer(labeler)
                        await at_rest()
                    await let_time_pass(labeler)
                names = [each.__name__ for each in events]
                assert labeler.told.blocked == labeler.wanted(), names
                nursery.cancel_scope.cancel()


class Interrupted:
    """Decisions of a process that others interrupt before each of them."""

    def __init__(self, told: Told, step: Callable[[], Awaitable[None]]) -> None:
        self._told = told
        self._step = step

    async def block(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """See ``Decisions.block``."""
        await self._step()
        return await self._told.block(selection, by=by, reason=reason)

    async def lift(self, selection: Selection, *, by: str, reason: str = "") -> bool:
        """See ``Decisions.lift``."""
        await self._step()
        return await self._told.lift(selection, by=by, reason=reason)

    async def purge(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """See ``Decisions.purge``."""
        raise NotImplementedError


@pytest.mark.parametrize("is_labelled", [False, True])
@pytest.mark.parametrize("negs", [(False, False), (False, True), (True, False), (True, True)])
async def test_two_processes_that_follow_for_a_moment_leave_what_the_last_label_says(
    negs: tuple[bool, bool], is_labelled: bool, tmp_path: Path
) -> None:
    """Catches a process that was stopped, is the leader no more, and carries out what it had read
    before: a block that stands for ever, or one that is gone."""
    account = Label(MOD, owner(1), "", "a", False, EPOCH, None, b"", b"")
    subject = Selection(did=owner(1))
    with closing(FeedStore(Database(tmp_path / "x", SCHEMA, synchronous="NORMAL"))) as store:
        for number in itertools.count():
            told = Told()
            cts = EPOCH + 10 * number
            first, second = (
                replace(account, neg=neg, cts=cts + place) for place, neg in enumerate(negs, 1)
            )
            steps = 0

            async def step() -> None:
                nonlocal steps
                steps += 1
                if steps == number + 1:  # noqa: B023
                    await enforcer_of(store, told).put(second)  # noqa: B023

            await enforcer_of(store, told).put(replace(account, neg=not is_labelled, cts=cts))
            await enforcer_of(store, told, step).put(first)
            if steps <= number:
                break
            assert told.blocked == (set() if second.neg else {subject}), number
    assert number > 1


def enforcer_of(
    store: FeedStore, told: Told, step: Callable[[], Awaitable[None]] | None = None
) -> LabelEnforcer:
    """What carries labels out; ``step`` is awaited before each of its steps."""
    enforcer = LabelEnforcer(
        LabelsSection.model_construct(subscribe=(Did(MOD),), values=("a", "b"), scope="owner"),
        store=store,
        decisions=told if step is None else Interrupted(told, step),
        records=Records(),
        metrics=Metrics(),
        clock=wall_clock,
    )
    if step is not None:
        in_store = enforcer._in_store

        async def stepping(work: Callable[..., object], *args: object) -> object:
            await step()
            return await in_store(work, *args)

        setattr(enforcer, "_in_store", stepping)  # noqa: B010
    return enforcer

"""Another process decides between two steps of one that follows: what was answered is in force.

At every step of the follower, from its start on, a decision is kept; at one after it the disk may
fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing

from proxy.moderation.decision_store import DecisionStore
from proxy.moderation.folder_blocks import FolderBlocks
from proxy.moderation.store import ModerationStore
from tests.moderation import A1, PAIR, Served, StoreIn, followers_in

Action = Literal["block", "purge"]

STEPS = 12
"""Steps until a follower that begins is open, and looks for changes."""


@dataclass
class Decider:
    """Another process: at each step it goes on as far as it can."""

    store: DecisionStore
    action: Action
    served: Served
    late: Callable[[int], frozenset[str]]
    has_answered: bool = False
    version: int = 0
    purge: int = 0
    is_finished: bool = False

    def go_on(self) -> None:
        """Keep the decision; purge when all follow; answer when all have forgotten once more."""
        if not self.version:
            recorded = self.store.record(self.action, [(PAIR, "")], by="a test", owner="nobody")
            self.version, self.purge = recorded.version, recorded.purge
        if not self.is_finished and not self.late(self.version):
            self.served.cached.discard(A1)
            self.version = self.store.finish(self.purge, 1)
            self.is_finished = True
        if self.is_finished and (self.action == "block" or not self.late(self.version)):
            self.has_answered = True


@pytest.mark.parametrize("action", ["block", "purge"])
async def test_what_was_answered_is_in_force_at_every_step_of_a_follower(
    action: Action,
    tmp_path: Path,
    store_in: StoreIn,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches a version that is noted before it is in force, and a copy that came back from the
    disk before that was purged."""
    store = store_in(tmp_path)
    monkeypatch.setattr(store._file, "_synchronous", "OFF")
    store.close()
    for at in range(STEPS):
        for fails_at in (None, *range(at, at + 6)):
            await happens(store, tmp_path, action, at, fails_at)


async def happens(
    store: ModerationStore, folder: Path, action: Action, at: int, fails_at: int | None
) -> None:
    """A process begins to follow; at its step ``at`` another decides, and then, one of its own
    fails."""
    served = Served()
    mine, others = followers_in(folder), followers_in(folder)
    others.enter()
    blocks = FolderBlocks(ModerationStore(store.path), mine)
    decider = Decider(store, action, served, others.late)
    steps = left = 0
    done = trio.Event()

    async def step(work: Callable[[], object]) -> object:
        nonlocal steps, left
        number, steps = steps, steps + 1
        await trio.lowlevel.checkpoint()
        happen(number)
        left += decider.has_answered
        if left > 3 and blocks.problem is None:
            done.set()
        if number == fails_at and not done.is_set():
            raise OSError("the disk")
        result = work()
        happen(number)
        return result

    def happen(number: int) -> None:
        """People look at what there is, before and after the other process has gone on."""
        look()
        if number >= at:
            decider.go_on()
        look()

    def look() -> None:
        if blocks.problem is None:
            served.remembered |= served.cached
            if decider.has_answered:
                is_there = action == "block" or A1 in served.remembered
                assert not is_there or blocks.is_blocked(A1), (at, fails_at)

    setattr(blocks, "_in_thread", step)  # noqa: B010
    async with trio.open_nursery() as nursery:
        await nursery.start(blocks.follow, served.forget, trio.lowlevel.checkpoint)
        await done.wait()
        nursery.cancel_scope.cancel()
    others.leave()
    store.lift(PAIR, by="a test", reason="", of_all=True)

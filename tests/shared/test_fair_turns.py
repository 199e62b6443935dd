"""Turns at something scarce, of which no group can have all."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.shared.fair_turns import FairTurns


class Refused(Exception):
    pass


def fair_turns(
    *, at_once: int = 4, of_group: int = 2, waiting: int = 9, of_one: int = 9
) -> FairTurns:
    return FairTurns(at_once, of_group, waiting=waiting, waiting_of_group=of_one, refusal=Refused)


class Askers:
    """Tasks that want a turn each, and keep it until ``gate`` opens."""

    def __init__(self, nursery: trio.Nursery, turns: FairTurns) -> None:
        self.gate = trio.Event()
        self.having: list[str] = []
        self.refused: list[str] = []
        self._nursery, self._turns = nursery, turns

    async def ask(self, group: str, patience: float = math.inf) -> None:
        async def work() -> None:
            try:
                async with self._turns.turn(group, patience):
                    self.having.append(group)
                    await self.gate.wait()
            except Refused:
                self.refused.append(group)

        self._nursery.start_soon(work)
        await wait_all_tasks_blocked()


async def test_a_group_that_wants_all_turns_leaves_the_others_theirs(
    nursery: trio.Nursery,
) -> None:
    """Catches one limit for all: a host that is slow would have every turn."""
    askers = Askers(nursery, fair_turns())
    for _ in range(4):
        await askers.ask("greedy")
    await askers.ask("other")
    assert askers.having == ["greedy", "greedy", "other"]
    askers.gate.set()
    await wait_all_tasks_blocked()
    assert askers.having.count("greedy") == 4


@pytest.mark.parametrize(("waiting", "of_one"), [(1, 9), (9, 1)])
async def test_who_would_be_one_too_many_is_refused_at_once(
    nursery: trio.Nursery, waiting: int, of_one: int
) -> None:
    """Catches a queue without an end, of all or of one group."""
    turns = fair_turns(at_once=1, of_group=1, waiting=waiting, of_one=of_one)
    askers = Askers(nursery, turns)
    for _ in range(3):
        await askers.ask("one")
    assert (askers.having, askers.refused) == (["one"], ["one"])
    askers.gate.set()


async def test_patience_ends_the_wait_and_never_a_turn(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """Catches a deadline that goes on when the turn has come."""
    askers = Askers(nursery, fair_turns(at_once=1, of_group=1))
    await askers.ask("first", 5)
    await askers.ask("second", 5)
    mock_clock.jump(6)
    await wait_all_tasks_blocked()
    assert (askers.having, askers.refused) == (["first"], ["second"])
    await askers.ask("third", 5)
    askers.gate.set()
    await wait_all_tasks_blocked()
    assert askers.having == ["first", "third"]


async def test_a_cancelled_wait_leaves_room_for_another(nursery: trio.Nursery) -> None:
    """Catches a count of those who wait that only grows."""
    turns = fair_turns(at_once=1, of_group=1, waiting=1)
    async with turns.turn("one"):
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                async with turns.turn("other"):
                    raise AssertionError("it is cancelled")
    async with turns.turn("other"):
        pass
    assert turns._turns_of == {}

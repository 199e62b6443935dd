"""Turns at something scarce, of which no group of askers can have all. See ``FairTurns``."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio


class FairTurns:
    """So many turns at once, of which one group has a few at the most. First come, first served.

    Args:
        at_once: turns of all.
        of_group: turns of one group.
        waiting, waiting_of_group: who may wait beside those who have a turn, of all and of a group.
        refusal: makes the error of who may not wait, of a text for the operator.
    """

    def __init__(
        self,
        at_once: int,
        of_group: int,
        *,
        waiting: int,
        waiting_of_group: int,
        refusal: Callable[[str], Exception],
    ) -> None:
        self._at_once, self._of_group = at_once, of_group
        self._waiting, self._waiting_of_group = waiting, waiting_of_group
        self._refusal = refusal
        self._turns = trio.CapacityLimiter(at_once)
        # Only of groups that have or want a turn at the moment.
        self._turns_of: dict[str, trio.CapacityLimiter] = {}
        self._present = 0

    @asynccontextmanager
    async def turn(self, group: str, patience: float = math.inf) -> AsyncIterator[None]:
        """Wait for a turn of the group, and then for one of all; have it during the block.

        Cancellation, and an error in the block, leave nothing behind.

        Args:
            patience: seconds to wait at the most.

        Raises:
            what ``refusal`` makes: too many wait, or it took longer than ``patience``.
        """
        if self._present >= self._at_once + self._waiting:
            raise self._refusal(f"{self._waiting} wait")
        turns = self._turns_of.setdefault(group, trio.CapacityLimiter(self._of_group))
        if turns.statistics().tasks_waiting >= self._waiting_of_group:
            raise self._refusal(f"{self._waiting_of_group} of {group} wait")
        self._present += 1
        try:
            with trio.move_on_after(patience) as wait:
                async with turns, self._turns:
                    wait.deadline = math.inf
                    yield
        finally:
            self._present -= 1
            used = turns.statistics()
            if not used.borrowed_tokens and not used.tasks_waiting:
                self._turns_of.pop(group, None)
        if wait.cancelled_caught:
            raise self._refusal(f"no turn for {group} within {patience:g} s")

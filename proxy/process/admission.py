"""Room for what is under way, measured in bytes: many small pieces of work, or one large one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from proxy.errors import Busy


@dataclass(frozen=True, slots=True)
class AdmissionStatistics:
    """Pieces of work that are admitted, those that wait, and the bytes of each."""

    admitted: int
    admitted_bytes: int
    waiting: int
    waiting_bytes: int


@dataclass(slots=True, eq=False)
class _Waiter:
    amount: int
    source: bytes
    turn: trio.Event = field(default_factory=trio.Event)


class Admission:
    """Admits in the order of arrival, so that no large piece of work starves behind small ones.

    Args:
        budget: bytes that everything admitted may take together.
        waiting_room: bytes that everything waiting may hold together.
    """

    def __init__(self, budget: int, waiting_room: int) -> None:
        self._budget = budget
        self._waiting_room = waiting_room
        self._waiters: deque[_Waiter] = deque()
        # How many wait with each source: several presets of one blob hold it together.
        self._sources: Counter[int] = Counter()
        self._admitted = 0
        self._admitted_bytes = 0
        self._waiting_bytes = 0

    def statistics(self) -> AdmissionStatistics:
        """A snapshot."""
        return AdmissionStatistics(
            self._admitted, self._admitted_bytes, len(self._waiters), self._waiting_bytes
        )

    def has_room(self, amount: int) -> bool:
        """Whether ``amount`` bytes would be admitted at once."""
        return not self._waiters and self._fits(min(amount, self._budget))

    @asynccontextmanager
    async def room(self, amount: int, source: bytes) -> AsyncIterator[None]:
        """Wait for room, and keep it for the time of the block.

        Cancellation while waiting leaves nothing behind.

        Args:
            amount: bytes that the block may take; more than the budget counts as all of it.
            source: what is held while waiting; the same object counts once.

        Raises:
            Busy: the waiting room is full.
        """
        amount = min(amount, self._budget)
        if self._waiters or not self._fits(amount):
            await self._wait(_Waiter(amount, source))
        else:
            self._take(amount)
        try:
            yield
        finally:
            self._admitted -= 1
            self._admitted_bytes -= amount
            self._admit()

    async def _wait(self, waiter: _Waiter) -> None:
        self._enqueue(waiter)
        try:
            await waiter.turn.wait()
        except trio.Cancelled:
            if waiter.turn.is_set():
                self._admitted -= 1
                self._admitted_bytes -= waiter.amount
            else:
                self._waiters.remove(waiter)
                self._let_go(waiter.source)
            # It may have been what stood in the way of those behind it.
            self._admit()
            raise

    def _enqueue(self, waiter: _Waiter) -> None:
        more = 0 if self._sources[id(waiter.source)] else len(waiter.source)
        if self._waiting_bytes + more > self._waiting_room:
            raise Busy(f"{self._waiting_bytes} bytes wait for a transform already")
        self._waiters.append(waiter)
        self._sources[id(waiter.source)] += 1
        self._waiting_bytes += more

    def _let_go(self, source: bytes) -> None:
        self._sources[id(source)] -= 1
        if not self._sources[id(source)]:
            del self._sources[id(source)]
            self._waiting_bytes -= len(source)

    def _admit(self) -> None:
        while self._waiters and self._fits(self._waiters[0].amount):
            waiter = self._waiters.popleft()
            self._let_go(waiter.source)
            self._take(waiter.amount)
            waiter.turn.set()

    def _take(self, amount: int) -> None:
        self._admitted += 1
        self._admitted_bytes += amount

    def _fits(self, amount: int) -> bool:
        return self._admitted_bytes + amount <= self._budget

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
class Reservation:
    """What a piece of work asks for; used once.

    Attributes:
        amount: bytes that it may take; more than the budget counts as all of it.
        source: what it holds while it waits; the same object counts once.
    """

    amount: int
    source: bytes
    _turn: trio.Event = field(default_factory=trio.Event)


class Admission:
    """Admits in the order of arrival, so that no large piece of work starves behind small ones.

    Args:
        budget: bytes that everything admitted may take together.
        waiting_room: bytes that everything waiting may hold together.
    """

    def __init__(self, budget: int, waiting_room: int) -> None:
        self.budget = budget
        self._waiting_room = waiting_room
        self._waiters: deque[Reservation] = deque()
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
        return not self._waiters and self._fits(min(amount, self.budget))

    @asynccontextmanager
    async def room(self, claim: Reservation) -> AsyncIterator[None]:
        """Wait for room, and keep it for the time of the block.

        Cancellation while waiting leaves nothing behind.

        Raises:
            Busy: the waiting room is full.
        """
        claim.amount = min(claim.amount, self.budget)
        if self._waiters or not self._fits(claim.amount):
            await self._wait(claim)
        else:
            self._take(claim)
        try:
            yield
        finally:
            self._release(claim)

    def resize(self, claim: Reservation, amount: int) -> bool:
        """Let ``claim`` ask for another amount, and keep its place among those that wait.

        Returns:
            Whether it does. Once admitted it gets no more than there is room for.
        """
        amount = min(amount, self.budget)
        if claim._turn.is_set():
            if not self._fits(amount - claim.amount):
                return False
            self._admitted_bytes += amount - claim.amount
        claim.amount = amount
        self._admit()
        return True

    async def _wait(self, claim: Reservation) -> None:
        self._enqueue(claim)
        try:
            await claim._turn.wait()
        except trio.Cancelled:
            if claim._turn.is_set():
                self._release(claim)
            else:
                self._waiters.remove(claim)
                self._let_go(claim.source)
                # It may have been what stood in the way of those behind it.
                self._admit()
            raise

    def _enqueue(self, claim: Reservation) -> None:
        more = 0 if self._sources[id(claim.source)] else len(claim.source)
        if self._waiting_bytes + more > self._waiting_room:
            raise Busy(f"{self._waiting_bytes} bytes wait for a transform already")
        self._waiters.append(claim)
        self._sources[id(claim.source)] += 1
        self._waiting_bytes += more

    def _let_go(self, source: bytes) -> None:
        self._sources[id(source)] -= 1
        if not self._sources[id(source)]:
            del self._sources[id(source)]
            self._waiting_bytes -= len(source)

    def _admit(self) -> None:
        while self._waiters and self._fits(self._waiters[0].amount):
            claim = self._waiters.popleft()
            self._let_go(claim.source)
            self._take(claim)

    def _take(self, claim: Reservation) -> None:
        self._admitted += 1
        self._admitted_bytes += claim.amount
        claim._turn.set()

    def _release(self, claim: Reservation) -> None:
        self._admitted -= 1
        self._admitted_bytes -= claim.amount
        self._admit()

    def _fits(self, amount: int) -> bool:
        return self._admitted_bytes + amount <= self.budget

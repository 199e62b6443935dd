"""The memory gate: bytes shared by all jobs, so that many small ones run at once, or one large."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from proxy.errors import Busy


@dataclass(frozen=True, slots=True)
class MemoryGateStatistics:
    """How many jobs were admitted, how many wait, and the bytes of each group."""

    admitted: int
    admitted_bytes: int
    waiting: int
    waiting_bytes: int


@dataclass(slots=True, eq=False)
class Reservation:
    """The memory that one job asks for; used once.

    Attributes:
        amount: bytes that the job may take; more than the budget counts as all of it.
        source: bytes that it holds while it waits; the same object counts once.
    """

    amount: int
    source: bytes
    _admitted: trio.Event = field(default_factory=trio.Event)


class MemoryGate:
    """Admits jobs in the order of arrival, so that a large one does not starve behind small ones.

    Args:
        budget: bytes that all admitted jobs may take together.
        waiting_room: bytes of sources that all waiting jobs may hold together.
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

    def statistics(self) -> MemoryGateStatistics:
        """A snapshot."""
        return MemoryGateStatistics(
            self._admitted, self._admitted_bytes, len(self._waiters), self._waiting_bytes
        )

    def has_room(self, amount: int) -> bool:
        """Whether ``amount`` bytes would be admitted at once."""
        return not self._waiters and self._fits(min(amount, self.budget))

    @asynccontextmanager
    async def hold(self, reservation: Reservation) -> AsyncIterator[None]:
        """Wait for room, and keep it for the time of the block.

        Where there is room at once, this is no checkpoint. Cancellation while waiting leaves
        nothing behind. The wait itself has no deadline: the caller sets one.

        Raises:
            Busy: the waiting room is full.
        """
        reservation.amount = min(reservation.amount, self.budget)
        if self._waiters or not self._fits(reservation.amount):
            await self._wait(reservation)
        else:
            self._admit(reservation)
        try:
            yield
        finally:
            self._release(reservation)

    def resize(self, reservation: Reservation, amount: int) -> bool:
        """Change the amount of ``reservation``, which keeps its place among those that wait.

        Returns:
            Whether it was changed: once admitted, it gets no more than there is room for.
        """
        amount = min(amount, self.budget)
        if reservation._admitted.is_set():
            if not self._fits(amount - reservation.amount):
                return False
            self._admitted_bytes += amount - reservation.amount
        reservation.amount = amount
        self._admit_waiters()
        return True

    async def _wait(self, reservation: Reservation) -> None:
        self._enqueue(reservation)
        try:
            await reservation._admitted.wait()
        except trio.Cancelled:
            if reservation._admitted.is_set():
                self._release(reservation)
            else:
                self._waiters.remove(reservation)
                self._forget_source(reservation.source)
                # It may have been too large for the room that those behind it fit in.
                self._admit_waiters()
            raise

    def _enqueue(self, reservation: Reservation) -> None:
        more = 0 if self._sources[id(reservation.source)] else len(reservation.source)
        if self._waiting_bytes + more > self._waiting_room:
            raise Busy(f"{self._waiting_bytes} bytes wait for a transform already")
        self._waiters.append(reservation)
        self._sources[id(reservation.source)] += 1
        self._waiting_bytes += more

    def _forget_source(self, source: bytes) -> None:
        self._sources[id(source)] -= 1
        if not self._sources[id(source)]:
            del self._sources[id(source)]
            self._waiting_bytes -= len(source)

    def _admit_waiters(self) -> None:
        while self._waiters and self._fits(self._waiters[0].amount):
            reservation = self._waiters.popleft()
            self._forget_source(reservation.source)
            self._admit(reservation)

    def _admit(self, reservation: Reservation) -> None:
        self._admitted += 1
        self._admitted_bytes += reservation.amount
        reservation._admitted.set()

    def _release(self, reservation: Reservation) -> None:
        self._admitted -= 1
        self._admitted_bytes -= reservation.amount
        self._admit_waiters()

    def _fits(self, amount: int) -> bool:
        return self._admitted_bytes + amount <= self.budget

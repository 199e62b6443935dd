"""The memory gate: jobs share a budget of bytes, enough for many small jobs or one large job."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from proxy.errors import Busy


@dataclass(frozen=True, slots=True)
class MemoryGateStatistics:
    """The admitted jobs and the waiting jobs, each with the sum of their bytes."""

    admitted: int
    admitted_bytes: int
    waiting: int
    waiting_bytes: int


@dataclass(slots=True, eq=False)
class Reservation:
    """The memory that one job needs; used once.

    Attributes:
        amount: bytes that the job may use; if above the budget, the job needs the whole budget.
        source: the source that it holds while it waits; several jobs with the same object count it
            once.
    """

    amount: int
    source: bytes
    _admitted: trio.Event = field(default_factory=trio.Event)


class MemoryGate:
    """Admits jobs in the order of arrival, so that small jobs cannot starve a large one.

    Args:
        budget: bytes that all admitted jobs may use together.
        waiting_room: bytes of sources that all waiting jobs may hold together.
    """

    def __init__(self, budget: int, waiting_room: int) -> None:
        self.budget = budget
        self._waiting_room = waiting_room
        self._waiters: deque[Reservation] = deque()
        # The number of waiting jobs for each source: several presets of one blob share it.
        self._sources: Counter[int] = Counter()
        self._admitted = 0
        self._admitted_bytes = 0
        self._waiting_bytes = 0

    def statistics(self) -> MemoryGateStatistics:
        """Return the current numbers."""
        return MemoryGateStatistics(
            self._admitted, self._admitted_bytes, len(self._waiters), self._waiting_bytes
        )

    def has_room(self, amount: int) -> bool:
        """Whether ``amount`` bytes would be admitted at once."""
        return not self._waiters and self._fits(min(amount, self.budget))

    @asynccontextmanager
    async def hold(self, reservation: Reservation) -> AsyncIterator[None]:
        """Wait for room, and occupy it during the block.

        If there is room at once, this is not a checkpoint. Cancellation while waiting leaves
        nothing behind. The wait has no deadline of its own: the caller sets one.

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
        """Change the amount of ``reservation``. A waiting one keeps its place in the queue.

        Returns:
            Whether it was changed: False if it is already admitted and there is no room for more.
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
                # Those behind it may be small enough for the free room.
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

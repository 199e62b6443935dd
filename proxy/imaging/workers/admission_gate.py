"""The admission gate: jobs get a place and memory, in the order of fair shares.

There is memory for many small jobs or for one large job and a few small ones beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from proxy.errors import Busy
from proxy.imaging.workers.fair_shares import UNKNOWN, FairShares, Party, Publisher, parties

MAX_PASSES = 16
"""How often jobs that fit may pass one for which there is no memory; then memory is kept free."""

MAX_WAITING = 1024
"""Jobs that may wait; more are refused as busy. The order of all of them is looked at each time."""


@dataclass(frozen=True, slots=True)
class GateStatistics:
    """The admitted jobs and the waiting jobs, each with the sum of their bytes."""

    admitted: int
    admitted_bytes: int
    waiting: int
    waiting_bytes: int


@dataclass(slots=True, eq=False)
class Reservation:
    """The memory that one job needs; used once.

    Attributes:
        amount: bytes that the job may use; cut to the most that one job may have.
        source: the source that it holds while it waits; several jobs with the same object count it
            once.
        publisher: whose share the job counts against.
    """

    amount: int
    source: bytes
    publisher: Publisher = UNKNOWN
    _admitted: trio.Event = field(default_factory=trio.Event)
    _began: float = 0.0
    _passes: int = 0


class GateLimits(NamedTuple):
    """What all jobs share.

    Attributes:
        places: jobs that may be admitted at once.
        budget: bytes that all admitted jobs may use together.
        reserve: bytes of the budget for small jobs alone; a job of at most so many is small.
        waiting_room: bytes of sources that all waiting jobs may hold together; those of one domain
            may hold half of it, and those of one owner a quarter.
    """

    places: int
    budget: int
    reserve: int
    waiting_room: int

    @property
    def most(self) -> int:
        """Bytes that one job may use, and all jobs together that are not small."""
        return self.budget - self.reserve


class AdmissionGate:
    """Admits jobs in the order of fair shares; jobs of one owner in the order of arrival.

    A job for which there is no memory lets others that fit pass, ``MAX_PASSES`` times. After that,
    those behind it get the reserve alone, which it does not need itself.
    """

    def __init__(self, limits: GateLimits) -> None:
        self.limits = limits
        self._shares = FairShares(max(limits.places // 2, 1))
        # In the order of arrival.
        self._waiters: list[Reservation] = []
        # The number of waiting jobs for each source: several presets of one blob share it.
        self._sources: Counter[tuple[Publisher, int]] = Counter()
        self._admitted = 0
        self._small_bytes = 0
        self._large_bytes = 0
        # Of each domain, and of each owner.
        self._waiting: Counter[Party] = Counter()
        self._waiting_bytes: Counter[Party] = Counter()

    def statistics(self) -> GateStatistics:
        """Return the current numbers."""
        return GateStatistics(
            self._admitted,
            self._small_bytes + self._large_bytes,
            len(self._waiters),
            self._waiting_bytes[()],
        )

    @asynccontextmanager
    async def hold(
        self, reservation: Reservation, *, on_wait: Callable[[], None] = lambda: None
    ) -> AsyncIterator[None]:
        """Wait for a place and for memory, and occupy both during the block.

        If both are free at once, this is not a checkpoint. Cancellation while waiting leaves
        nothing behind. The wait has no deadline of its own: the caller sets one.

        Args:
            on_wait: called if the job has to wait.

        Raises:
            Busy: the waiting room is full, or the share of the domain or owner in it.
        """
        reservation.amount = min(reservation.amount, self.limits.most)
        self._enqueue(reservation)
        # One for which there is no memory changes nothing for the others.
        if self._fits(reservation.amount):
            self._admit_waiters()
        if not reservation._admitted.is_set():
            self._check_waiting_room(reservation)
            on_wait()
            await self._wait(reservation)
        try:
            yield
        finally:
            self._release(reservation)

    def resize(self, reservation: Reservation, amount: int) -> bool:
        """Change the amount of ``reservation``. A waiting one keeps its place in the order.

        Returns:
            Whether it was changed: False if it is already admitted and there is no room for more.
        """
        amount = min(amount, self.limits.most)
        if reservation._admitted.is_set():
            self._occupy(reservation.amount, -1)
            fits = self._fits(amount)
            reservation.amount = amount if fits else reservation.amount
            self._occupy(reservation.amount)
            if not fits:
                return False
            self._admit_waiters()
            return True
        reservation.amount = amount
        if self._fits(amount):
            self._admit_waiters()
        return True

    async def _wait(self, reservation: Reservation) -> None:
        try:
            await reservation._admitted.wait()
        except trio.Cancelled:
            if reservation._admitted.is_set():
                self._release(reservation)
            else:
                self._leave_queue(reservation)
                if reservation._passes >= MAX_PASSES:  # memory may have been kept free for it
                    self._admit_waiters()
            raise

    def _enqueue(self, reservation: Reservation) -> None:
        self._waiters.append(reservation)
        self._count_waiting(reservation, 1)

    def _leave_queue(self, reservation: Reservation) -> None:
        self._waiters.remove(reservation)
        self._count_waiting(reservation, -1)

    def _count_waiting(self, reservation: Reservation, sign: int) -> None:
        source, publisher = reservation.source, reservation.publisher
        key = publisher, id(source)
        others = self._sources[key] - (sign < 0)
        self._sources[key] += sign
        if not self._sources[key]:
            del self._sources[key]
        for party in ((), *parties(publisher)):
            self._waiting[party] += sign
            self._waiting_bytes[party] += 0 if others else sign * len(source)
            if not self._waiting[party]:
                del self._waiting[party], self._waiting_bytes[party]

    def _check_waiting_room(self, reservation: Reservation) -> None:
        """Raise Busy, and leave the queue, if the room is too full with ``reservation``."""
        for party in ((), *parties(reservation.publisher)):
            part = 2 ** len(party)
            jobs, held = self._waiting[party], self._waiting_bytes[party]
            if jobs > MAX_WAITING // part or held > self.limits.waiting_room // part:
                self._leave_queue(reservation)
                whose = " of " + "/".join(party) if party else ""
                raise Busy(f"{jobs} jobs{whose}, of {held} bytes, would wait for a transform")

    def _admit_waiters(self) -> None:
        while self._waiters and self._admitted < self.limits.places:
            chosen = self._next()
            if chosen is None:
                return
            self._leave_queue(chosen)
            self._admit(chosen)

    def _next(self) -> Reservation | None:
        """Return the first waiting job in the order of shares for which there is memory."""
        if len(self._waiters) == 1:  # as nearly always
            return self._waiters[0] if self._fits(self._waiters[0].amount) else None
        now = trio.current_time()
        ranks = {
            publisher: self._shares.rank(publisher, now)
            for publisher in {waiter.publisher for waiter in self._waiters}
        }
        passed: list[Reservation] = []
        is_kept_free = False
        for waiter in sorted(self._waiters, key=lambda waiter: ranks[waiter.publisher]):
            if self._fits(waiter.amount, in_reserve=is_kept_free):
                for each in passed:
                    each._passes += 1
                return waiter
            is_kept_free = is_kept_free or waiter._passes >= MAX_PASSES
            passed.append(waiter)
        return None

    def _fits(self, amount: int, *, in_reserve: bool = False) -> bool:
        """Whether there is memory for a job; if ``in_reserve``, in the reserve."""
        limits = self.limits
        if amount > limits.reserve:
            own = not in_reserve and self._large_bytes + amount <= limits.most
        else:
            own = not in_reserve or self._small_bytes + amount <= limits.reserve
        return own and self._small_bytes + self._large_bytes + amount <= limits.budget

    def _occupy(self, amount: int, sign: int = 1) -> None:
        if amount > self.limits.reserve:
            self._large_bytes += sign * amount
        else:
            self._small_bytes += sign * amount

    def _admit(self, reservation: Reservation) -> None:
        reservation._began = trio.current_time()
        self._shares.begin(reservation.publisher, reservation._began)
        self._admitted += 1
        self._occupy(reservation.amount)
        reservation._admitted.set()

    def _release(self, reservation: Reservation) -> None:
        now = trio.current_time()
        self._shares.end(reservation.publisher, now - reservation._began, now)
        self._admitted -= 1
        self._occupy(reservation.amount, -1)
        self._admit_waiters()

"""Single flight: concurrent requests for one key share one piece of work.

A flight is a task of the service's nursery, so no waiter owns it: a waiter that goes away does not
disturb the others. When the last waiter goes away, the flight is cancelled, unless it has called
``commit``. Every waiter gets the result, a value or an error. The next request starts a new flight.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from proxy.errors import Busy, ImageProxyError
from proxy.shared.tag_index import TagIndex

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


TOGETHER = 16
"""Waiters that go on before other tasks run. Each of them sends an answer, and there may be
thousands of them."""


class Flight(Generic[V]):
    """One piece of work under way. The work gets it as its argument, and can call ``commit``."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._has_landed = False
        self._waiters = trio.lowlevel.ParkingLot()
        self._holders = 0
        self._committed = False
        self._has_value = False
        self._value: V | None = None
        self._error: Exception | None = None

    def commit(self) -> None:
        """From now on do not cancel the work, even when no task waits for it any more."""
        self._committed = True


@dataclass(frozen=True, slots=True)
class Landed(Generic[V]):
    """The result of a flight.

    Attributes:
        value: the same object for every waiter.
        started_it: whether this waiter's request started the flight.
        is_parted: whether ``part`` has parted it from the requests to come.
    """

    value: V
    started_it: bool
    is_parted: bool


class SingleFlight(Generic[K, V]):
    """The flights under way, by key.

    Args:
        nursery: owns the flights; when it is cancelled, their waiters get ``Busy``.
        tags: returns the tags of a key, which other keys may have too: see ``part``. Each key is
            also a tag of itself.
    """

    def __init__(
        self, nursery: trio.Nursery, tags: Callable[[K], Iterable[Hashable]] = lambda key: ()
    ) -> None:
        self._nursery = nursery
        self._flights: dict[K, Flight[V]] = {}
        self._by_tag: TagIndex[K] = TagIndex(tags)

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        """Whether there is a flight of ``key`` to join."""
        return key in self._flights

    def part(self, tags: AbstractSet[Hashable] | None) -> None:
        """Part the flights of all keys that have any of ``tags`` from the requests to come.

        These start flights of their own. Who waits already gets what was begun.

        Args:
            tags: if None, part all flights.
        """
        for key in self._by_tag.find(tags, self._flights.keys()):
            self._forget(key, self._flights[key])

    def is_joined(self, key: K, flight: Flight[V]) -> bool:
        """Whether ``flight`` is what a request for ``key`` joins now."""
        return self._flights.get(key) is flight

    @asynccontextmanager
    async def join(
        self, key: K, work: Callable[[Flight[V]], Awaitable[V]]
    ) -> AsyncIterator[Landed[V]]:
        """Wait for the flight of ``key``; start it with ``work`` if there is none.

        While the block runs the value stays with the key: a request that joins meanwhile gets the
        same value. Cancellation while waiting leaves the flight to its other waiters; if there are
        none, it ends the flight.

        Raises:
            Exception: ``work`` raised it. Each waiter gets a copy of an ``ImageProxyError``.
            Busy: the service is shutting down.
        """
        flight = self._flights.get(key)
        started_it = flight is None
        if flight is None:
            flight = Flight()
            try:
                self._nursery.start_soon(self._fly, key, flight, work, name="flight")
            except RuntimeError as error:  # the nursery has closed
                raise Busy("shutting down") from error
            self._flights[key] = flight
            self._by_tag.add(key)
        flight._holders += 1
        try:
            if flight._has_landed:
                await trio.lowlevel.checkpoint()
            else:
                await flight._waiters.park()
            if flight._error is not None:
                raise _for_waiter(flight._error)
            if not flight._has_value:  # its nursery was cancelled
                raise Busy("shutting down")
            is_parted = not self.is_joined(key, flight)
            yield Landed(flight._value, started_it, is_parted)  # type: ignore[arg-type]
        finally:
            flight._holders -= 1
            if flight._holders == 0 and (flight._has_landed or not flight._committed):
                self._forget(key, flight)
                flight._scope.cancel()

    async def _fly(
        self, key: K, flight: Flight[V], work: Callable[[Flight[V]], Awaitable[V]]
    ) -> None:
        try:
            with flight._scope:
                flight._value = await work(flight)
                flight._has_value = True
        except Exception as error:
            # Kept for the waiters, which can tell our errors from defects. The nursery goes on.
            flight._error = error
        finally:
            if not flight._has_value or flight._holders == 0:
                self._forget(key, flight)
            flight._has_landed = True
            try:
                flight._waiters.unpark(count=TOGETHER)
                while flight._waiters:
                    await trio.lowlevel.checkpoint()
                    flight._waiters.unpark(count=TOGETHER)
            finally:  # also where the nursery was cancelled
                flight._waiters.unpark_all()

    def _forget(self, key: K, flight: Flight[V]) -> None:
        # The key may belong to a later flight by now.
        if self.is_joined(key, flight):
            del self._flights[key]
            self._by_tag.discard((key,))


def _for_waiter(error: Exception) -> Exception:
    return error.fresh() if isinstance(error, ImageProxyError) else error

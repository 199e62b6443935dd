"""Single flight: concurrent requests for one key share one piece of work.

A flight is a task of the service's nursery, so no waiter owns it: one that goes away disturbs
nobody. When the last one goes, the flight is cancelled, unless it has passed its point of no
return. Its outcome, a value or an error, reaches every waiter; the next request starts afresh.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from proxy.errors import Busy, ImageProxyError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flight(Generic[V]):
    """One piece of work under way. The work gets it, to say when it can no longer stop."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._landed = trio.Event()
        self._holders = 0
        self._committed = False
        self._has_value = False
        self._value: V | None = None
        self._error: Exception | None = None

    def commit(self) -> None:
        """From here on the work is finished even when nobody waits for it any more."""
        self._committed = True


@dataclass(frozen=True, slots=True)
class Landed(Generic[V]):
    """What a flight brought.

    Attributes:
        value: the same object for every waiter.
        started_it: whether this waiter's request began the flight.
    """

    value: V
    started_it: bool


class SingleFlight(Generic[K, V]):
    """The flights under way, by key.

    Args:
        nursery: owns the flights; when it is cancelled, their waiters get ``Busy``.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._flights: dict[K, Flight[V]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    @asynccontextmanager
    async def join(
        self, key: K, work: Callable[[Flight[V]], Awaitable[V]]
    ) -> AsyncIterator[Landed[V]]:
        """Wait for the flight of ``key``, started with ``work`` where there is none.

        While the block runs the value stays with the key: whoever joins meanwhile shares it.
        Cancellation while waiting leaves the flight to its other waiters, or ends it.

        Raises:
            Exception: what ``work`` raised, a copy for each waiter where it is of our family.
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
        flight._holders += 1
        try:
            await flight._landed.wait()
            if flight._error is not None:
                raise _for_waiter(flight._error)
            if not flight._has_value:  # its nursery was cancelled
                raise Busy("shutting down")
            yield Landed(flight._value, started_it)  # type: ignore[arg-type]
        finally:
            flight._holders -= 1
            if flight._holders == 0 and (flight._landed.is_set() or not flight._committed):
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
            # Kept for the waiters, who tell our errors from defects; the nursery lives on.
            flight._error = error
        finally:
            if not flight._has_value or flight._holders == 0:
                self._forget(key, flight)
            flight._landed.set()

    def _forget(self, key: K, flight: Flight[V]) -> None:
        # A later flight may have the key by now.
        if self._flights.get(key) is flight:
            del self._flights[key]


def _for_waiter(error: Exception) -> Exception:
    return error.fresh() if isinstance(error, ImageProxyError) else error

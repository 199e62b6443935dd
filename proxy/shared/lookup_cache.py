"""A cache of answers: asks one question at a time for each key, and remembers good answers, stale
ones, and the answer that there is nothing."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import trio

from proxy.errors import ImageProxyError
from proxy.shared.expiring_map import ExpiringMap
from proxy.shared.memory_cost import cost_of
from proxy.shared.single_flight import Flight, SingleFlight

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long each kind of answer is remembered, in seconds.

    Attributes:
        ttl: a good answer.
        stale_ttl: a good answer while its source fails.
        negative_ttl: the answer that there is nothing, and a failure of the source.
    """

    ttl: float
    stale_ttl: float
    negative_ttl: float


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    """The result of the last question: a value, or the error that a new question would get."""

    at: float
    value: V | None
    error: ImageProxyError | None = None
    failed_at: float = -math.inf
    """When the source was last asked for a newer one, in vain."""
    failing_until: float = -math.inf
    """While the source fails, the time when it is asked again."""


class LookupCache(Generic[K, V]):
    """Asks a source, and remembers its answers.

    Args:
        nursery: owns the questions under way; concurrent questions for one key are asked once.
        ask: asks the source.
        settled: the errors that mean that there is no answer. They replace a remembered answer.
            Any other ``ImageProxyError`` is a failure of the source.
        max_bytes: when the remembered answers take more, the least recently used ones are removed.
        clock: returns seconds; Trio's clock by default.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        ask: Callable[[K], Awaitable[V]],
        times: Lifetimes,
        *,
        settled: tuple[type[ImageProxyError], ...],
        max_bytes: int,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._source = ask
        self._times = times
        self._settled = settled
        self._clock = clock
        self._kept: ExpiringMap[K, _Kept[V]] = ExpiringMap(max_bytes, cost=cost_of)
        self._flights: SingleFlight[K, V] = SingleFlight(nursery)

    async def get(
        self,
        key: K,
        *,
        max_age: float | None = None,
        may_renew: Callable[[V], bool] = lambda value: True,
    ) -> V:
        """The answer for ``key``.

        Args:
            max_age: seconds; a remembered answer older than this is asked for again, once in this
                time.
            may_renew: called with a remembered answer that could still be used, but is older than
                ``max_age``, once for each question to the source; False: the answer is used.

        Raises:
            ImageProxyError: the source raised it, now or when it was last asked.
        """
        known = self._kept.get(key, self._clock())
        if known is not None and (
            self._is_fresh(known, max_age) or self._is_kept_in_use(key, known, may_renew)
        ):
            if known.error is not None:
                raise known.error.fresh()
            return known.value  # type: ignore[return-value]

        async with self._flights.join(key, partial(self._ask, key)) as landed:
            return landed.value

    def forget(self, key: K) -> None:
        """Drop the remembered answer, so that the next call asks again.

        The answer to a question under way may be an old one: it is not remembered.
        """
        self._kept.remove(key)
        self._flights.part({key})

    def _is_fresh(self, known: _Kept[V], max_age: float | None) -> bool:
        now = self._clock()
        if max_age is not None and now - max(known.at, known.failed_at) > max_age:
            return False
        limit = self._times.ttl if known.error is None else self._times.negative_ttl
        if now - known.at < limit:
            return True
        has_failed_lately = max_age is not None and known.failed_at > known.at
        return now < known.failing_until or has_failed_lately

    def _is_kept_in_use(self, key: K, known: _Kept[V], may_renew: Callable[[V], bool]) -> bool:
        """Whether an answer is used again because the source may not be asked for a newer one."""
        if key in self._flights:  # it is being asked, and was allowed to be
            return False
        if known.error is not None or self._clock() - known.at >= self._times.ttl:
            return False
        return not may_renew(known.value)  # type: ignore[arg-type]

    async def _ask(self, key: K, flight: Flight[V]) -> V:
        try:
            value = await self._source(key)
        except self._settled as error:
            # This is an answer of the source, so it replaces the remembered one.
            self._keep(key, _Kept(self._clock(), None, error.fresh()), flight)
            raise
        except ImageProxyError:
            stale = self._stale(key)
            if stale is None:
                raise
            now = self._clock()
            until = min(now + self._times.negative_ttl, stale.at + self._times.stale_ttl)
            self._keep(key, replace(stale, failed_at=now, failing_until=until), flight)
            return stale.value  # type: ignore[return-value]
        self._keep(key, _Kept(self._clock(), value), flight)
        return value

    def _stale(self, key: K) -> _Kept[V] | None:
        known = self._kept.get(key, self._clock())
        if known is None or known.error is not None:
            return None
        return known if self._clock() - known.at < self._times.stale_ttl else None

    def _keep(self, key: K, entry: _Kept[V], flight: Flight[V]) -> None:
        if not self._flights.is_joined(key, flight):  # forgotten meanwhile
            return
        times = self._times
        useful = times.negative_ttl if entry.error else max(times.ttl, times.stale_ttl)
        self._kept.put(key, entry, entry.at + useful)

"""The bounded channel of fetches, and the workers that serve it.

Everything sent to the outside goes through here: blobs and DID documents alike. A host may have
only so many of the workers; a fetch beyond that is parked beside the channel until one of the
host's own fetches ends, so that the workers stay free for other hosts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from proxy.egress.errors import Saturated, TimedOut
from proxy.egress.guarded_get import Response


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """How full the channel is.

    Attributes:
        waiting: fetches that have not begun, parked ones among them.
        running: fetches that a worker is busy with.
    """

    waiting: int
    running: int


class _Fetch:
    """A fetch under way, shared by the task that asked and the worker that serves."""

    def __init__(self, host: str, work: Callable[[], Awaitable[Response]]) -> None:
        self.host = host
        self.work = work
        self.scope = trio.CancelScope()
        self.began = False
        self.done = trio.Event()
        self.answer: Response | None = None
        self.error: Exception | None = None


class FetchChannel:
    """A bounded memory channel with a fixed number of workers.

    Args:
        queue_size: fetches that may wait.
        workers: fetches that run at once.
        per_host: of those, to one host.
    """

    def __init__(self, *, queue_size: int, workers: int, per_host: int) -> None:
        self._send, self._receive = trio.open_memory_channel[_Fetch](queue_size)
        self._queue_size = queue_size
        self._workers = workers
        self._per_host = per_host
        # Beside its share of the workers a single host may fill half of the waiting room, so that
        # a hanging one leaves the rest.
        self._max_of_host = per_host + max(queue_size // 2, 1)
        self._max_of_shared = per_host + queue_size
        self._admitted: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._parked: dict[str, deque[_Fetch]] = {}
        self._parked_count = 0

    def statistics(self) -> ChannelStatistics:
        """A snapshot, for metrics and tests."""
        queued = self._send.statistics().current_buffer_used
        return ChannelStatistics(queued + self._parked_count, self._running.total())

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._workers):
                nursery.start_soon(self._serve, name="consumer")

    async def submit(
        self,
        host: str,
        work: Callable[[], Awaitable[Response]],
        *,
        timeout: float,
        is_shared: bool = False,
    ) -> Response:
        """Have a worker run ``work``.

        Cancellation ends the work too, or takes it out of the queue.

        Args:
            host: whose share of the workers it counts against.
            timeout: seconds from now, waiting included.
            is_shared: everybody needs this host, so it may fill the whole waiting room.

        Raises:
            Saturated: at once, when there is no room to wait in; or after ``timeout``, when no
                worker became free.
            TimedOut: after ``timeout``, with the work under way.
            EgressError: whatever ``work`` raised.
        """
        fetch = _Fetch(host, work)
        self._admit(fetch, self._max_of_shared if is_shared else self._max_of_host)
        try:
            with trio.move_on_after(timeout):
                await fetch.done.wait()
        finally:
            self._admitted[host] -= 1
            if not self._admitted[host]:
                del self._admitted[host]
            if not fetch.done.is_set():
                self._abandon(fetch)
        if fetch.error is not None:
            raise fetch.error
        if not fetch.began:
            raise Saturated(f"{host}: no worker was free within {timeout:g} s")
        if fetch.answer is None:
            raise TimedOut(f"{host}: no whole answer within {timeout:g} s")
        return fetch.answer

    def _admit(self, fetch: _Fetch, share: int) -> None:
        # Counted here and not when they are parked: a burst comes before any worker runs.
        if self._admitted[fetch.host] >= share:
            raise Saturated(f"{fetch.host}: {share} fetches of this host are here")
        if self.statistics().waiting >= self._queue_size:
            raise Saturated(f"{self._queue_size} fetches wait")
        try:
            self._send.send_nowait(fetch)
        except trio.WouldBlock:
            raise Saturated(f"{self._queue_size} fetches wait") from None
        self._admitted[fetch.host] += 1

    def _abandon(self, fetch: _Fetch) -> None:
        """Its asker has gone: free the worker, or the place in the queue, that it holds."""
        fetch.scope.cancel()
        parked = self._parked.get(fetch.host)
        if parked is not None and fetch in parked:
            parked.remove(fetch)
            self._parked_count -= 1
            self._forget_if_empty(fetch.host)
            return
        # Trio's channel has no removal. Nothing here awaits, so taking everything out and
        # putting the rest back is seen by nobody.
        waiting: list[_Fetch] = []
        while True:
            try:
                waiting.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                break
        for other in waiting:
            if other is not fetch:
                self._send.send_nowait(other)

    async def _serve(self) -> None:
        async for fetch in self._receive:
            if self._running[fetch.host] >= self._per_host:
                self._parked.setdefault(fetch.host, deque()).append(fetch)
                self._parked_count += 1
                continue
            next_of_host: _Fetch | None = fetch
            while next_of_host is not None:
                await self._run(next_of_host)
                next_of_host = self._unpark(fetch.host)

    async def _run(self, fetch: _Fetch) -> None:
        fetch.began = True
        self._running[fetch.host] += 1
        try:
            with fetch.scope:
                fetch.answer = await fetch.work()
        except Exception as error:
            # Handed to the task that asked, which tells a failure from a defect.
            fetch.error = error
        finally:
            self._running[fetch.host] -= 1
            if not self._running[fetch.host]:
                del self._running[fetch.host]
            fetch.done.set()

    def _unpark(self, host: str) -> _Fetch | None:
        parked = self._parked.get(host)
        if not parked:
            return None
        fetch = parked.popleft()
        self._parked_count -= 1
        self._forget_if_empty(host)
        return fetch

    def _forget_if_empty(self, host: str) -> None:
        if not self._parked[host]:
            del self._parked[host]

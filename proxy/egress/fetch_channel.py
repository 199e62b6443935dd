"""The bounded channel of fetches, and the consumers that take fetches off it.

Every request to the outside goes through a channel. There is one for each room, so that a flood of
one kind of fetch takes nothing from the others: a flood of unknown DIDs fills the room of the
directory, and blobs of accounts that are resolved already are fetched as before.

The number of consumers per host is limited. A fetch beyond that limit is parked beside the channel
until one of the host's own fetches ends, so that the other consumers stay free for other hosts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import trio

from proxy.egress.errors import Saturated, TimedOut
from proxy.egress.guarded_get import Response

Room = Literal["operator", "did_web", "handles", "blobs"]
"""Where a fetch waits:

- ``operator``: for a server that the operator configured, such as the directory.
- ``did_web``: for the document of a did:web.
- ``handles``: for the DID that a handle's domain names.
- ``blobs``: for what a PDS has: blobs and records.
"""

ROOMS: tuple[Room, ...] = get_args(Room)


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """How full the channel is.

    Attributes:
        waiting: fetches that have not begun, parked ones among them.
        running: fetches that a consumer is running.
    """

    waiting: int
    running: int


class _Fetch:
    """A fetch under way, shared by the task that asked for it and the consumer that runs it."""

    def __init__(self, host: str, work: Callable[[], Awaitable[Response]]) -> None:
        self.host = host
        self.work = work
        self.scope = trio.CancelScope()
        self.began = False
        self.done = trio.Event()
        self.answer: Response | None = None
        self.error: Exception | None = None


class FetchChannel:
    """A bounded memory channel with a fixed number of consumers.

    Args:
        queue_size: how many fetches may wait.
        consumers: how many fetches run at once.
        per_host: how many of them may run for one host.
    """

    def __init__(self, *, queue_size: int, consumers: int, per_host: int) -> None:
        self._send, self._receive = trio.open_memory_channel[_Fetch](queue_size)
        self._queue_size = queue_size
        self._consumers = consumers
        self._per_host = per_host
        # One host may have its share of the consumers, and fill half of the queue. So a host that
        # hangs leaves the other half to other hosts.
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
        """Run the consumers until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._consumers):
                nursery.start_soon(self._consume, name="consumer")

    async def submit(
        self,
        host: str,
        work: Callable[[], Awaitable[Response]],
        *,
        timeout: float,
        is_shared: bool = False,
    ) -> Response:
        """Let a consumer run ``work``, and wait for its answer.

        Cancellation ends the work too, or takes it out of the queue.

        Args:
            host: the work counts against this host's share of the consumers.
            timeout: seconds from now, with the time spent waiting.
            is_shared: all accounts need this host, so it may fill the whole queue.

        Raises:
            Saturated: at once, when the queue or the host's share of it is full; or after
                ``timeout``, when no consumer became free.
            TimedOut: after ``timeout``, when the work had begun.
            EgressError: ``work`` raised it.
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
            raise Saturated(f"{host}: no consumer was free within {timeout:g} s")
        if fetch.answer is None:
            raise TimedOut(f"{host}: no complete answer within {timeout:g} s")
        # The consumer keeps the fetch until it takes the next one.
        answer, fetch.answer = fetch.answer, None
        return answer

    def _admit(self, fetch: _Fetch, share: int) -> None:
        # Count fetches here, and not when they are parked: a whole burst can arrive before any
        # consumer runs.
        if self._admitted[fetch.host] >= share:
            raise Saturated(f"{fetch.host}: {share} fetches of this host wait or run")
        if self.statistics().waiting >= self._queue_size:
            raise Saturated(f"{self._queue_size} fetches wait")
        try:
            self._send.send_nowait(fetch)
        except trio.WouldBlock:
            raise Saturated(f"{self._queue_size} fetches wait") from None
        self._admitted[fetch.host] += 1

    def _abandon(self, fetch: _Fetch) -> None:
        """Free the consumer or queue place of a fetch whose task no longer waits for it."""
        fetch.scope.cancel()
        parked = self._parked.get(fetch.host)
        if parked is not None and fetch in parked:
            parked.remove(fetch)
            self._parked_count -= 1
            self._forget_if_empty(fetch.host)
            return
        # Trio's channel cannot remove one item, so take out all of them and put the others back.
        # Nothing here awaits, so no other task sees this.
        waiting: list[_Fetch] = []
        while True:
            try:
                waiting.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                break
        for other in waiting:
            if other is not fetch:
                self._send.send_nowait(other)

    async def _consume(self) -> None:
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
            # The task that asked raises it again, and can tell a failure from a defect.
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


class FetchChannels:
    """The channels of the rooms.

    Args:
        channels: by room; a gateway without a channel for a room sends no such fetches.
    """

    def __init__(self, channels: Mapping[Room, FetchChannel]) -> None:
        self._channels = channels

    def of(self, room: Room) -> FetchChannel:
        """The channel of ``room``."""
        return self._channels[room]

    def statistics(self) -> ChannelStatistics:
        """The sums over all rooms."""
        each = [channel.statistics() for channel in self._channels.values()]
        return ChannelStatistics(sum(of.waiting for of in each), sum(of.running for of in each))

    async def run(self) -> None:
        """Run all channels until cancelled."""
        async with trio.open_nursery() as nursery:
            for room, channel in self._channels.items():
                nursery.start_soon(channel.run, name=room)

"""The bounded channel of fetches, and the consumers that take fetches off it.

Every request to the outside goes through a channel. Each kind of fetch has a channel of its own,
its lane, so that a flood of one kind takes nothing from the others: a flood of unknown DIDs fills
the lane of the directory, and blobs of accounts that are resolved already are fetched as before.

A fetch holds a consumer, and what it costs is the time for which it holds it. So shares are given
by what hosts are known for (``proxy.egress.conduct``), and not to names alone, which cost nothing:

- One host has at most ``per_host`` consumers. The others stay free for other hosts.
- Hosts that are slow have a part of the consumers together, so that any number of trickling names
  holds no more. Hosts that are not known have a larger part; the rest is for hosts that are prompt.
- While others wait, a fetch that brings too little is given up (``proxy.egress.pressure``).

A fetch may wait for as long as its answer can come in time (``proxy.egress.time_to_answer``). One
host may fill every place with such fetches, and so may one domain or block that is not known to be
prompt; but half of the places are for others, who take them back when they come.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

import trio

from proxy.egress.conduct import Conduct, Judgement, Standing
from proxy.egress.endpoint import Origin
from proxy.egress.errors import Saturated, TimedOut
from proxy.egress.guarded_get import Response
from proxy.egress.pressure import Progress
from proxy.egress.time_to_answer import comes_too_late

Lane = Literal["operator", "did_web", "handles", "blobs", "videos"]
"""The kinds of fetches, each with a channel of its own:

- ``operator``: for a server that the operator configured, such as the directory.
- ``did_web``: for the document of a did:web.
- ``handles``: for the DID that a handle's domain names.
- ``blobs``: for what a PDS has: blobs and records.
- ``videos``: for blobs that take minutes, and go to files.
"""

LANES: tuple[Lane, ...] = get_args(Lane)

Work = Callable[[Callable[[int], object]], Awaitable[Response]]

WATCH_SECONDS = 0.25
"""How often the rates of fetches are looked at while others wait."""

TRUSTED = Judgement(Standing.PROMPT, 0.0, ())


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """How full the channel is.

    Attributes:
        waiting: fetches that have not begun.
        running: fetches that a consumer is running.
    """

    waiting: int
    running: int


class _Fetch:
    """A fetch under way, shared by the task that asked for it and the consumer that runs it.

    Attributes:
        number: fetches are numbered in the order of their arrival.
        judgement: what is known of its host. It is renewed when a fetch of the host ends, and by
            the watcher: for each of hundreds at every step it would cost too much.
        groups: what its host counts for in the lane; empty for a host that is prompt.
    """

    def __init__(
        self,
        origin: Origin,
        work: Work,
        number: int,
        judgement: Judgement,
        scope: trio.CancelScope,
    ) -> None:
        self.origin = origin
        self.host = origin.authority
        self.work = work
        self.number = number
        self.judgement = judgement
        self.groups = () if judgement.standing is Standing.PROMPT else judgement.groups
        self.scope = scope
        self.progress: Progress | None = None
        self.done = trio.Event()
        self.answer: Response | None = None
        self.error: Exception | None = None


class _Occupancy:
    """Which fetches have the consumers of a channel, and whether one more may have one."""

    def __init__(self, consumers: int, per_host: int) -> None:
        self._free = consumers
        self._per_host = per_host
        # Hosts that are slow have half of the consumers. With those that are not known they have
        # three quarters, so that some are left for hosts that are known to be prompt. Those that
        # are not known to be prompt share a quarter with their domain, and with their block.
        self._free_of_slow = max(consumers // 2, 1)
        self._free_of_others = max(consumers - consumers // 4, 1)
        self._per_group = max(per_host, consumers // 4)
        self._hosts: Counter[str] = Counter()
        self._groups: Counter[str] = Counter()

    def take(self, fetch: _Fetch, consumers: int = 1) -> None:
        """Note that ``fetch`` has a consumer; with -1, that it has it no longer."""
        judgement = fetch.judgement
        self._free -= consumers
        self._hosts[fetch.host] += consumers
        if judgement.standing is Standing.PROMPT:
            return
        self._free_of_others -= consumers
        if judgement.standing is Standing.SLOW:
            self._free_of_slow -= consumers
        for group in judgement.groups:
            self._groups[group] += consumers

    def allows(self, fetch: _Fetch) -> bool:
        """Whether ``fetch`` may have a consumer."""
        judgement = fetch.judgement
        if self._free <= 0 or self._hosts[fetch.host] >= self._per_host:
            return False
        if judgement.standing is Standing.PROMPT:
            return True
        return (
            self._free_of_others > 0
            and (judgement.standing is not Standing.SLOW or self._free_of_slow > 0)
            and all(self._groups[group] < self._per_group for group in judgement.groups)
        )


class FetchChannel:
    """A bounded channel with a fixed number of consumers.

    Fetches of prompt hosts go first, then those of hosts that are not known, then those of slow
    ones; within each of these those that cost less, and then in the order of arrival.

    Args:
        queue_size: how many fetches may wait.
        consumers: how many fetches run at once.
        per_host: how many of them may run for one host.
        conduct: how promptly hosts answered. If None, all fetches are for one server that the
            operator configured: it may have the whole lane, and is never given up for others.
    """

    def __init__(
        self, *, queue_size: int, consumers: int, per_host: int, conduct: Conduct | None
    ) -> None:
        # Fetches wait outside of the channel, because it could not say which is to be next.
        self._send, self._receive = trio.open_memory_channel[_Fetch](consumers)
        self._queue_size = queue_size
        self._consumers = consumers
        self._per_host = per_host
        self._conduct = conduct
        # A host that fills more of the queue gives the places beyond these to other hosts.
        self._half = queue_size if conduct is None else max(queue_size // 2, 1)
        self._numbers = count()
        self._running: set[_Fetch] = set()
        self._waiting: dict[str, deque[_Fetch]] = {}
        self._waiting_count = 0
        self._waiting_groups: Counter[str] = Counter()
        self._somebody_waits = trio.Event()

    def statistics(self) -> ChannelStatistics:
        """A snapshot, for metrics and tests."""
        return ChannelStatistics(self._waiting_count, len(self._running))

    async def run(self) -> None:
        """Run the consumers until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._consumers):
                nursery.start_soon(self._consume, name="consumer")
            if self._conduct is not None:
                nursery.start_soon(self._watch, name="rate_watcher")

    async def submit(self, origin: Origin, work: Work, *, timeout: float) -> Response:
        """Let a consumer run ``work``, and wait for its answer.

        Cancellation ends the work too, or takes it out of the queue. When this returns, the work
        has ended, whatever happened: it uses what is the caller's.

        Args:
            origin: the work counts against the shares of this host, of its registered domain, and
                of its block of addresses.
            work: called with a function that is to be told the size of what arrives.
            timeout: seconds from now, with the time spent waiting.

        Raises:
            Saturated: at once, when the queue is full, or the answer would come too late by what
                recent fetches of the host took; later, when the place was given to a host that
                answers more promptly, or to one that has fewer; or after ``timeout``, when no
                consumer became free.
            TimedOut: after ``timeout``, when the work had begun; or when it brought too little
                while others waited.
            EgressError: ``work`` raised it.
        """
        fetch = self._admit(origin, work, timeout)
        try:
            if fetch in self._running:  # whose scope has the same deadline
                await fetch.done.wait()
            else:
                with trio.move_on_after(timeout):
                    await fetch.done.wait()
        finally:
            if not fetch.done.is_set():
                fetch.scope.cancel()
                if fetch not in self._running:
                    self._take_out(fetch)
                elif fetch.progress is not None:
                    with trio.CancelScope(shield=True):
                        await fetch.done.wait()
        if fetch.error is not None:
            raise fetch.error
        if fetch.progress is None:
            raise Saturated(f"{fetch.host}: no consumer was free within {timeout:g} s")
        if fetch.answer is None:
            raise TimedOut(f"{fetch.host}: no complete answer within {timeout:g} s")
        # The consumer keeps the fetch until it takes the next one.
        answer, fetch.answer = fetch.answer, None
        return answer

    def _admit(self, origin: Origin, work: Work, timeout: float) -> _Fetch:
        scope = trio.CancelScope(deadline=trio.current_time() + timeout)
        fetch = _Fetch(origin, work, next(self._numbers), self._judge(origin), scope)
        is_free = len(self._running) < self._consumers and fetch.host not in self._waiting
        if is_free and self._occupancy().allows(fetch):
            self._start(fetch)
            return fetch
        if (pace := fetch.judgement.pace) is not None:
            ahead = len(self._waiting.get(fetch.host, ()))
            ahead += sum(each.host == fetch.host for each in self._running)
            at_once = min(self._per_host, self._consumers)
            if comes_too_late(pace, ahead, at_once, timeout):
                raise Saturated(f"{fetch.host}: {ahead} fetches of {pace:.1f} s go before")
        if self._waiting_count >= self._queue_size:
            self._make_place(fetch)
        self._waiting.setdefault(fetch.host, deque()).append(fetch)
        self._waiting_count += 1
        self._waiting_groups.update(fetch.groups)
        self._somebody_waits.set()
        return fetch

    def _make_place(self, newcomer: _Fetch) -> None:
        """Refuse a fetch of who has more than half, or of the host that costs most.

        If the newcomer is one of these, refuse it.
        """
        last = (fetches[-1] for fetches in self._waiting.values())
        fetch = max(last, key=self._burden)
        if self._burden(fetch) <= self._burden(newcomer, 1):
            raise Saturated(f"{self._queue_size} fetches wait")
        self._take_out(fetch)
        fetch.error = Saturated(f"{fetch.host}: its place went to another host")
        fetch.done.set()

    def _burden(self, fetch: _Fetch, more: int = 0) -> tuple[bool, tuple[Standing, float]]:
        """By which fetches give their places up, the greatest first.

        Args:
            more: places that the fetch would take.
        """
        of_groups = (self._waiting_groups[group] for group in fetch.groups)
        taken = max(len(self._waiting.get(fetch.host, ())), *of_groups, 0) + more
        return taken > self._half, fetch.judgement.rank

    def _take_out(self, fetch: _Fetch) -> None:
        fetches = self._waiting[fetch.host]
        fetches.remove(fetch)
        if not fetches:
            del self._waiting[fetch.host]
        self._waiting_count -= 1
        self._waiting_groups.subtract(fetch.groups)
        for group in fetch.groups:
            if not self._waiting_groups[group]:
                del self._waiting_groups[group]

    def _start(self, fetch: _Fetch) -> None:
        self._running.add(fetch)
        self._send.send_nowait(fetch)

    def _start_next(self) -> None:
        """Give free consumers to waiting fetches, as far as the shares allow."""
        while self._waiting and len(self._running) < self._consumers:
            occupancy = self._occupancy()
            best: tuple[tuple[tuple[Standing, float], int], _Fetch] | None = None
            for fetches in self._waiting.values():
                fetch = fetches[0]
                rank = fetch.judgement.rank, fetch.number
                if (best is None or rank < best[0]) and occupancy.allows(fetch):
                    best = rank, fetch
            if best is None:
                return
            self._take_out(best[1])
            self._start(best[1])

    def _occupancy(self) -> _Occupancy:
        occupancy = _Occupancy(self._consumers, self._per_host)
        for fetch in self._running:
            occupancy.take(fetch)
        return occupancy

    def _judge(self, origin: Origin) -> Judgement:
        if self._conduct is None:
            return TRUSTED
        return self._conduct.judge(origin, trio.current_time())

    async def _consume(self) -> None:
        async for fetch in self._receive:
            await self._run(fetch)

    async def _run(self, fetch: _Fetch) -> None:
        fetch.progress = Progress(trio.current_time())
        try:
            with fetch.scope:
                fetch.answer = await fetch.work(fetch.progress.add)
                fetch.error = None
        except Exception as error:
            # The task that asked raises it again, and can tell a failure from a defect.
            fetch.error = error
        finally:
            self._note(fetch, fetch.progress)
            self._running.remove(fetch)
            fetch.done.set()
            self._start_next()

    def _note(self, fetch: _Fetch, progress: Progress) -> None:
        if self._conduct is None:
            return
        now = trio.current_time()
        answered = fetch.answer is not None
        seconds = now - progress.began
        self._conduct.ended(fetch.origin, seconds, progress.received, answered, now)
        self._renew(self._waiting.get(fetch.host, ()))

    def _renew(self, of_host: Iterable[_Fetch]) -> None:
        """Judge the host of these fetches anew."""
        judgement: Judgement | None = None
        for fetch in of_host:
            judgement = judgement or self._judge(fetch.origin)
            fetch.judgement = judgement

    async def _watch(self) -> None:
        """Look after the rates of fetches while others wait, until cancelled."""
        while True:
            await self._somebody_waits.wait()
            await trio.sleep(WATCH_SECONDS)
            if self._waiting:
                for fetches in self._waiting.values():
                    self._renew(fetches)
                for fetch in self._running:
                    self._renew([fetch])
                self._give_up_slowest()
                self._start_next()
            else:
                self._somebody_waits = trio.Event()

    def _give_up_slowest(self) -> None:
        """End fetches that bring too little, slowest first: one for each that can begin then."""
        now = trio.current_time()
        fullness = min(self._waiting_count / self._queue_size, 1.0)
        rates = {
            fetch: rate
            for fetch in self._running
            if fetch.progress is not None
            and (rate := fetch.progress.lag(now, fullness)) is not None
        }
        if not rates:
            return
        occupancy = self._occupancy()
        left = {host: len(fetches) for host, fetches in self._waiting.items()}
        for fetch in sorted(rates, key=lambda fetch: (rates[fetch], fetch.number)):
            occupancy.take(fetch, -1)
            for host, fetches in self._waiting.items():
                if left[host] and host != fetch.host and occupancy.allows(fetches[0]):
                    left[host] -= 1
                    occupancy.take(fetches[0])
                    self._give_up(fetch, rates[fetch])
                    break
            else:
                occupancy.take(fetch)

    def _give_up(self, fetch: _Fetch, rate: float) -> None:
        if fetch.error is None:
            fetch.error = TimedOut(f"{fetch.host}: {rate:.0f} bytes/s while other fetches wait")
            fetch.scope.cancel()


class FetchChannels:
    """The channels of the lanes.

    Args:
        channels: by lane; a gateway without a channel for a lane sends no such fetches.
        conduct: what the channels know of hosts; it is to be told of their addresses.
    """

    def __init__(self, channels: Mapping[Lane, FetchChannel], conduct: Conduct) -> None:
        self._channels = channels
        self.conduct = conduct

    def of(self, lane: Lane) -> FetchChannel:
        """The channel of ``lane``."""
        return self._channels[lane]

    def statistics(self) -> ChannelStatistics:
        """The sums over all lanes."""
        each = [channel.statistics() for channel in self._channels.values()]
        return ChannelStatistics(sum(of.waiting for of in each), sum(of.running for of in each))

    async def run(self) -> None:
        """Run all channels until cancelled."""
        async with trio.open_nursery() as nursery:
            for lane, channel in self._channels.items():
                nursery.start_soon(channel.run, name=lane)

"""The fetch channel: bounded, fair to hosts, and empty when everybody has gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from proxy.egress.conduct import Conduct
from proxy.egress.endpoint import Origin
from proxy.egress.errors import BadAnswer, EgressError, Saturated, TimedOut
from proxy.egress.fetch_channel import ChannelStatistics, FetchChannel
from proxy.egress.guarded_get import Response
from tests.fakes.steps import cancelled_at_every_step

ANSWER = Response(200, {}, b"", b"")
IDLE = ChannelStatistics(0, 0)
LONG = 3600.0


def origin_of(host: str) -> Origin:
    return Origin("https", host, 443)


class Asker:
    """Submits fetches that wait at a gate, and notes what became of them."""

    def __init__(self, nursery: trio.Nursery, channel: FetchChannel) -> None:
        self._nursery = nursery
        self._channel = channel
        self.gate = trio.Event()
        self.began: list[str] = []
        self.running = 0
        self.most_running = 0
        self.answered: list[str] = []
        self.refused: list[str] = []
        self.errors: list[EgressError] = []

    def ask(self, host: str, *, name: str = "", timeout: float = LONG) -> trio.CancelScope:
        scope = trio.CancelScope()
        self._nursery.start_soon(self._ask, host, name or host, timeout, scope)
        return scope

    async def _ask(self, host: str, name: str, timeout: float, scope: trio.CancelScope) -> None:
        async def work(received: object) -> Response:
            self.began.append(name)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                await self.gate.wait()
            finally:
                self.running -= 1
            return ANSWER

        try:
            with scope:
                await self._channel.submit(origin_of(host), work, timeout=timeout)
                self.answered.append(name)
        except Saturated:
            self.refused.append(name)
        except EgressError as error:
            self.errors.append(error)

    async def finish(self) -> None:
        self.gate.set()
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def running(
    nursery: trio.Nursery,
    *,
    queue_size: int = 4,
    consumers: int = 2,
    per_host: int = 2,
    conduct: Conduct | None = None,
) -> AsyncIterator[tuple[FetchChannel, Asker]]:
    channel = FetchChannel(
        queue_size=queue_size, consumers=consumers, per_host=per_host, conduct=conduct
    )
    nursery.start_soon(channel.run)
    await trio.testing.wait_all_tasks_blocked()
    asker = Asker(nursery, channel)
    yield channel, asker
    await asker.finish()
    assert channel.statistics() == IDLE


async def test_no_more_fetches_run_than_there_are_consumers(
    nursery: trio.Nursery,
) -> None:
    """Catches: a channel without a limit of consumers runs everything at once."""
    async with running(nursery, queue_size=100, consumers=3, per_host=3) as (channel, asker):
        for number in range(40):
            asker.ask(f"host{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert channel.statistics() == ChannelStatistics(waiting=37, running=3)
    assert asker.most_running == 3
    assert len(asker.answered) == 40


async def test_a_full_channel_refuses_at_once(nursery: trio.Nursery) -> None:
    """Catches: a full channel lets its callers wait."""
    async with running(nursery, queue_size=4, consumers=2) as (channel, asker):
        for number in range(6):
            asker.ask(f"host{number}")
            await trio.testing.wait_all_tasks_blocked()
        assert channel.statistics() == ChannelStatistics(waiting=4, running=2)
        asker.ask("one more")
        await trio.testing.wait_all_tasks_blocked()
        assert asker.refused == ["one more"]
    assert len(asker.answered) == 6


async def test_a_channel_that_was_full_takes_fetches_again(nursery: trio.Nursery) -> None:
    """Catches: a channel that was full once stays full."""
    async with running(nursery) as (_, asker):
        for number in range(9):
            asker.ask(f"host{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert asker.refused
        await asker.finish()
        asker.ask("later")
    assert "later" in asker.answered


async def test_one_host_leaves_consumers_to_the_others(nursery: trio.Nursery) -> None:
    """Catches: one host takes every consumer."""
    async with running(nursery, queue_size=20, consumers=4, per_host=2) as (channel, asker):
        for number in range(6):
            asker.ask("hangs", name=f"hangs {number}")
        await trio.testing.wait_all_tasks_blocked()
        asker.ask("healthy")
        await trio.testing.wait_all_tasks_blocked()
        assert len(asker.began) == 3
        assert asker.began[-1] == "healthy"
        assert channel.statistics() == ChannelStatistics(waiting=4, running=3)
    assert len(asker.answered) == 7


@pytest.mark.parametrize("at_once", [False, True])
async def test_one_host_gives_half_of_the_queue_back_to_the_others(
    nursery: trio.Nursery, at_once: bool
) -> None:
    """Catches: one host keeps the whole queue, or gives up more than half of it."""
    async with running(nursery, queue_size=8, consumers=4, per_host=2, conduct=Conduct()) as (
        _,
        asker,
    ):
        for _ in range(50):
            asker.ask("hangs")
            if not at_once:
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert asker.refused == ["hangs"] * (50 - 2 - 8)
        asker.refused.clear()
        asker.ask("healthy")
        await trio.testing.wait_all_tasks_blocked()
        assert asker.began[2:] == ["healthy"]
        for number in range(6):
            asker.ask(f"host{number}")
            await trio.testing.wait_all_tasks_blocked()
        assert asker.refused == [*["hangs"] * 4, "host4", "host5"]


async def test_parked_fetches_are_served_in_their_order(nursery: trio.Nursery) -> None:
    """Catches: parked fetches are served last in first out."""
    async with running(nursery, queue_size=20, consumers=4, per_host=1) as (_, asker):
        names = [f"number {number}" for number in range(6)]
        for name in names:
            asker.ask("host", name=name)
            await trio.testing.wait_all_tasks_blocked()
    assert asker.began == asker.answered == names


async def test_queued_fetches_are_served_in_their_order(nursery: trio.Nursery) -> None:
    """Catches: queued fetches are served last in first out."""
    async with running(nursery, queue_size=20, consumers=1, per_host=1) as (_, asker):
        names = [f"host{number}" for number in range(6)]
        for name in names:
            asker.ask(name)
            await trio.testing.wait_all_tasks_blocked()
        # Taking one out of the middle must not reorder the others.
        gone = asker.ask("gone")
        asker.ask("last")
        await trio.testing.wait_all_tasks_blocked()
        gone.cancel()
    assert asker.began == [*names, "last"]


@pytest.mark.parametrize("place", ["running", "parked", "queued", "all"])
async def test_a_cancelled_wait_frees_its_place(nursery: trio.Nursery, place: str) -> None:
    """Catches: a caller that leaves keeps its place in the queue."""
    async with running(nursery, queue_size=20, consumers=3, per_host=1) as (channel, asker):
        scopes = {"running": asker.ask("a")}
        await trio.testing.wait_all_tasks_blocked()
        scopes["parked"] = asker.ask("a")
        asker.ask("b")
        asker.ask("c")
        await trio.testing.wait_all_tasks_blocked()
        scopes["queued"] = asker.ask("d")
        await trio.testing.wait_all_tasks_blocked()
        assert channel.statistics() == ChannelStatistics(waiting=2, running=3)
        left = list(scopes) if place == "all" else [place]
        for name in left:
            scopes[name].cancel()
        await trio.testing.wait_all_tasks_blocked()
        after = channel.statistics()
        assert after.waiting + after.running == 5 - len(left)
        assert after.running == asker.running
    assert len(asker.answered) == 5 - len(left)


async def test_a_cancelled_fetch_frees_its_consumer_at_once(
    nursery: trio.Nursery,
) -> None:
    """Catches: a cancelled fetch keeps its consumer until it would have ended."""
    async with running(nursery, consumers=1, per_host=1) as (_, asker):
        scope = asker.ask("hangs")
        await trio.testing.wait_all_tasks_blocked()
        asker.ask("next")
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert asker.began == ["hangs", "next"]


async def test_a_fetch_that_never_began_is_busy_and_no_timeout_of_the_server(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a fetch that never began is the server's timeout."""
    async with running(nursery, consumers=1, per_host=1) as (channel, asker):
        asker.ask("hangs")
        await trio.testing.wait_all_tasks_blocked()
        asker.ask("queued", timeout=5)
        asker.ask("hangs", name="parked", timeout=5)
        await trio.sleep(6)
        # They got no consumer: this is our saturation, not a failure of their hosts.
        assert sorted(asker.refused) == ["parked", "queued"]
        assert channel.statistics() == ChannelStatistics(waiting=0, running=1)


async def test_time_in_the_queue_counts(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: time in the queue does not count."""
    async with running(nursery, consumers=1, per_host=1) as (channel, asker):
        scope = asker.ask("first")
        await trio.testing.wait_all_tasks_blocked()
        asker.ask("second", timeout=10)
        await trio.sleep(6)
        scope.cancel()
        await trio.sleep(3)
        assert channel.statistics() == ChannelStatistics(waiting=0, running=1)
        await trio.sleep(2)
        assert [type(error) for error in asker.errors] == [TimedOut]
        assert channel.statistics() == IDLE


@pytest.mark.parametrize("ends", ["cancelled", "at its deadline", "at its deadline, after a wait"])
async def test_nothing_of_a_fetch_goes_on_after_its_end(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, ends: str
) -> None:
    """Catches a piece of a video that is written to a file which is closed, or another's by now."""
    written = trio.Event()
    told: list[str] = []

    async def write(received: object) -> Response:
        try:
            with trio.CancelScope(shield=True):  # as in a thread
                await written.wait()
        finally:
            told.append("the work has ended")
        await trio.lowlevel.checkpoint()
        return ANSWER

    async def ask(channel: FetchChannel) -> None:
        try:
            await channel.submit(origin_of("host"), write, timeout=2)
        except TimedOut:
            pass
        finally:
            told.append("and so has the question")

    async with running(nursery, consumers=1, per_host=1) as (channel, asker):
        before = asker.ask("other")
        await trio.testing.wait_all_tasks_blocked()
        if ends != "at its deadline, after a wait":
            before.cancel()
            await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as asking:
            asking.start_soon(ask, channel)
            await trio.sleep(1)
            before.cancel()
            await trio.testing.wait_all_tasks_blocked()
            if ends == "cancelled":
                asking.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
                too_early = list(told)
                written.set()
        assert too_early == []
        assert told == ["the work has ended", "and so has the question"]


@pytest.mark.parametrize("error", [BadAnswer("broken"), ZeroDivisionError()], ids=["ours", "not"])
async def test_a_failure_reaches_its_caller_and_leaves_the_consumer(
    nursery: trio.Nursery, error: Exception
) -> None:
    """Catches: a failure ends the consumer or reaches nobody."""

    async def fail(received: object) -> Response:
        await trio.lowlevel.checkpoint()
        raise error

    async with running(nursery, consumers=1, per_host=1) as (channel, _):
        for _ in range(3):
            with pytest.raises(type(error)):
                await channel.submit(origin_of("host"), fail, timeout=LONG)

        async def succeed(received: object) -> Response:
            return ANSWER

        assert await channel.submit(origin_of("host"), succeed, timeout=LONG) is ANSWER


@pytest.mark.parametrize("after", [False, True])
async def test_a_cancellation_anywhere_leaves_no_consumer_and_no_place_taken(
    nursery: trio.Nursery, after: bool
) -> None:
    """Catches: a cancellation somewhere leaves a consumer or a place taken."""
    channel = FetchChannel(queue_size=4, consumers=2, per_host=1, conduct=Conduct())
    nursery.start_soon(channel.run)

    async def work(received: object) -> Response:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        return ANSWER

    async def attempt() -> None:
        async with trio.open_nursery() as askers:
            for host in ("a", "a", "b", "c"):
                askers.start_soon(partial(channel.submit, origin_of(host), work, timeout=LONG))

    def check() -> None:
        assert channel.statistics() == IDLE

    assert await cancelled_at_every_step(attempt, check, after=after) > 5

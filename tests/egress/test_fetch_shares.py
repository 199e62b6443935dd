"""The shares of the fetch channel: what hosts that trickle may hold, and what is left to others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from itertools import count
from statistics import median

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from proxy.egress.conduct import PROMPT_SECONDS, Conduct, Judgement
from proxy.egress.endpoint import Origin
from proxy.egress.errors import Saturated, TimedOut
from proxy.egress.fetch_channel import ChannelStatistics, FetchChannel
from proxy.egress.guarded_get import MIN_BYTES_PER_SECOND, Response
from proxy.egress.pressure import RATES, WINDOWS, least_rate, window

ANSWER = Response(200, {}, b"", b"")
CONSUMERS = 32
PER_HOST = 8
QUEUE = 256
TIMEOUT = 30.0
HONEST_SECONDS = 0.1


def origin(host: str) -> Origin:
    return Origin("https", host, 443)


async def honest(received: Callable[[int], object]) -> Response:
    """A PDS of ordinary speed, with a picture of 50 KB."""
    await trio.sleep(HONEST_SECONDS)
    received(50_000)
    return ANSWER


async def hang(received: Callable[[int], object]) -> Response:
    await trio.sleep_forever()
    raise AssertionError


async def at_rate(
    received: Callable[[int], object], *, rate: float, at_once: int = 0, seconds: float = 1000
) -> Response:
    """``at_once`` bytes, and then ``rate`` bytes a second."""
    received(at_once)
    for _ in range(int(seconds * 2)):
        await trio.sleep(0.5)
        received(int(rate / 2))
    return ANSWER


trickle = partial(at_rate, rate=1.2 * MIN_BYTES_PER_SECOND)


@dataclass
class Bench:
    """A channel of the default size, and the tasks that ask it."""

    nursery: trio.Nursery
    conduct: Conduct = field(default_factory=Conduct)
    errors: list[Exception] = field(default_factory=list)
    answered: int = 0

    def __post_init__(self) -> None:
        self.channel = FetchChannel(
            queue_size=QUEUE, consumers=CONSUMERS, per_host=PER_HOST, conduct=self.conduct
        )
        self.nursery.start_soon(self.channel.run)

    @property
    def now(self) -> ChannelStatistics:
        return self.channel.statistics()

    async def ask(self, host: str, work: Callable[..., object] = hang) -> None:
        try:
            await self.channel.submit(origin(host), work, timeout=TIMEOUT)  # type: ignore[arg-type]
            self.answered += 1
        except (Saturated, TimedOut) as error:
            self.errors.append(error)

    async def ask_all(
        self, *hosts: str, times: int = 1, work: Callable[..., object] = hang
    ) -> None:
        for _ in range(times):
            for host in hosts:
                self.nursery.start_soon(self.ask, host, work)
        await trio.testing.wait_all_tasks_blocked()

    def make_slow(self, *hosts: str) -> None:
        for host in hosts:
            self.conduct.ended(origin(host), TIMEOUT, 0, False, trio.current_time())

    def make_prompt(self, *hosts: str) -> None:
        for host in hosts:
            self.conduct.ended(origin(host), HONEST_SECONDS, 0, True, trio.current_time())


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    return Bench(nursery)


def many(name: str, number: int = 40) -> list[str]:
    """Hosts of one registered domain each."""
    return [f"{name}{each}.example" for each in range(number)]


# Who may hold what.


async def test_slow_hosts_hold_half_of_the_consumers_together(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches shares by name: forty names would hold every consumer."""
    bench.make_slow(*many("slow"))
    await bench.ask_all(*many("slow"), times=3)
    assert bench.now.running == CONSUMERS // 2


async def test_hosts_that_are_not_known_leave_a_quarter_to_those_that_are(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches names that were never seen before, which hold every consumer for one window."""
    bench.make_prompt("pds.test")
    await bench.ask_all(*many("new"), times=3)
    assert bench.now.running == CONSUMERS - CONSUMERS // 4
    began = trio.current_time()
    await bench.ask("pds.test", honest)
    assert trio.current_time() - began == pytest.approx(HONEST_SECONDS)


async def test_new_names_below_one_domain_share_a_quarter(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches an attacker with a wildcard in DNS."""
    await bench.ask_all(*[f"{number}.evil.example" for number in range(100)])
    assert bench.now.running == CONSUMERS // 4
    await bench.ask_all("other.test")
    assert bench.now.running == CONSUMERS // 4 + 1


async def test_new_domains_in_one_block_share_a_quarter(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches an attacker whose domains have nothing in common but the server."""
    for number, host in enumerate(many("evil")):
        bench.conduct.connects(host, ip_address(f"203.0.113.{number}"))
    await bench.ask_all(*many("evil"))
    assert bench.now.running == CONSUMERS // 4


async def test_servers_of_one_operator_that_are_prompt_may_hold_every_consumer(
    bench: Bench,
    autojump_clock: MockClock,
) -> None:
    """Catches a share of the domain that throttles the operator who serves most accounts."""
    hosts = [f"host{number}.us-east.host.bsky.network" for number in range(40)]
    bench.make_prompt(*hosts)
    await bench.ask_all(*hosts)
    assert bench.now == ChannelStatistics(waiting=40 - CONSUMERS, running=CONSUMERS)


async def test_one_domain_gives_half_of_the_places_back_to_others(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches a wildcard that fills the lane and keeps it."""
    await bench.ask_all(*[f"{number}.evil.example" for number in range(500)])
    assert bench.now.waiting == QUEUE
    bench.errors.clear()
    others = many("new", 24 + QUEUE)
    await bench.ask_all(*others[: 24 - PER_HOST + QUEUE // 2])
    assert bench.now == ChannelStatistics(waiting=QUEUE, running=24)
    assert len(bench.errors) == QUEUE // 2
    assert all("evil" in str(error) for error in bench.errors)
    # The half of the places that is left is its own.
    await bench.ask_all(others[-1])
    assert "evil" not in str(bench.errors[-1])


# Bursts: a page of pictures of one host.


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "prompt"])
async def test_two_hundred_pictures_of_one_host_are_all_answered(
    bench: Bench, autojump_clock: MockClock, known: bool
) -> None:
    """Catches a share of the queue that refuses what would be fetched in three seconds."""
    if known:
        bench.make_prompt("pds.test")
    began = trio.current_time()
    async with trio.open_nursery() as page:
        for _ in range(200):
            page.start_soon(bench.ask, "pds.test", honest)
    assert bench.errors == []
    assert bench.answered == 200
    assert trio.current_time() - began == pytest.approx(200 / PER_HOST * HONEST_SECONDS)


async def test_of_a_burst_that_cannot_be_answered_in_time_the_rest_is_refused_at_once(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches a wait of thirty seconds for a refusal, and a refusal of what could be answered."""
    seconds = 4.0

    async def takes_long(received: Callable[[int], object]) -> Response:
        await trio.sleep(seconds)
        received(1_000_000)
        return ANSWER

    await bench.ask("pds.test", takes_long)
    bench.answered = 0
    await bench.ask_all("pds.test", times=200, work=takes_long)
    # Each consumer has time for seven. The estimate takes consumers to end one by one, and here
    # they end together: so a part of one turn more is let wait in vain.
    answerable = int(TIMEOUT / seconds) * PER_HOST
    admitted = bench.now.running + bench.now.waiting
    assert answerable <= admitted < answerable + PER_HOST
    assert len(bench.errors) == 200 - admitted
    await trio.sleep(TIMEOUT)
    assert bench.answered == answerable


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "prompt"])
async def test_a_host_that_hangs_and_may_fill_the_lane_costs_a_healthy_one_next_to_nothing(
    bench: Bench, autojump_clock: MockClock, known: bool
) -> None:
    """Catches places that others get too late, and a refusal of them while one host has all."""
    if known:
        bench.make_prompt("hangs.test")
    latencies = list[float]()

    async def ask_healthy() -> None:
        began = trio.current_time()
        await bench.channel.submit(origin("pds.test"), honest, timeout=TIMEOUT)
        latencies.append(trio.current_time() - began)

    async def ask_hanging() -> None:
        while True:
            bench.nursery.start_soon(bench.ask, "hangs.test")
            await trio.sleep(1 / 180)

    bench.nursery.start_soon(ask_hanging)
    await trio.sleep(2)
    assert bench.now == ChannelStatistics(waiting=QUEUE, running=PER_HOST)
    async with trio.open_nursery() as pages:
        for _ in range(200):
            pages.start_soon(ask_healthy)
            await trio.sleep(1 / 20)
    assert len(latencies) == 200
    assert sorted(latencies)[197] <= 1.5 * HONEST_SECONDS
    # And a page of the healthy one gets the half that is not the other's.
    async with trio.open_nursery() as page:
        for _ in range(QUEUE // 2):
            page.start_soon(ask_healthy)


async def test_a_host_that_is_fast_again_is_no_longer_refused(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches an estimate that one bad minute leaves behind for good."""
    for _ in range(PER_HOST):
        bench.make_slow("pds.test")
    await bench.ask_all("pds.test", times=PER_HOST + 1, work=honest)
    assert len(bench.errors) == 1
    for _ in range(5):
        await bench.ask_all("pds.test", times=PER_HOST, work=honest)
        await trio.sleep(2 * HONEST_SECONDS)
    bench.errors.clear()
    await bench.ask_all("pds.test", times=200, work=honest)
    await trio.sleep(TIMEOUT)
    assert bench.errors == []


async def test_prompt_hosts_go_before_unknown_ones_and_these_before_slow_ones(
    bench: Bench,
    autojump_clock: MockClock,
) -> None:
    """Catches first come, first served: a flood would be served before everybody else."""
    bench.make_prompt(*many("busy"), "prompt.test")
    bench.make_slow("slow.test")
    gate, began = trio.Event(), list[str]()

    async def gated(received: object) -> Response:
        await gate.wait()
        return ANSWER

    async def noted(name: str, received: object) -> Response:
        began.append(name)
        return ANSWER

    await bench.ask_all(*many("busy", CONSUMERS - 1))
    await bench.ask_all("busy39.example", work=gated)
    for host in ("slow.test", "unknown.test", "prompt.test"):
        await bench.ask_all(host, work=partial(noted, host))
    assert began == []
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert began == ["prompt.test", "unknown.test", "slow.test"]


async def test_in_a_full_lane_a_prompt_host_gets_the_place_of_a_slow_one(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches a flood of trickling names that fills the lane, so that all others are refused."""
    bench.make_prompt(*many("busy", CONSUMERS), "pds.test")
    bench.make_slow(*many("slow"))
    await bench.ask_all(*many("busy", CONSUMERS))
    await bench.ask_all(*many("slow"), times=20)
    assert bench.now.waiting == QUEUE
    refused = len(bench.errors)
    await bench.ask_all("pds.test")
    assert bench.now.waiting == QUEUE
    assert len(bench.errors) == refused + 1
    assert "slow" in str(bench.errors[-1])
    # One that is slow itself takes nobody's place.
    await bench.ask_all("slow0.example")
    assert len(bench.errors) == refused + 2
    assert "slow0" in str(bench.errors[-1]) or "fetches wait" in str(bench.errors[-1])


async def test_a_refusal_in_a_full_lane_judges_one_host_and_not_all(
    bench: Bench, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a flood that costs the processor more with every fetch that waits."""
    bench.make_prompt(*many("known", 2 * QUEUE))
    await bench.ask_all(*many("known", CONSUMERS + QUEUE))
    judged = 0
    judge = bench.conduct.judge

    def counted(origin: Origin, now: float) -> Judgement:
        nonlocal judged
        judged += 1
        return judge(origin, now)

    monkeypatch.setattr(bench.conduct, "judge", counted)
    await bench.ask_all(*many("new", 100))
    assert len(bench.errors) == 100
    assert judged == 100


# Which fetch is given up.


async def test_a_trickle_is_given_up_when_others_wait(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches a trickle that keeps its consumer until ``fetch.timeout`` while others wait."""
    bench.make_prompt(*many("turned", CONSUMERS))
    await bench.ask_all(*many("turned", CONSUMERS), work=trickle)
    assert bench.now.running == CONSUMERS
    began = trio.current_time()
    await bench.ask("pds.test", honest)
    assert bench.answered == 1
    assert trio.current_time() - began < WINDOWS[0] + 0.5
    # One, because only one waited.
    assert [type(error) for error in bench.errors] == [TimedOut]


async def test_a_trickle_is_left_alone_when_nobody_waits(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches a rule without need: phones on bad links are slow too."""
    await bench.ask("pds.test", partial(trickle, seconds=20))
    assert bench.answered == 1


async def test_a_fetch_is_not_given_up_for_one_of_the_same_host(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches a slow host whose own fetches end each other, so that none of them is answered."""
    await bench.ask_all(*["pds.test"] * (PER_HOST + 5), work=partial(trickle, seconds=10))
    await trio.sleep(25)
    assert bench.answered == PER_HOST + 5


async def test_a_fetch_is_not_given_up_where_that_helps_nobody(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches trickles of prompt hosts that end for slow ones, whose own share is full."""
    bench.make_prompt(*many("prompt", 4))
    bench.make_slow(*many("slow"))
    await bench.ask_all(*many("slow"), work=partial(at_rate, rate=2 * RATES[1]))
    await bench.ask_all(*many("prompt", 4), work=partial(trickle, seconds=20))
    assert bench.now.waiting > 0
    await trio.sleep(21)
    assert bench.answered == 4


async def test_a_good_beginning_does_not_excuse_a_trickle(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches a rate over the whole fetch: a megabyte at once, and then a byte a second."""
    bench.make_prompt(*many("turned", CONSUMERS))
    work = partial(at_rate, rate=10, at_once=2 * 1024**2)
    await bench.ask_all(*many("turned", CONSUMERS), work=work)
    began = trio.current_time()
    await bench.ask("pds.test", honest)
    assert bench.answered == 1
    assert trio.current_time() - began < 2 * WINDOWS[0] + 1


async def test_a_pds_of_ordinary_speed_is_never_given_up(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches a rate that rises until honest servers are cut.

    A home connection of 1 Mbit/s brings eight blobs at once, while the lane is full.
    """
    await bench.ask_all(
        *["home.test"] * PER_HOST, work=partial(at_rate, rate=2**17 / 8, seconds=25)
    )
    bench.make_prompt(*many("busy"))
    await bench.ask_all(*many("busy"), times=20, work=partial(at_rate, rate=2 * RATES[1]))
    assert bench.now.waiting == QUEUE
    await trio.sleep(26)
    assert bench.answered == PER_HOST


# All of it together.


def by_name(number: int, conduct: Conduct) -> str:
    return many("evil")[number % 40]


def by_wildcard(number: int, conduct: Conduct) -> str:
    return f"{number}.evil.example"


def by_block(number: int, conduct: Conduct) -> str:
    host = f"{number}evil.example"
    conduct.connects(host, ip_address(f"203.0.113.{number % 250}"))
    return host


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("naming", [by_name, by_wildcard, by_block])
async def test_forty_trickling_hosts_cost_honest_misses_next_to_nothing(
    bench: Bench, autojump_clock: MockClock, naming: Callable[[int, Conduct], str], is_known: bool
) -> None:
    """Catches honest misses that wait for the consumers of trickles: their median was 12 s.

    Of an honest PDS that answers in 0.1 s, beside 280 clients that ask for trickles all the time:
    at forty hosts, at new names of one domain, or at new domains of one block.
    """
    numbers = count()

    async def attack() -> None:
        while True:
            await bench.ask(naming(next(numbers), bench.conduct), trickle)
            await trio.sleep(1)

    took, refused = list[float](), 0

    async def ask_honestly() -> None:
        nonlocal refused
        for number in range(120):
            await trio.sleep(0.25)
            began = trio.current_time()
            try:
                host = "pds.test" if is_known else f"pds{number}.test"
                await bench.channel.submit(origin(host), honest, timeout=TIMEOUT)
            except (Saturated, TimedOut):
                refused += 1
            else:
                took.append(trio.current_time() - began)

    async with trio.open_nursery() as clients:
        for _ in range(280):
            clients.start_soon(attack)
        await trio.testing.wait_all_tasks_blocked()
        await ask_honestly()
        clients.cancel_scope.cancel()
    assert refused <= 12
    assert median(took) < 1.2 * HONEST_SECONDS


async def test_hosts_that_take_as_long_as_prompt_ones_may_cost_the_others_a_turn(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """Catches hosts of a stranger that earn a good name, and use it to hold every consumer.

    Forty of them answer just before their time would count as wasted.
    """
    hosts = many("late")

    async def late(received: object) -> Response:
        await trio.sleep(PROMPT_SECONDS - 0.1)
        return ANSWER

    async def attack(number: int) -> None:
        while True:
            await bench.ask(hosts[number % 40], late)
            await trio.sleep(1)

    async with trio.open_nursery() as clients:
        for number in range(320):
            clients.start_soon(attack, number)
        # Until all of them have their good name.
        await trio.sleep(15)
        assert bench.now == ChannelStatistics(waiting=QUEUE, running=CONSUMERS)
        bench.make_prompt("pds.test")
        for _ in range(15):
            began = trio.current_time()
            await bench.channel.submit(origin("pds.test"), honest, timeout=TIMEOUT)
            # There is no consumer that none of them holds: one has to end.
            assert trio.current_time() - began <= PROMPT_SECONDS + HONEST_SECONDS
        clients.cancel_scope.cancel()


@pytest.mark.parametrize("fullness", [0.0, 0.5, 1.0])
def test_the_rate_rises_and_the_window_shrinks_with_pressure(fullness: float) -> None:
    """Catches a minimum that is the same in an empty lane and in a full one."""
    assert MIN_BYTES_PER_SECOND < least_rate(0) <= least_rate(fullness) <= RATES[1]
    assert WINDOWS[1] <= window(fullness) <= window(0)

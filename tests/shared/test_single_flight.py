"""Single flight: who shares what, who may end it, and what is left of it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from proxy.errors import Busy, FetchFailed
from proxy.shared.single_flight import TOGETHER, Flight, SingleFlight


class Work:
    """Work that waits at a gate, then brings ``value`` or raises ``error``.

    Args:
        commits: it says at once that it cannot stop any more.
    """

    def __init__(self, value: object = None, *, commits: bool = False) -> None:
        self.value = value or object()
        self.error: Exception | None = None
        self.gate = trio.Event()
        self.runs = 0
        self.cancelled = 0
        self._commits = commits

    async def __call__(self, flight: Flight[object]) -> object:
        self.runs += 1
        if self._commits:
            flight.commit()
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.value


class Waiters:
    """Tasks that join flights of one key, and what each got."""

    def __init__(self, nursery: trio.Nursery, flights: SingleFlight[str, object]) -> None:
        self._nursery = nursery
        self._flights = flights
        self.values: list[object] = []
        self.errors: list[Exception] = []
        self.started_it: list[bool] = []

    def join(self, work: Work, *, key: str = "key") -> trio.CancelScope:
        scope = trio.CancelScope()
        self._nursery.start_soon(self._join, key, work, scope)
        return scope

    async def _join(self, key: str, work: Work, scope: trio.CancelScope) -> None:
        try:
            with scope:
                async with self._flights.join(key, work) as landed:
                    self.values.append(landed.value)
                    self.started_it.append(landed.started_it)
        except Exception as error:
            self.errors.append(error)


@pytest.fixture
async def flights(nursery: trio.Nursery) -> SingleFlight[str, object]:
    return SingleFlight(nursery)


@pytest.fixture
async def waiters(nursery: trio.Nursery, flights: SingleFlight[str, object]) -> Waiters:
    return Waiters(nursery, flights)


async def test_a_thousand_waiters_share_one_run_of_the_work(
    waiters: Waiters, flights: SingleFlight[str, object]
) -> None:
    """Catches: a lock instead of a flight does the work a thousand times."""
    work = Work()
    for _ in range(1000):
        waiters.join(work)
    await trio.testing.wait_all_tasks_blocked()
    work.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert work.runs == 1
    assert waiters.values == [work.value] * 1000
    assert waiters.started_it.count(True) == 1
    assert len(flights) == 0


async def test_each_key_has_a_flight_of_its_own(waiters: Waiters) -> None:
    """Catches: a flight for all keys gives one key the value of another."""
    one, other = Work(), Work()
    one.gate.set()
    other.gate.set()
    waiters.join(one, key="one")
    waiters.join(other, key="other")
    await trio.testing.wait_all_tasks_blocked()
    assert (one.runs, other.runs) == (1, 1)
    assert {id(value) for value in waiters.values} == {id(one.value), id(other.value)}


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_a_flight_outlives_its_first_waiter(waiters: Waiters, leaver: int) -> None:
    """Catches: a flight owned by its first waiter dies with it."""
    work = Work()
    scopes = [waiters.join(work) for _ in range(3)]
    await trio.testing.wait_all_tasks_blocked()
    scopes[leaver].cancel()
    await trio.testing.wait_all_tasks_blocked()
    work.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (work.runs, work.cancelled) == (1, 0)
    assert waiters.values == [work.value] * 2
    assert waiters.errors == []


async def test_a_flight_that_nobody_waits_for_is_cancelled(
    waiters: Waiters, flights: SingleFlight[str, object]
) -> None:
    """Catches: a flight that nobody waits for goes on for nothing."""
    work = Work()
    scopes = [waiters.join(work) for _ in range(2)]
    await trio.testing.wait_all_tasks_blocked()
    for scope in scopes:
        scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert work.cancelled == 1
    assert len(flights) == 0


async def test_a_request_after_a_cancelled_flight_starts_a_new_one(
    nursery: trio.Nursery, flights: SingleFlight[str, object], waiters: Waiters
) -> None:
    """Catches: a request that joins a cancelled flight is cancelled."""
    cleaned = trio.Event()

    async def slow_to_end(_flight: Flight[object]) -> object:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await cleaned.wait()

    with trio.CancelScope() as first:
        async with trio.open_nursery() as inner:

            async def join() -> None:
                async with flights.join("key", slow_to_end):
                    raise AssertionError

            inner.start_soon(join)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
    # The old one still cleans up; its key is free at once, and its end must not take the new one.
    work = Work()
    waiters.join(work)
    await trio.testing.wait_all_tasks_blocked()
    cleaned.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(flights) == 1
    waiters.join(work)
    work.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert work.runs == 1
    assert waiters.values == [work.value] * 2
    assert len(flights) == 0


async def test_work_that_cannot_stop_is_kept_and_shared(
    waiters: Waiters, flights: SingleFlight[str, object]
) -> None:
    """Catches: work that cannot stop is thrown away or done twice."""
    work = Work(commits=True)
    scope = waiters.join(work)
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert (work.cancelled, len(flights)) == (0, 1)
    waiters.join(work)
    await trio.testing.wait_all_tasks_blocked()
    work.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert work.runs == 1
    assert waiters.values == [work.value]
    assert waiters.started_it == [False]
    assert len(flights) == 0


@pytest.mark.parametrize("tags", [{"a"}, {"key a"}, None], ids=["tag", "key", "all"])
async def test_requests_after_a_parting_have_a_flight_of_their_own(
    nursery: trio.Nursery, tags: set[str] | None
) -> None:
    """Catches a parted flight whose end takes the later one along, and a parting that ends it."""
    flights: SingleFlight[str, object] = SingleFlight(nursery, tags=lambda key: key.split()[1:])
    waiters = Waiters(nursery, flights)
    before, after, other = Work(), Work(), Work()
    waiters.join(before, key="key a")
    waiters.join(other, key="key b")
    await trio.testing.wait_all_tasks_blocked()
    flights.part(tags)
    waiters.join(after, key="key a")
    await trio.testing.wait_all_tasks_blocked()
    before.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    waiters.join(before, key="key a")
    assert ("key b" in flights) == (tags is not None)
    await trio.testing.wait_all_tasks_blocked()
    after.gate.set()
    other.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (before.runs, after.runs, other.runs) == (1, 1, 1)
    assert waiters.values[0] is before.value
    assert waiters.values.count(after.value) == 2
    assert waiters.values.count(other.value) == 1
    assert len(flights) == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_committed_work_that_ends_alone_frees_its_key(
    waiters: Waiters, flights: SingleFlight[str, object], fails: bool
) -> None:
    """Catches: committed work that ends alone holds its key forever."""
    work = Work(commits=True)
    work.error = ValueError("a defect") if fails else None
    scope = waiters.join(work)
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    work.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(flights) == 0


async def test_each_waiter_gets_an_error_of_its_own(
    waiters: Waiters, flights: SingleFlight[str, object]
) -> None:
    """Catches: one error object in many tasks collects their tracebacks."""
    work = Work()
    work.error = FetchFailed("pds.example: refused")
    for _ in range(100):
        waiters.join(work)
    await trio.testing.wait_all_tasks_blocked()
    work.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert [type(error) for error in waiters.errors] == [FetchFailed] * 100
    assert {str(error) for error in waiters.errors} == {"pds.example: refused"}
    assert len({id(error) for error in waiters.errors}) == 100
    assert len(flights) == 0


async def test_a_failure_frees_its_key(waiters: Waiters) -> None:
    """Catches: a failure that stays with its key is never retried."""
    work = Work()
    work.error = FetchFailed()
    work.gate.set()
    waiters.join(work)
    await trio.testing.wait_all_tasks_blocked()
    work.error = None
    waiters.join(work)
    await trio.testing.wait_all_tasks_blocked()
    assert work.runs == 2
    assert waiters.values == [work.value]


async def test_a_defect_reaches_its_waiters_and_the_service_goes_on(
    waiters: Waiters, flights: SingleFlight[str, object]
) -> None:
    """Catches: a defect ends the service or leaves its waiters hanging."""
    work = Work()
    work.error = ZeroDivisionError()
    for _ in range(3):
        waiters.join(work)
    await trio.testing.wait_all_tasks_blocked()
    work.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert [type(error) for error in waiters.errors] == [ZeroDivisionError] * 3
    assert len(flights) == 0


async def test_a_value_forgotten_when_it_lands_is_made_again_for_later_requests(
    flights: SingleFlight[str, object],
) -> None:
    work = Work()
    work.gate.set()
    async with flights.join("key", work) as first:
        async with flights.join("key", work) as second:
            assert second.value is first.value
        assert (first.started_it, second.started_it) == (True, False)
        assert len(flights) == 1
    assert (work.runs, len(flights)) == (1, 0)
    async with flights.join("key", work) as third:
        assert third.started_it
    assert work.runs == 2


async def test_a_block_that_fails_frees_the_key(flights: SingleFlight[str, object]) -> None:
    """Catches: a block that fails keeps the key."""
    work = Work()
    work.gate.set()
    with pytest.raises(KeyError):
        async with flights.join("key", work):
            raise KeyError
    assert len(flights) == 0


@pytest.mark.parametrize("commits", [False, True])
async def test_shutdown_answers_the_waiters(nursery: trio.Nursery, commits: bool) -> None:
    """Catches: shutdown leaves waiters hanging."""
    work = Work(commits=commits)
    async with trio.open_nursery() as owner:
        flights: SingleFlight[str, object] = SingleFlight(owner)
        waiters = Waiters(nursery, flights)
        for _ in range(3):
            waiters.join(work)
        await trio.testing.wait_all_tasks_blocked()
        owner.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert [type(error) for error in waiters.errors] == [Busy] * 3
    assert len(flights) == 0


async def test_a_request_after_shutdown_is_busy(nursery: trio.Nursery) -> None:
    """Catches: a request after shutdown is a defect."""
    async with trio.open_nursery() as owner:
        flights: SingleFlight[str, object] = SingleFlight(owner)
    with pytest.raises(Busy):
        async with flights.join("key", Work()):
            raise AssertionError
    assert len(flights) == 0


async def test_other_tasks_run_between_the_waiters_of_a_flight() -> None:
    """Catches a thousand answers at once, which hold up everybody else's for half a second."""
    landing = trio.Event()
    went_on = 0
    most = 0

    async def work(_flight: Flight[int]) -> int:
        await landing.wait()
        return 1

    async def wait(flights: SingleFlight[str, int]) -> None:
        nonlocal went_on
        async with flights.join("key", work):
            went_on += 1

    async def watch() -> None:
        nonlocal most
        before = went_on
        while True:
            await trio.lowlevel.checkpoint()
            most, before = max(most, went_on - before), went_on

    async with trio.open_nursery() as nursery:
        flights: SingleFlight[str, int] = SingleFlight(nursery)
        async with trio.open_nursery() as waiters:
            for _ in range(10 * TOGETHER):
                waiters.start_soon(wait, flights)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(watch)
            landing.set()
        nursery.cancel_scope.cancel()
    assert went_on == 10 * TOGETHER
    assert most <= 2 * TOGETHER

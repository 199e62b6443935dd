"""The janitor: when it cleans up, when it does not, and that no failure of a cache ends it."""

from __future__ import annotations

import errno
import os

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.cache.health import CacheHealth
from proxy.cache.janitor import keep_cleaning
from tests.cache.chores import FULL, FakeCache, running


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


@pytest.fixture
def health(cache: FakeCache) -> CacheHealth:
    return CacheHealth(cache)


async def test_the_cleanup_job_starts_at_once_and_repeats_at_its_interval(
    cache: FakeCache, health: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a first cleanup an hour after the start, and intervals that drift."""
    async with running(cache, keep_cleaning, cache, health, 30):
        await trio.sleep(91)
    assert cache.cleanups == pytest.approx([0, 30, 60, 90])


async def test_what_expired_does_not_stay_for_the_whole_of_a_long_interval(
    cache: FakeCache, health: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a TTL that nginx keeps only once an hour."""
    async with running(cache, keep_cleaning, cache, health, 3600):
        await trio.sleep(121)
    assert cache.cleanups == pytest.approx([0, 60, 120])


async def test_the_cleanup_job_is_off_at_0(
    cache: FakeCache, health: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches an interval of 0 taken for "all the time"."""
    with trio.fail_after(1):
        await keep_cleaning(cache, health, 0)
        await keep_cleaning(cache, health, 0)
    assert cache.cleanups == []


@pytest.mark.parametrize("hangs", [False, True], ids=["between two", "in the middle of one"])
async def test_the_cleanup_job_stops_when_it_is_cancelled(
    cache: FakeCache, health: CacheHealth, autojump_clock: MockClock, hangs: bool
) -> None:
    """Catches a shutdown that waits for the next interval, or for a cleanup."""
    cache.hangs = hangs
    before = trio.current_time()
    async with running(cache, keep_cleaning, cache, health, 3600):
        await wait_all_tasks_blocked()
        assert len(cache.cleanups) == 1
    assert trio.current_time() == before
    await trio.sleep(3 * 3600)
    assert len(cache.cleanups) == 1


async def test_a_cleanup_that_fails_is_noted_and_the_job_goes_on(
    cache: FakeCache, health: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a full disk that ends the one job which could make room."""
    cache.failure = FULL
    async with running(cache, keep_cleaning, cache, health, 60):
        await wait_all_tasks_blocked()
        assert health.problem == os.strerror(errno.ENOSPC)
        cache.failure = None
        await trio.sleep(61)
    assert cache.cleanups == pytest.approx([0, 60])


async def test_a_cleanup_says_how_much_it_removed(
    cache: FakeCache, health: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a job that nobody sees at work."""
    with capture_logs() as logs:
        async with running(cache, keep_cleaning, cache, health, 60):
            await wait_all_tasks_blocked()
    assert [(line["event"], line["removed"]) for line in logs] == [("cache cleaned up", 7)]

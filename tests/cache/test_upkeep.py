"""The cache's chores: when they run, when they do not, and that nothing about a cache ends them."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.cache.health import CHECK_SECONDS, CacheHealth
from proxy.cache.interface import Cache, Entry
from proxy.model.keys import ImageKey
from proxy.model.selection import Selection

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FakeCache:
    """Notes when it is looked after."""

    def __init__(self) -> None:
        self.cleanups: list[float] = []
        self.checks: list[float] = []
        self.failure: OSError | None = None
        self.hangs = False

    async def get(self, key: ImageKey) -> Entry | None:
        raise NotImplementedError

    async def put(self, key: ImageKey, entry: Entry) -> None:
        raise NotImplementedError

    async def purge(self, *selections: Selection) -> int:
        raise NotImplementedError

    async def cleanup(self) -> int:
        await self._note(self.cleanups)
        return 7

    async def check(self) -> None:
        await self._note(self.checks)

    async def _note(self, times: list[float]) -> None:
        times.append(trio.current_time() - self.began)
        if self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure

    @property
    def began(self) -> float:
        return getattr(self, "_began", 0.0)

    def begin(self) -> None:
        """Count time from now."""
        self._began = trio.current_time()


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


@pytest.fixture
def upkeep(cache: FakeCache) -> CacheHealth:
    it: Cache = cache
    return CacheHealth(it)


@asynccontextmanager
async def running(
    cache: FakeCache, chore: Callable[..., object], *arguments: float
) -> AsyncIterator[trio.Nursery]:
    """The chore runs from the block's beginning, and has to end when it is cancelled."""
    cache.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chore, *arguments)  # type: ignore[arg-type]
        yield nursery
        nursery.cancel_scope.cancel()


async def test_the_cleanup_job_starts_at_once_and_repeats_at_its_interval(
    cache: FakeCache, upkeep: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a first cleanup an hour after the start, and intervals that drift."""
    async with running(cache, upkeep.keep_cleaning, 30):
        await trio.sleep(91)
    assert cache.cleanups == pytest.approx([0, 30, 60, 90])


async def test_what_expired_does_not_stay_for_the_whole_of_a_long_interval(
    cache: FakeCache, upkeep: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a TTL that nginx keeps only once an hour."""
    async with running(cache, upkeep.keep_cleaning, 3600):
        await trio.sleep(121)
    assert cache.cleanups == pytest.approx([0, 60, 120])


async def test_the_cleanup_job_is_off_at_0(
    cache: FakeCache, upkeep: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches an interval of 0 taken for "all the time"."""
    with trio.fail_after(1):
        await upkeep.keep_cleaning(0)
        await upkeep.keep_cleaning(0)
    assert cache.cleanups == []


@pytest.mark.parametrize("hangs", [False, True], ids=["between two", "in the middle of one"])
async def test_the_cleanup_job_stops_when_it_is_cancelled(
    cache: FakeCache, upkeep: CacheHealth, autojump_clock: MockClock, hangs: bool
) -> None:
    """Catches a shutdown that waits for the next interval, or for a cleanup."""
    cache.hangs = hangs
    before = trio.current_time()
    async with running(cache, upkeep.keep_cleaning, 3600):
        await wait_all_tasks_blocked()
        assert len(cache.cleanups) == 1
    assert trio.current_time() == before
    await trio.sleep(3 * 3600)
    assert len(cache.cleanups) == 1


async def test_a_cleanup_that_fails_is_noted_and_the_job_goes_on(
    cache: FakeCache, upkeep: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a full disk that ends the one job which could make room."""
    cache.failure = FULL
    async with running(cache, upkeep.keep_cleaning, 60):
        await wait_all_tasks_blocked()
        assert upkeep.problem == os.strerror(errno.ENOSPC)
        cache.failure = None
        await trio.sleep(61)
    assert cache.cleanups == pytest.approx([0, 60])


async def test_a_cleanup_says_how_much_it_removed(
    cache: FakeCache, upkeep: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a job that nobody sees at work."""
    with capture_logs() as logs:
        async with running(cache, upkeep.keep_cleaning, 60):
            await wait_all_tasks_blocked()
    assert [(line["event"], line["removed"]) for line in logs] == [("cache cleaned up", 7)]


def test_a_problem_is_logged_when_it_begins_and_when_it_ends(upkeep: CacheHealth) -> None:
    """Catches a log that a full disk fills, line by line, with every write."""
    assert upkeep.problem is None
    with capture_logs() as logs:
        upkeep.works()
        for _ in range(3):
            upkeep.failed(FULL)
        for _ in range(3):
            upkeep.works()
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("cache unusable", "error"),
        ("cache usable again", "info"),
    ]
    assert os.strerror(errno.ENOSPC) in logs[0]["error"], "the log names the cause"


def test_the_problem_is_the_latest_one_without_its_path(upkeep: CacheHealth) -> None:
    """Catches a readiness answer that tells strangers about folders."""
    upkeep.failed(OSError(errno.EROFS, os.strerror(errno.EROFS), "/var/lib/imageproxy/x.tmp"))
    assert upkeep.problem == os.strerror(errno.EROFS)
    upkeep.failed(OSError("at /var/lib/imageproxy"))
    assert upkeep.problem == "write failed"
    upkeep.failed(ValueError("at /var/lib/imageproxy"))
    assert upkeep.problem == "write failed"
    upkeep.works()
    assert upkeep.problem is None


async def test_a_check_notes_what_it_finds(cache: FakeCache, upkeep: CacheHealth) -> None:
    """Catches a cache that stays unusable for good, and one that is called usable unseen."""
    cache.failure = FULL
    await upkeep.check()
    assert upkeep.problem == os.strerror(errno.ENOSPC)
    cache.failure = None
    await upkeep.check()
    assert upkeep.problem is None


async def test_only_an_unusable_cache_is_checked_and_until_it_works_again(
    cache: FakeCache, upkeep: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a write to the disk every few seconds, and a recovery that waits for traffic."""
    async with running(cache, upkeep.keep_checking):
        await trio.sleep(10 * CHECK_SECONDS + 1)
        assert cache.checks == []
        cache.failure = FULL
        upkeep.failed(FULL)
        await trio.sleep(2 * CHECK_SECONDS)
        assert len(cache.checks) == 2
        assert upkeep.problem is not None
        cache.failure = None
        await trio.sleep(CHECK_SECONDS)
        assert upkeep.problem is None
        await trio.sleep(10 * CHECK_SECONDS)
        assert len(cache.checks) == 3

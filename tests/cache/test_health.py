"""The health of the cache: a failure is noticed and logged once, and so is its end."""

from __future__ import annotations

import errno
import os

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from proxy.cache.health import CHECK_SECONDS, CacheHealth
from tests.cache.chores import FULL, FakeCache, running


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


@pytest.fixture
def health(cache: FakeCache) -> CacheHealth:
    return CacheHealth(cache)


def test_a_problem_is_logged_when_it_begins_and_when_it_ends(health: CacheHealth) -> None:
    """Catches a log that a full disk fills, line by line, with every write."""
    assert health.problem is None
    with capture_logs() as logs:
        health.works()
        for _ in range(3):
            health.failed(FULL)
        for _ in range(3):
            health.works()
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("the cache takes no more", "error"),
        ("cache usable again", "info"),
    ]
    assert os.strerror(errno.ENOSPC) in logs[0]["error"], "the log names the cause"


def test_a_full_disk_is_not_called_unusable_and_one_that_then_fails_is(health: CacheHealth) -> None:
    """Catches a log that says other than /readyz, and a broken disk hidden behind a full one."""
    with capture_logs() as logs:
        health.failed(FULL)
        for _ in range(2):
            health.failed(OSError(errno.EIO, os.strerror(errno.EIO)))
        health.failed(FULL)
    events = [line["event"] for line in logs]
    assert events == ["the cache takes no more", "cache unusable", "the cache takes no more"]


def test_the_problem_is_the_latest_one_without_its_path(health: CacheHealth) -> None:
    """Catches a readiness answer that tells strangers about folders."""
    health.failed(OSError(errno.EROFS, os.strerror(errno.EROFS), "/var/lib/imageproxy/x.tmp"))
    assert health.problem == os.strerror(errno.EROFS)
    health.failed(OSError("at /var/lib/imageproxy"))
    assert health.problem == "write failed"
    health.failed(ValueError("at /var/lib/imageproxy"))
    assert health.problem == "write failed"
    health.works()
    assert health.problem is None


async def test_a_check_notes_what_it_finds(cache: FakeCache, health: CacheHealth) -> None:
    """Catches a cache that stays unusable for good, and one that is called usable unseen."""
    cache.failure = FULL
    await health.check()
    assert health.problem == os.strerror(errno.ENOSPC)
    cache.failure = None
    await health.check()
    assert health.problem is None


async def test_only_an_unusable_cache_is_checked_and_until_it_works_again(
    cache: FakeCache, health: CacheHealth, autojump_clock: MockClock
) -> None:
    """Catches a write to the disk every few seconds, and a recovery that waits for traffic."""
    async with running(cache, health.keep_checking):
        await trio.sleep(10 * CHECK_SECONDS + 1)
        assert cache.checks == []
        cache.failure = FULL
        health.failed(FULL)
        await trio.sleep(2 * CHECK_SECONDS)
        assert len(cache.checks) == 2
        assert health.problem is not None
        cache.failure = None
        await trio.sleep(CHECK_SECONDS)
        assert health.problem is None
        await trio.sleep(10 * CHECK_SECONDS)
        assert len(cache.checks) == 3

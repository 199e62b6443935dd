"""The janitor of the cache: periodically removes entries that expired or exceed the limit."""

from __future__ import annotations

from contextlib import aclosing

import structlog
from trio_util import periodic

from proxy.cache.health import CacheHealth
from proxy.cache.interface import Cache

CLEANUP_SECONDS = 60.0
"""The longest interval between cleanups. nginx serves expired files until they are removed. The
cost of a cleanup depends only on how much it removes."""

log = structlog.get_logger(__name__)


async def keep_cleaning(cache: Cache, health: CacheHealth, interval: float) -> None:
    """Clean ``cache`` up once at the start and then periodically, until cancelled.

    A failed cleanup is recorded in ``health``; the next one takes place anyway.

    Args:
        interval: seconds between cleanups, at most ``CLEANUP_SECONDS``; 0: no cleanups.
    """
    if interval == 0:
        return
    async with aclosing(periodic(min(interval, CLEANUP_SECONDS))) as ticks:
        async for _ in ticks:
            try:
                removed = await cache.cleanup()
            except OSError as error:
                health.failed(error)
            else:
                if removed:
                    log.info("cache cleaned up", removed=removed)

"""The janitor of the cache: removes what expired or exceeds the size limit, again and again."""

from __future__ import annotations

from contextlib import aclosing

import structlog
from trio_util import periodic

from proxy.cache.health import CacheHealth
from proxy.cache.interface import Cache

CLEANUP_SECONDS = 60.0
"""The longest interval between cleanups. nginx serves expired files until they are removed, and a
cleanup costs only what it removes."""

log = structlog.get_logger(__name__)


async def keep_cleaning(cache: Cache, health: CacheHealth, interval: float) -> None:
    """Clean ``cache`` up now and then periodically, until cancelled.

    A failed cleanup is noted in ``health``, and the next one takes place all the same.

    Args:
        interval: seconds between cleanups, cut to ``CLEANUP_SECONDS``; 0: no cleanups at all.
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

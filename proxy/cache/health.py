"""The health of the cache: noticing that it fails, and that it works again."""

from __future__ import annotations

from contextlib import aclosing

import structlog
from trio_util import periodic

from proxy.cache.interface import Cache

CHECK_SECONDS = 5.0
"""How often an unusable cache is tried again."""

log = structlog.get_logger(__name__)


class CacheHealth:
    """Watches one cache.

    Attributes:
        problem: why nothing can be kept at the moment, or None.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.problem: str | None = None

    def failed(self, error: Exception) -> None:
        """Note that the cache does not work. Logged once, when that begins."""
        if self.problem is None:
            log.error("cache unusable", error=str(error))
        self.problem = (error.strerror if isinstance(error, OSError) else None) or "write failed"

    def works(self) -> None:
        """Note that the cache works."""
        if self.problem is not None:
            log.info("cache usable again")
        self.problem = None

    async def check(self) -> None:
        """Look whether the cache works, and note it."""
        try:
            await self._cache.check()
        except OSError as error:
            self.failed(error)
        else:
            self.works()

    async def keep_checking(self) -> None:
        """Look whether an unusable cache works again, until cancelled."""
        async with aclosing(periodic(CHECK_SECONDS)) as ticks:
            async for _ in ticks:
                if self.problem is not None:
                    await self.check()

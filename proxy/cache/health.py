"""The health of the cache: notices when it fails, and when it works again."""

from __future__ import annotations

import errno
from contextlib import aclosing

import structlog
from trio_util import periodic

from proxy.cache.interface import Cache

CHECK_SECONDS = 5.0
"""Seconds between checks of an unusable cache."""

_TAKES_NO_MORE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
"""What fails writes alone: what is there can be read."""

log = structlog.get_logger(__name__)


class CacheHealth:
    """Watches one cache.

    Attributes:
        problem: why the cache cannot store anything at the moment, or None.
        is_full: the problem is only that it takes no more; hits are served from it.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.problem: str | None = None
        self.is_full = False

    def failed(self, error: Exception) -> None:
        """Record that the cache does not work. Only the first failure of its kind is logged."""
        is_full = isinstance(error, OSError) and error.errno in _TAKES_NO_MORE
        if self.problem is None or is_full != self.is_full:
            event = "the cache takes no more" if is_full else "cache unusable"
            log.error(event, error=str(error))
        self.is_full = is_full
        self.problem = (error.strerror if isinstance(error, OSError) else None) or "write failed"

    def works(self) -> None:
        """Record that the cache works."""
        if self.problem is not None:
            log.info("cache usable again")
        self.problem = None
        self.is_full = False

    async def check(self) -> None:
        """Check whether the cache works, and record the result."""
        try:
            await self._cache.check()
        except OSError as error:
            self.failed(error)
        else:
            self.works()

    async def keep_checking(self) -> None:
        """Check periodically whether an unusable cache works again, until cancelled."""
        async with aclosing(periodic(CHECK_SECONDS)) as ticks:
            async for _ in ticks:
                if self.problem is not None:
                    await self.check()

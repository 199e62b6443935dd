"""The memory tier: the hottest entries, bounded in bytes. Pure: a hit awaits nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter

from proxy.cache.interface import Entry
from proxy.model.keys import ImageKey
from proxy.model.selection import Covering
from proxy.shared.expiring_map import ExpiringMap

OVERHEAD = 1024
"""Bytes that an entry costs besides its data: key, entry, tags and table slots. Measured, and
rounded up."""


class MemoryCache:
    """A bounded cache in memory; least recently used entries are removed first.

    Args:
        max_bytes: limit of data and overhead together; 0: no entry is stored.
        ttl_seconds: age at which an entry expires; 0: never.

    Attributes:
        get: takes a key and the time in seconds; returns the entry or None. Counts as a use.
    """

    def __init__(self, max_bytes: int, *, ttl_seconds: float = 0) -> None:
        self._max_bytes = max_bytes
        self._ttl = ttl_seconds or math.inf
        self._entries: ExpiringMap[ImageKey, Entry] = ExpiringMap(
            max_bytes, cost=_cost, tags=attrgetter("blob.tags")
        )
        # The map's own method, without a wrapper: a wrapper would cost every hit some time.
        self.get: Callable[[ImageKey, float], Entry | None] = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: ImageKey, entry: Entry, now: float) -> None:
        """Store ``entry`` unless it would take more than a quarter of ``max_bytes``."""
        if _cost(key, entry) * 4 <= self._max_bytes:
            self._entries.put(key, entry, now + self._ttl)

    def purge(self, covering: Covering) -> int:
        """Remove all covered entries; return their number."""
        return self._entries.remove_tagged(covering.tags)


def _cost(key: ImageKey, entry: Entry) -> int:
    return len(entry.data) + OVERHEAD

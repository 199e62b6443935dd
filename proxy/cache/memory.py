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
"""Bytes that an entry costs beside its data: key, entry, tags and table slots, measured roughly
up."""


class MemoryCache:
    """Least recently used entries go first.

    Args:
        max_bytes: of data and overhead; 0 keeps nothing.
        ttl_seconds: age at which an entry goes; 0: never.

    Attributes:
        get: the entry of a key, or None, at a time in seconds. Counts as a use of it.
    """

    def __init__(self, max_bytes: int, *, ttl_seconds: float = 0) -> None:
        self._max_bytes = max_bytes
        self._ttl = ttl_seconds or math.inf
        self._entries: ExpiringMap[ImageKey, Entry] = ExpiringMap(
            max_bytes, cost=_cost, tags=attrgetter("blob.tags")
        )
        # The map's own method: every hit passes here, and a call in between would show.
        self.get: Callable[[ImageKey, float], Entry | None] = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: ImageKey, entry: Entry, now: float) -> None:
        """Keep ``entry`` unless it alone would take a quarter of the room."""
        if _cost(key, entry) * 4 <= self._max_bytes:
            self._entries.put(key, entry, now + self._ttl)

    def purge(self, covering: Covering) -> int:
        """Remove what is covered; how many entries there were."""
        return self._entries.remove_tagged(covering.tags)


def _cost(key: ImageKey, entry: Entry) -> int:
    return len(entry.data) + OVERHEAD

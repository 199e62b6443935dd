"""The memory tier: the hottest entries, bounded in bytes. Synchronous: a hit awaits nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import trio

from proxy.cache.interface import Entry
from proxy.model.keys import ImageKey
from proxy.model.selection import Covering

OVERHEAD = 512
"""Bytes that an entry costs beside its data: key, entry and table slot, measured roughly up."""


class MemoryCache:
    """Least recently used entries go first.

    Args:
        max_bytes: of data and overhead; 0 keeps nothing.
        ttl_seconds: age at which an entry goes; 0: never.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        ttl_seconds: float = 0,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl = ttl_seconds
        self._clock = clock
        self._entries: OrderedDict[ImageKey, tuple[Entry, float]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: ImageKey) -> Entry | None:
        """The entry of ``key``, or None. Counts as a use of it."""
        found = self._entries.get(key)
        if found is None:
            return None
        entry, kept_at = found
        if self._ttl and self._clock() - kept_at >= self._ttl:
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: ImageKey, entry: Entry) -> None:
        """Keep ``entry`` unless it alone would take a quarter of the room."""
        if _cost(entry) * 4 > self._max_bytes:
            return
        if key in self._entries:
            self._remove(key)
        self._entries[key] = (entry, self._clock())
        self._bytes += _cost(entry)
        while self._bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))

    def purge(self, covering: Covering) -> int:
        """Remove what is covered; how many there were."""
        selected = [key for key in self._entries if covering.covers(key)]
        for key in selected:
            self._remove(key)
        return len(selected)

    def _remove(self, key: ImageKey) -> None:
        entry, _kept_at = self._entries.pop(key)
        self._bytes -= _cost(entry)


def _cost(entry: Entry) -> int:
    return len(entry.data) + OVERHEAD

"""A map that removes entries by age, by least recent use, and by tags that keys share. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from proxy.shared.tag_index import TagIndex

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

GRAIN = 60.0
"""Seconds; expired entries leave in groups of those that expire within the same time."""

SWEPT = 4
"""The most expired entries that leave when a key is looked for in vain."""


class ExpiringMap(Generic[K, V]):
    """A bounded map in which each entry may expire. Not thread-safe.

    Expired entries leave even if no one looks for them: each look-up that finds nothing, such as
    that before a new entry, removes up to ``SWEPT`` of those that expired a minute ago or earlier.

    Args:
        capacity: the largest sum of the costs of all entries. Above it the least recently used
            entries are removed.
        cost: returns the cost of an entry, at least 1; called once, when the entry is put. By
            default each entry costs 1.
        tags: returns the tags of a key, which other keys may have too: see ``remove_tagged``. Each
            key is also a tag of itself.
    """

    def __init__(
        self,
        capacity: int,
        *,
        cost: Callable[[K, V], int] | None = None,
        tags: Callable[[K], Iterable[Hashable]] | None = None,
    ) -> None:
        self._capacity = capacity
        self._cost_of = cost
        self._index = None if tags is None else TagIndex(tags)
        # The least recently used first. Each has its value, the time when it expires, and its cost.
        self._entries: OrderedDict[K, tuple[V, float, int]] = OrderedDict()
        # The keys of each group of entries that expire together, and the earliest group.
        self._groups: dict[int, dict[K, None]] = {}
        self._earliest: float = math.inf
        self.cost = 0

    def __len__(self) -> int:
        """The number of entries, with expired ones that were not looked up since."""
        return len(self._entries)

    def get(self, key: K, now: float) -> V | None:
        """The value of ``key``, or None if it is absent or has expired. Counts as a use."""
        found = self._entries.get(key)
        if found is None:
            self._sweep(now)
            return None
        value, expires, _cost = found
        if expires <= now:
            self.remove(key)
            return None
        self._entries.move_to_end(key)
        return value

    def items(self, now: float) -> Iterator[tuple[K, V]]:
        """Yield what has not expired, the least recently used first. Counts as no use.

        The map must not change meanwhile.
        """
        for key, (value, expires, _cost) in self._entries.items():
            if expires > now:
                yield key, value

    def put(self, key: K, value: V, expires: float = math.inf) -> None:
        """Keep ``value`` until ``expires``, in place of the one before. Counts as a use.

        An entry that costs more than the whole capacity is not kept.
        """
        self.remove(key)
        cost = 1 if self._cost_of is None else self._cost_of(key, value)
        if cost > self._capacity:
            return
        self._entries[key] = (value, expires, cost)
        self.cost += cost
        if expires != math.inf:
            group = int(expires // GRAIN)
            self._groups.setdefault(group, {})[key] = None
            self._earliest = min(self._earliest, group)
        if self._index is not None:
            self._index.add(key)
        while self.cost > self._capacity:
            self.remove(next(iter(self._entries)))

    def remove(self, key: K) -> None:
        """Forget ``key``; do nothing if it is absent."""
        found = self._entries.pop(key, None)
        if found is None:
            return
        self._forget(key, found)
        if self._index is not None:
            self._index.discard((key,))

    def find(self, tags: AbstractSet[Hashable] | None) -> Collection[K]:
        """The keys that have any of ``tags``, or are one of them; if None, every key.

        Those that have expired may be among them. The time is that of ``remove_tagged``.
        """
        return self._tagged.find(tags, self._entries)

    def remove_tagged(self, tags: AbstractSet[Hashable] | None) -> int:
        """Forget every key that has any of ``tags``, or is one of them.

        The time grows with the number of removed entries and of tags; if there are more tags than
        entries, with the number of entries.

        Args:
            tags: if None, forget all keys.

        Returns:
            The number of entries removed, with those that had expired.
        """
        selected = self.find(tags)
        if len(selected) == len(self._entries):
            self._entries.clear()
            self._tagged.clear()
            self._groups.clear()
            self._earliest = math.inf
            self.cost = 0
            return len(selected)
        for key in selected:
            self._forget(key, self._entries.pop(key))
        self._tagged.discard(selected)
        return len(selected)

    @property
    def _tagged(self) -> TagIndex[K]:
        if self._index is None:
            raise ValueError("a map without tags")
        return self._index

    def _forget(self, key: K, entry: tuple[V, float, int]) -> None:
        """Take a removed entry out of the sum of costs, and out of its group."""
        _value, expires, cost = entry
        self.cost -= cost
        if expires == math.inf:
            return
        group = int(expires // GRAIN)
        del self._groups[group][key]
        if not self._groups[group]:
            del self._groups[group]
            if group == self._earliest:
                self._earliest = min(self._groups, default=math.inf)

    def _sweep(self, now: float) -> None:
        for _ in range(SWEPT):
            if (self._earliest + 1) * GRAIN > now:
                return
            # Any key of the group: taking the first would cost more the more have gone before.
            self.remove(next(reversed(self._groups[int(self._earliest)])))

"""A map that forgets: by age, by least recent use, and by what its keys have in common. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from proxy.shared.tag_index import TagIndex

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ExpiringMap(Generic[K, V]):
    """A bounded map in which each entry may have an end. Not for several threads.

    Args:
        capacity: the largest sum of what the entries cost. Beyond it the least recently used go.
        cost: what an entry costs, at least 1; asked once, when it is put. By default each costs 1.
        tags: what keys have in common with others, as ``remove_tagged`` names it. A key is a tag
            of itself besides.
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
        # The least recently used first: value, when it expires, what it costs.
        self._entries: OrderedDict[K, tuple[V, float, int]] = OrderedDict()
        self.cost = 0

    def __len__(self) -> int:
        """How many entries there are, with those that expired and were not looked up since."""
        return len(self._entries)

    def get(self, key: K, now: float) -> V | None:
        """The value of ``key``, or None where there is none or it has expired. Counts as a use."""
        found = self._entries.get(key)
        if found is None:
            return None
        value, expires, _cost = found
        if expires <= now:
            self.remove(key)
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V, expires: float = math.inf) -> None:
        """Keep ``value`` until ``expires``, in place of the one before. Counts as a use.

        What alone costs more than the capacity is not kept.
        """
        self.remove(key)
        cost = 1 if self._cost_of is None else self._cost_of(key, value)
        if cost > self._capacity:
            return
        self._entries[key] = (value, expires, cost)
        self.cost += cost
        if self._index is not None:
            self._index.add(key)
        while self.cost > self._capacity:
            self.remove(next(iter(self._entries)))

    def remove(self, key: K) -> None:
        """Forget ``key``; nothing happens where it is not kept."""
        found = self._entries.pop(key, None)
        if found is None:
            return
        self.cost -= found[2]
        if self._index is not None:
            self._index.discard((key,))

    def remove_tagged(self, tags: AbstractSet[Hashable] | None) -> int:
        """Forget every key that has any of ``tags``, or is one; None: all keys.

        Costs what is removed and the tags, or a scan where there are more tags than entries.

        Returns:
            How many entries there were, with those that had expired.
        """
        if self._index is None:
            raise ValueError("a map without tags")
        selected = self._index.find(tags, self._entries)
        if len(selected) == len(self._entries):
            self._entries.clear()
            self._index.clear()
            self.cost = 0
            return len(selected)
        for key in selected:
            self.cost -= self._entries.pop(key)[2]
        self._index.discard(selected)
        return len(selected)

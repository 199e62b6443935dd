"""Which of many keys have a tag, such as their owner, without looking at the others. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

SHRINK = 4
"""A set that fell to this part of its largest size is copied: sets of Python never shrink."""


class TagIndex(Generic[K]):
    """An index of keys by their tags. It holds what ``add`` was called for and ``discard`` not.

    Args:
        tags_of: the tags of a key, always the same ones. Each key is a tag of itself besides.
    """

    def __init__(self, tags_of: Callable[[K], Iterable[Hashable]]) -> None:
        self._tags_of = tags_of
        # Most tags have one key: a set for each would cost more than the keys.
        self._keys: dict[Hashable, K | _Keys[K]] = {}

    def add(self, key: K) -> None:
        """Index a key that is not indexed."""
        for tag in self._tags_of(key):
            found = self._keys.setdefault(tag, key)
            if isinstance(found, _Keys):
                found.add(key)
                found.largest = max(found.largest, len(found))
            elif found is not key:
                self._keys[tag] = _Keys((found, key))

    def discard(self, keys: Iterable[K]) -> None:
        """Forget indexed keys."""
        tags_of, indexed = self._tags_of, self._keys
        for key in keys:
            for tag in tags_of(key):
                found = indexed.pop(tag)
                if not isinstance(found, _Keys) or len(found) == 1:
                    continue
                found.discard(key)
                indexed[tag] = _Keys(found) if len(found) * SHRINK < found.largest else found

    def clear(self) -> None:
        """Forget every key."""
        self._keys.clear()

    def find(self, tags: AbstractSet[Hashable] | None, among: Collection[K]) -> Collection[K]:
        """The keys that have any of ``tags``; costs what is found and the tags, or a scan if less.

        Args:
            tags: None: every key.
            among: all keys that are indexed.
        """
        if tags is None:
            return list(among)
        if len(tags) * 2 > len(among):  # a look at a key costs less than looking a tag up
            return [key for key in among if key in tags or not tags.isdisjoint(self._tags_of(key))]
        selected: set[K] = set()
        for tag in tags:
            found = self._keys.get(tag)
            if isinstance(found, _Keys):
                selected |= found
            elif found is not None:
                selected.add(found)
            if tag in among:
                selected.add(tag)  # type: ignore[arg-type]  # it is a key
        return selected


class _Keys(set[K]):
    """The keys of one tag.

    Attributes:
        largest: how many they were, at most, since the set was made.
    """

    __slots__ = ("largest",)

    def __init__(self, keys: Iterable[K]) -> None:
        super().__init__(keys)
        self.largest = len(self)

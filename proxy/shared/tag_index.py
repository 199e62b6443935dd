"""Finds the keys that have a tag, such as an owner, without looking at all other keys. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

SHRINK = 4
"""A set is copied when it is smaller than its largest size divided by this number: a Python set
never gives memory back."""


class TagIndex(Generic[K]):
    """An index of keys by their tags. ``add`` adds a key, and ``discard`` removes it.

    Args:
        tags_of: returns the tags of a key, always the same ones. Each key is also a tag of itself.
    """

    def __init__(self, tags_of: Callable[[K], Iterable[Hashable]]) -> None:
        self._tags_of = tags_of
        # Most tags have only one key, and a set for each of them would need more memory than the
        # keys. So a tag with one key holds the key itself.
        self._keys: dict[Hashable, K | _Keys[K]] = {}

    def add(self, key: K) -> None:
        """Add a key that is not in the index."""
        for tag in self._tags_of(key):
            found = self._keys.setdefault(tag, key)
            if isinstance(found, _Keys):
                found.add(key)
                found.largest = max(found.largest, len(found))
            elif found is not key:
                self._keys[tag] = _Keys((found, key))

    def discard(self, keys: Iterable[K]) -> None:
        """Remove keys that are in the index."""
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
        """The keys that have any of ``tags``, or are one of them.

        The time grows with the number of keys found and of tags, or with the number of all keys if
        that is faster.

        Args:
            tags: if None, find every key.
            among: all keys that are in the index.
        """
        if tags is None:
            return list(among)
        if len(tags) * 2 > len(among):  # to look at a key costs less than to look up a tag
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
        largest: the largest number of keys since the set was made.
    """

    __slots__ = ("largest",)

    def __init__(self, keys: Iterable[K]) -> None:
        super().__init__(keys)
        self.largest = len(self)

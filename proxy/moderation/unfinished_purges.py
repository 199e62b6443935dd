"""What the unfinished purges cover: of that, nothing in a shared store is read or written. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from proxy.model.keys import BlobKey, Tag
from proxy.model.selection import Selection


class UnfinishedPurges:
    """The tags of unfinished purges.

    Args:
        unknown: the numbers of purges whose selections are not known: while one of them is not
            finished, every blob is covered.
    """

    def __init__(self, unknown: Iterable[int] = ()) -> None:
        self._unknown = set(unknown)
        self._tags: dict[int, list[Tag]] = {}
        self._count: Counter[Tag] = Counter()

    def add(self, purge: int, selection: Selection) -> None:
        """Add a selection of a purge."""
        self._tags.setdefault(purge, []).append(selection.tag)
        self._count[selection.tag] += 1

    def discard(self, purge: int) -> None:
        """Remove a finished purge. It may be one that was never added."""
        self._unknown.discard(purge)
        for tag in self._tags.pop(purge, ()):
            self._count[tag] -= 1
            if not self._count[tag]:
                del self._count[tag]

    def covers(self, blob: BlobKey) -> bool:
        """Whether an unfinished purge may cover ``blob``."""
        if self._unknown:
            return True
        return bool(self._count) and any(tag in self._count for tag in blob.tags)

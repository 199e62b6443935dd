"""What the index says of files that were read lately, so that a hit need not ask it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

from proxy.model.formats import Format
from proxy.model.keys import ImageKey
from proxy.model.selection import Covering
from proxy.shared.expiring_map import ExpiringMap
from proxy.shared.memory_cost import TAG, cost_of

MAX_BYTES = 16 * 1024**2
"""Bytes for all of them: about ten thousand."""

TRUSTED_SECONDS = 3600.0
"""Seconds in which the index is not asked again: as long as a result is served from memory."""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file of the cache that was as the index says.

    Attributes:
        path: absolute.
        written: seconds since the epoch.
    """

    path: bytes
    format: Format
    size: int
    digest: bytes
    written: float


class LatelyRead:
    """A bounded map of files by the key of their result. Forgets what a purge or a block covers.

    A file whose reading began before ``forget`` is not remembered: see ``add``.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._files: ExpiringMap[ImageKey, KnownFile] = ExpiringMap(
            max_bytes, cost=_cost, tags=attrgetter("blob.tags")
        )
        self._forgotten = 0

    def __len__(self) -> int:
        return len(self._files)

    @property
    def moment(self) -> int:
        """What ``add`` is told of the time when the reading began."""
        return self._forgotten

    def find(self, key: ImageKey, now: float) -> KnownFile | None:
        """Return the file of ``key`` at ``now``, seconds on Trio's clock. Counts as a use."""
        return self._files.get(key, now)

    def add(self, key: ImageKey, file: KnownFile, now: float, since: int) -> None:
        """Remember a file that was read, unless anything was forgotten ``since`` that moment."""
        if since == self._forgotten:
            self._files.put(key, file, now + TRUSTED_SECONDS)

    def discard(self, key: ImageKey) -> None:
        """Forget the file of ``key``."""
        self._files.remove(key)

    def forget(self, covering: Covering) -> None:
        """Forget what is covered."""
        self._forgotten += 1
        self._files.remove_tagged(covering.tags)


def _cost(key: ImageKey, file: KnownFile) -> int:
    return cost_of(key, file) + len(key.blob.tags) * TAG

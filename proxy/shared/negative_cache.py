"""What is remembered of failures, so that a dead link is no load on a PDS. Bounded; pure."""

from __future__ import annotations

from proxy.errors import (
    BlobNotFound,
    CidMismatch,
    ImageProxyError,
    ImageTooLarge,
    UndecodableImage,
    UnsupportedImage,
)
from proxy.model.keys import BlobKey, Tag
from proxy.model.selection import Covering
from proxy.shared.expiring_map import ExpiringMap

MAX_ENTRIES = 100_000
"""Failures remembered; about 110 MB when full, with their messages."""

SETTLED = (BlobNotFound, CidMismatch, ImageTooLarge, UnsupportedImage, UndecodableImage)
"""Failures that lie in the blob or its owner: asking again soon brings the same."""


class NegativeCache:
    """The last failure of each blob.

    A settled failure is remembered at once. Any other may have been a moment's, so the next
    request tries afresh; when that fails too, it is remembered as well.

    Args:
        ttl: seconds; 0 remembers nothing.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        # Each failure, and whether it is settled or was repeated.
        self._failures: ExpiringMap[BlobKey, tuple[ImageProxyError, bool]] = ExpiringMap(
            MAX_ENTRIES, tags=_tags_of
        )

    def __len__(self) -> int:
        return len(self._failures)

    def check(self, blob: BlobKey, now: float) -> None:
        """Raise the remembered failure of ``blob``, a copy, or pass."""
        error, is_in_force = self._failures.get(blob, now) or (None, False)
        if error is not None and is_in_force:
            raise error.fresh()

    def failed(self, blob: BlobKey, error: ImageProxyError, now: float) -> None:
        """Note a failure of ``blob``."""
        is_in_force = isinstance(error, SETTLED) or self._failures.get(blob, now) is not None
        self._failures.put(blob, (error.fresh(), is_in_force), now + self._ttl)

    def succeeded(self, blob: BlobKey) -> None:
        """Forget what was noted of ``blob``."""
        self._failures.remove(blob)

    def purge(self, covering: Covering) -> None:
        """Forget what is covered."""
        self._failures.remove_tagged(covering.tags)


def _tags_of(blob: BlobKey) -> tuple[Tag, ...]:
    # The map takes each key as a tag of its own.
    return blob.did, blob.cid

"""Remembers failures of blobs, so that a dead link puts no load on a PDS. Bounded; pure."""

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
"""The number of failures remembered; about 110 MB when full, with their messages."""

SETTLED = (BlobNotFound, CidMismatch, ImageTooLarge, UnsupportedImage, UndecodableImage)
"""Failures whose cause is the blob or its owner: another fetch soon after fails in the same way."""


class NegativeCache:
    """The last failure of each blob.

    A settled failure is in force at once. Any other failure may be temporary, so the next request
    tries again; if that fails too, the failure is in force as well.

    Args:
        ttl: how long a failure is remembered, in seconds; 0 remembers nothing.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        # Each failure, and whether it is in force: it is settled, or happened twice.
        self._failures: ExpiringMap[BlobKey, tuple[ImageProxyError, bool]] = ExpiringMap(
            MAX_ENTRIES, tags=_tags_of
        )

    def __len__(self) -> int:
        return len(self._failures)

    def check(self, blob: BlobKey, now: float) -> None:
        """Raise a copy of the failure of ``blob`` if one is in force; otherwise return."""
        error, is_in_force = self._failures.get(blob, now) or (None, False)
        if error is not None and is_in_force:
            raise error.fresh()

    def failed(self, blob: BlobKey, error: ImageProxyError, now: float) -> None:
        """Remember a failure of ``blob``."""
        is_in_force = isinstance(error, SETTLED) or self._failures.get(blob, now) is not None
        self._failures.put(blob, (error.fresh(), is_in_force), now + self._ttl)

    def succeeded(self, blob: BlobKey) -> None:
        """Forget the failure of ``blob``."""
        self._failures.remove(blob)

    def purge(self, covering: Covering) -> None:
        """Forget the failures of all blobs that ``covering`` covers."""
        self._failures.remove_tagged(covering.tags)


def _tags_of(blob: BlobKey) -> tuple[Tag, ...]:
    # The blob itself is left out: the map uses each key as a tag of itself.
    return blob.did, blob.cid

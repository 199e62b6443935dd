"""What is remembered of failures, so that a dead link is no load on a PDS. Bounded; pure."""

from __future__ import annotations

from collections import OrderedDict

from proxy.errors import (
    BlobNotFound,
    CidMismatch,
    ImageProxyError,
    ImageTooLarge,
    UndecodableImage,
    UnsupportedImage,
)
from proxy.model.keys import BlobKey
from proxy.model.selection import Covering

MAX_ENTRIES = 100_000
"""Failures remembered; about 40 MB when full."""

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
        self._failures: OrderedDict[BlobKey, tuple[ImageProxyError, float, bool]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def check(self, blob: BlobKey, now: float) -> None:
        """Raise the remembered failure of ``blob``, a copy, or pass."""
        error, at, is_in_force = self._failures.get(blob, (None, 0.0, False))
        if error is None or not is_in_force:
            return
        if now - at < self._ttl:
            raise error.fresh()
        del self._failures[blob]

    def failed(self, blob: BlobKey, error: ImageProxyError, now: float) -> None:
        """Note a failure of ``blob``."""
        _, at, _ = self._failures.pop(blob, (None, -self._ttl, False))
        is_in_force = isinstance(error, SETTLED) or now - at < self._ttl
        self._failures[blob] = (error.fresh(), now, is_in_force)
        while len(self._failures) > MAX_ENTRIES:
            self._failures.popitem(last=False)

    def succeeded(self, blob: BlobKey) -> None:
        """Forget what was noted of ``blob``."""
        self._failures.pop(blob, None)

    def purge(self, covering: Covering) -> None:
        """Forget what is covered."""
        for blob in [blob for blob in self._failures if covering.covers_blob(blob)]:
            del self._failures[blob]

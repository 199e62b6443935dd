"""Remembers failures, so that a dead link puts no load on a PDS, and a costly picture none on us.

Bounded; pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.errors import (
    BlobNotFound,
    CidMismatch,
    ImageProxyError,
    ImageTooLarge,
    UndecodableImage,
    UnsupportedImage,
)
from proxy.model.keys import BlobKey, ImageKey, Tag
from proxy.model.selection import Covering
from proxy.shared.expiring_map import ExpiringMap
from proxy.shared.memory_cost import TAG, cost_of

MAX_BYTES = 48 * 1024**2
"""Bytes of failures remembered: room for about 35,000, with their messages."""

SETTLED = (BlobNotFound, CidMismatch, ImageTooLarge, UnsupportedImage, UndecodableImage)
"""Failures whose cause is the blob or its owner: another fetch soon after fails in the same way."""


LONGEST = 86_400.0
"""Seconds that a failure which comes again and again may be remembered."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """A failure, the time until which it counts, and the seconds for which it was remembered.

    Attributes:
        is_in_force: whether it is settled, or happened twice.
    """

    error: ImageProxyError
    is_in_force: bool
    until: float
    term: float


class NegativeCache:
    """The last failure of each blob, or of each result.

    A settled failure is in force at once. Any other failure may be temporary, so the next request
    tries again; if that fails too, the failure is in force as well.

    Args:
        ttl: how long a failure is remembered, in seconds; 0 remembers nothing.
        longest: if more than ``ttl``, a failure that comes again after its time is remembered for
            twice as long as before, up to this number of seconds. It is forgotten after the same
            time without another failure.
    """

    def __init__(self, ttl: float, *, longest: float = 0) -> None:
        self._ttl = ttl
        self._longest = max(ttl, longest)
        self._grows = longest > ttl > 0
        self._failures: ExpiringMap[BlobKey | ImageKey, _Failure] = ExpiringMap(
            MAX_BYTES, cost=_cost, tags=_tags_of
        )

    def __len__(self) -> int:
        return len(self._failures)

    def check(self, key: BlobKey | ImageKey, now: float) -> None:
        """Raise a copy of the failure of ``key`` if one is in force; otherwise return."""
        found = self._failures.get(key, now)
        if found is not None and found.is_in_force and now < found.until:
            raise found.error.fresh()

    def failed(self, key: BlobKey | ImageKey, error: ImageProxyError, now: float) -> None:
        """Remember a failure of ``key``."""
        before = self._failures.get(key, now)
        is_repeated = before is not None and now < before.until
        term = self._ttl
        if before is not None and self._grows:
            # Several requests may fail with one attempt: that is one failure.
            term = before.term if is_repeated else min(2 * before.term, self._longest)
        in_force = isinstance(error, SETTLED) or is_repeated
        kept = 2 * term if self._grows else term
        self._failures.put(key, _Failure(error.fresh(), in_force, now + term, term), now + kept)

    def succeeded(self, key: BlobKey | ImageKey) -> None:
        """Forget the failure of ``key``."""
        self._failures.remove(key)

    def purge(self, covering: Covering) -> None:
        """Forget the failures of all blobs that ``covering`` covers, and of their results."""
        self._failures.remove_tagged(covering.tags)


def _tags_of(key: BlobKey | ImageKey) -> tuple[Tag, ...]:
    if isinstance(key, ImageKey):
        return key.blob.tags
    # The map uses each key as a tag of itself, so the tag that is the blob itself is left out.
    return tuple(tag for tag in key.tags if tag != key)


def _cost(key: BlobKey | ImageKey, failure: _Failure) -> int:
    return cost_of(key, failure) + len(_tags_of(key)) * TAG

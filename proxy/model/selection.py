"""Which owners, blobs or pairs a purge or a block means. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey, ImageKey


@dataclass(frozen=True, slots=True)
class Selection:
    """What to purge: an owner's entries, a blob's of every owner, or (both) a pair's.

    Raises:
        ValueError: neither is given.
    """

    did: Did | None = None
    cid: Cid | None = None

    def __post_init__(self) -> None:
        if self.did is None and self.cid is None:
            raise ValueError("a selection needs a DID, a CID, or both")

    def covers(self, key: ImageKey) -> bool:
        """Whether a result is selected."""
        return self.covers_blob(key.blob)

    def covers_blob(self, blob: BlobKey) -> bool:
        """Whether a blob is selected."""
        return self.did in (None, blob.did) and self.cid in (None, blob.cid)


class Covering(Protocol):
    """What tells which results are meant: a selection, several, or everything."""

    def covers(self, key: ImageKey) -> bool:
        """Whether a result is meant."""
        ...

    def covers_blob(self, blob: BlobKey) -> bool:
        """Whether a blob is meant."""
        ...


class Selections:
    """Several selections as one, asked in constant time."""

    def __init__(self, selections: Iterable[Selection]) -> None:
        self._pairs = frozenset((each.did, each.cid) for each in selections)

    def covers(self, key: ImageKey) -> bool:
        """See ``Covering``."""
        return self.covers_blob(key.blob)

    def covers_blob(self, blob: BlobKey) -> bool:
        """See ``Covering``."""
        return (
            (blob.did, None) in self._pairs
            or (None, blob.cid) in self._pairs
            or (blob.did, blob.cid) in self._pairs
        )


class Everything:
    """All there is."""

    def covers(self, key: ImageKey) -> bool:
        """See ``Covering``."""
        return True

    def covers_blob(self, blob: BlobKey) -> bool:
        """See ``Covering``."""
        return True

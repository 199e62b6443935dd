"""Which owners, blobs or pairs a purge or a block means. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol, cast

from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey, Tag


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

    @property
    def tag(self) -> Tag:
        """What every blob that is selected has among its tags, and no other blob."""
        if self.did is not None and self.cid is not None:
            return BlobKey(self.did, self.cid)
        return cast("Did | Cid", self.did or self.cid)

    @property
    def tags(self) -> AbstractSet[Tag]:
        """See ``Covering``."""
        return frozenset((self.tag,))

    def covers_blob(self, blob: BlobKey) -> bool:
        """Whether a blob is selected."""
        return self.did in (None, blob.did) and self.cid in (None, blob.cid)


class Covering(Protocol):
    """Which blobs and results are meant: those of a selection, of several, or all."""

    @property
    def tags(self) -> AbstractSet[Tag] | None:
        """What is meant is what has any of these tags; None: everything."""
        ...

    def covers_blob(self, blob: BlobKey) -> bool:
        """Whether a blob is meant."""
        ...


class Selections:
    """Several selections as one, asked in constant time."""

    def __init__(self, selections: Iterable[Selection]) -> None:
        self._tags = frozenset(each.tag for each in selections)

    @property
    def tags(self) -> AbstractSet[Tag]:
        """See ``Covering``."""
        return self._tags

    def covers_blob(self, blob: BlobKey) -> bool:
        """See ``Covering``."""
        return not self._tags.isdisjoint(blob.tags)


class Everything:
    """All there is."""

    tags: AbstractSet[Tag] | None = None

    def covers_blob(self, blob: BlobKey) -> bool:
        """See ``Covering``."""
        return True

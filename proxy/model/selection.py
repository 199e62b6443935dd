"""Selections: the owners, blobs or pairs that a purge or a block applies to. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from proxy.model.identifiers import Cid, Did, content_cid
from proxy.model.keys import BlobKey, Tag


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects all blobs of an owner, a blob of every owner, or (with both) a blob of one owner.

    A CID selects its content: the blobs of every CID with the same digest.

    Raises:
        ValueError: neither a DID nor a CID is given.
    """

    did: Did | None = None
    cid: Cid | None = None

    def __post_init__(self) -> None:
        if self.did is None and self.cid is None:
            raise ValueError("a selection needs a DID, a CID, or both")

    @property
    def tag(self) -> Tag:
        """The tag that every selected blob has, and no other blob."""
        if self.did is not None and self.cid is not None:
            return BlobKey(self.did, self.cid).content
        return self.did or content_cid(self.cid or Cid(""))

    @property
    def tags(self) -> AbstractSet[Tag]:
        """See ``Covering``."""
        return frozenset((self.tag,))

    def covers_blob(self, blob: BlobKey) -> bool:
        """Whether a blob is selected."""
        return self.tag in blob.tags


class Covering(Protocol):
    """A set of blobs and their results: those of one selection, of several, or all."""

    @property
    def tags(self) -> AbstractSet[Tag] | None:
        """A blob is covered if it has any of these tags; None: all blobs are covered."""
        ...

    def covers_blob(self, blob: BlobKey) -> bool:
        """Whether a blob is covered."""
        ...


class Selections:
    """Several selections as one. ``covers_blob`` takes constant time."""

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
    """Covers all blobs."""

    tags: AbstractSet[Tag] | None = None

    def covers_blob(self, blob: BlobKey) -> bool:
        """See ``Covering``."""
        return True

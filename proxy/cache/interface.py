"""The interface of a cache: small enough for a tier shared by machines to implement. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy.model.formats import Format
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Covering, Selection


@dataclass(frozen=True, slots=True)
class Entry:
    """A result in the cache.

    Attributes:
        seen: when its PDS last had the blob, seconds since the epoch; None: just now, or not known.
    """

    data: bytes
    format: Format
    seen: float | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """A cached blob, and the time its PDS last had it (seconds since the epoch)."""

    blob: BlobKey
    checked: float


class Cache(Protocol):
    """Stores results by key. Every async method may raise ``OSError`` if the storage fails."""

    def at_once(self, key: ImageKey) -> Entry | None:
        """Return the entry of ``key`` if that needs no wait, else None. Counts as a use."""
        ...

    def forget(self, covering: Covering) -> None:
        """Drop what this process remembers of covered entries, though not the entries."""
        ...

    async def get(self, key: ImageKey) -> Entry | None:
        """Return the entry of ``key``, or None. Counts as a use of the entry."""
        ...

    async def put(self, key: ImageKey, entry: Entry) -> None:
        """Store ``entry``, completely or not at all: cancellation leaves no partial entry."""
        ...

    async def put_all(self, entries: Mapping[ImageKey, Entry]) -> None:
        """Store several, for less than as many ``put`` cost; otherwise like ``put``.

        If it raises, each of them was stored completely or not at all.
        """
        ...

    async def purge(self, *selections: Selection) -> int:
        """Remove every entry that any of ``selections`` covers, in all presets and formats.

        Returns the number of removed entries. There may be 100,000 selections.
        """
        ...

    async def cleanup(self) -> int:
        """Remove entries past their TTL or over the size limit; return their number."""
        ...

    async def check(self) -> None:
        """Raise ``OSError`` if no entry could be stored now."""
        ...

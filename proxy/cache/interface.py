"""What a cache is to this service: small enough for a shared tier to be one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from proxy.model.formats import Format
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection


@dataclass(frozen=True, slots=True)
class Entry:
    """A result as it is kept."""

    data: bytes
    format: Format


@dataclass(frozen=True, slots=True)
class Due:
    """A cached blob, and when its PDS was last known to have it (seconds since the epoch)."""

    blob: BlobKey
    checked: float


class Cache(Protocol):
    """Keeps results by key. Every method may raise ``OSError`` when its store fails."""

    async def get(self, key: ImageKey) -> Entry | None:
        """The entry of ``key``, or None. Counts as a use of it."""
        ...

    async def put(self, key: ImageKey, entry: Entry) -> None:
        """Keep ``entry``, whole or not at all: cancellation leaves no partial entry."""
        ...

    async def purge(self, *selections: Selection) -> int:
        """Remove what any of ``selections`` covers, over every preset and format.

        Returns how many entries there were. There may be 100,000 selections.
        """
        ...

    async def cleanup(self) -> int:
        """Remove what is past its TTL or over the size limit; how many that were."""
        ...

    async def check(self) -> None:
        """Raise ``OSError`` where nothing could be kept now."""
        ...

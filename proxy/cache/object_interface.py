"""The interface of the client of an object store. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

PAGE = 1000
"""Objects of one request to list, and the most to delete at once: S3 allows no more."""


class Objects(Protocol):
    """The objects of a store, by path. Every method raises ``EgressError`` if the store fails."""

    def get(self, path: str, max_bytes: int) -> bytes | None:
        """Return an object; None if there is none.

        Raises:
            Oversized: it is larger than ``max_bytes``.
        """
        ...

    def put(self, path: str, content: bytes, *, replaces: bool = False) -> bool:
        """Write an object whole. Return False if there was one, and it was not to be replaced."""
        ...

    def pages(self, prefix: str) -> Iterator[list[str]]:
        """Yield the paths below ``prefix``, up to ``PAGE`` at once; each step is a request."""
        ...

    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects, up to ``PAGE``. It is no failure if there are none."""
        ...


class Oversized(ValueError):
    """An object is larger than anything that is written."""

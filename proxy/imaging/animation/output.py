"""Collects the parts of a file that may not exceed a number of bytes. Pure."""

from __future__ import annotations


class TooManyBytes(Exception):
    """The file would be larger than it may be."""


class Output:
    """The parts so far; ``most`` is the maximum of their bytes."""

    def __init__(self, most: int) -> None:
        self._parts: list[bytes] = []
        self._left = most

    def add(self, *parts: bytes) -> None:
        """Raises TooManyBytes."""
        self._left -= sum(map(len, parts))
        if self._left < 0:
            raise TooManyBytes
        self._parts += parts

    def joined(self) -> bytes:
        return b"".join(self._parts)

"""The file in memory through which a worker gets its sources: written here, mapped there.

The worker maps it to read alone, before it is confined, and has no descriptor of it: so it needs no
further system call for a source, and cannot change the size of the file. Nothing is ever read from
it here.
"""

from __future__ import annotations

import os
import tempfile

KEPT = 1 << 20
"""Bytes of the file that stay in memory between jobs; most sources are smaller."""


class SharedSource:
    """A file of ``room`` bytes. One thread at a time may use it.

    Raises:
        OSError: there are no more descriptors.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._descriptor = _file_in_memory()
        os.ftruncate(self._descriptor, room)

    def to_read(self) -> int:
        """Return another descriptor, of which no writable mapping can be made."""
        return read_only(self._descriptor)

    def put(self, source: bytes) -> None:
        """Write ``source``, at most ``room`` bytes, to the beginning.

        Raises:
            OSError: there is no memory for it.
        """
        at = 0
        while at < len(source):
            at += os.pwrite(self._descriptor, memoryview(source)[at:], at)

    def clear(self) -> None:
        """Give back the memory of the last source. The worker must not be reading it."""
        os.ftruncate(self._descriptor, 0)
        os.ftruncate(self._descriptor, self.room)

    def close(self) -> None:
        """May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class VideoSource:
    """A video in a file of its own, which somebody else has written and closes.

    It takes the place of a ``SharedSource``: its worker has one job, and maps the whole file.

    Args:
        descriptor: of the file.
        room: its bytes, at least one.
    """

    def __init__(self, descriptor: int, room: int) -> None:
        self.room = room
        self._descriptor = descriptor

    def to_read(self) -> int:
        """See ``SharedSource.to_read``."""
        return read_only(self._descriptor)

    def put(self, source: bytes) -> None:
        """Do nothing: the source is there."""

    def clear(self) -> None:
        """Do nothing: the file is somebody else's."""

    def close(self) -> None:
        """Do nothing: the file is somebody else's."""


def read_only(descriptor: int) -> int:
    """Return another descriptor of a file, of which no writable mapping can be made."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # there is no such folder
        return os.dup(descriptor)


def _file_in_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("source", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())

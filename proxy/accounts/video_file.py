"""A file for a video on its way to a worker: without a name, so that no crash leaves it behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from proxy.errors import Busy

GATHERED = 1 << 20
"""Bytes that are written at a time."""

LEFT_FREE = 256 << 20
"""Bytes of the disk that videos leave free, for results and decisions."""


class VideoFile:
    """What has arrived of a video; made by ``video_file``. One task at a time may use it.

    Attributes:
        size: bytes, as far as they were written.
    """

    def __init__(self, descriptor: int, threads: trio.CapacityLimiter) -> None:
        self.descriptor = descriptor
        self.size = 0
        self._threads = threads
        self._gathered = bytearray()

    async def add(self, piece: bytes) -> None:
        """Append ``piece``.

        Raises:
            Busy: the disk has no room for it.
        """
        self._gathered += piece
        if len(self._gathered) >= GATHERED:
            await self._write()

    async def finish(self) -> None:
        """Write the rest. Raises as ``add``."""
        await self._write()

    async def head(self, length: int) -> bytes:
        """The first bytes of the file."""
        return await trio.to_thread.run_sync(
            os.pread, self.descriptor, length, 0, limiter=self._threads
        )

    async def empty(self) -> None:
        """Forget what has arrived: another host is asked for all of it."""
        self._gathered.clear()
        self.size = 0
        await trio.to_thread.run_sync(os.ftruncate, self.descriptor, 0, limiter=self._threads)

    async def _write(self) -> None:
        data, self._gathered = bytes(self._gathered), bytearray()
        try:
            await trio.to_thread.run_sync(self._append, data, limiter=self._threads)
        except OSError as error:
            raise Busy(f"no room for a video: {error}") from error

    def _append(self, data: bytes) -> None:
        room = os.fstatvfs(self.descriptor)
        if room.f_bavail * room.f_frsize < LEFT_FREE + len(data):
            raise OSError("the disk is nearly full")
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, self.size)
            self.size += written
            view = view[written:]


@asynccontextmanager
async def video_file(folder: Path, threads: trio.CapacityLimiter) -> AsyncIterator[VideoFile]:
    """Have an empty file in ``folder``. After the block it is gone, whatever happened in it.

    Args:
        threads: the limiter of the threads that use it.

    Raises:
        Busy: it cannot be made.
    """
    try:
        descriptor = await trio.to_thread.run_sync(_without_name, folder, limiter=threads)
    except OSError as error:
        raise Busy(f"no file for a video: {error}") from error
    try:
        yield VideoFile(descriptor, threads)
    finally:
        # To free 300 MB takes a file system a moment.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(os.close, descriptor, limiter=threads)


def _without_name(folder: Path) -> int:
    if hasattr(os, "O_TMPFILE"):
        # Some file systems have none.
        with suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())

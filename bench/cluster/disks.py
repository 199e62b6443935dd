"""Small disks in memory, which can be filled. Needs root."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from bench.processes import BenchError

SIZE = "32m"

_BALLAST = "ballast"

_PIECES = (1024 * 1024, 4096)


@asynccontextmanager
async def small_disk(folder: Path) -> AsyncIterator[None]:
    """A file system of ``SIZE`` at ``folder``, which is made, for the time of the block."""
    await trio.Path(folder).mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "imageproxy-bench", str(folder)]
    done = await trio.run_process(mount, check=False, capture_stderr=True)
    if done.returncode:
        raise BenchError(f"{folder} cannot be mounted: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            # Processes of nodes that are ending may still have files open there.
            await trio.run_process(["umount", "--lazy", str(folder)], check=False)


def fill(folder: Path) -> None:
    """Leave no room on the disk of ``folder``. What is freed later can be filled again. Blocks."""
    with (folder / _BALLAST).open("ab", buffering=0) as ballast:
        for piece in _PIECES:
            try:
                # A write to a disk with too little room may be shortened.
                while ballast.write(bytes(piece)) == piece:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def empty(folder: Path) -> None:
    """Make the room again. Blocks."""
    with suppress(FileNotFoundError):
        (folder / _BALLAST).unlink()

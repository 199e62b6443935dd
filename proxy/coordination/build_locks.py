"""Which results the processes on one folder are making: single flight across processes.

A claim is a lock on one byte of a file that nobody reads (fcntl, POSIX record locks): the byte's
position is a hash of the key. The kernel frees a byte at once when its process ends, and there is
nothing to clean up. Within a process single flight already tells who makes what.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from proxy.model.keys import ImageKey

POLL_SECONDS = 0.01
"""How soon a claim that was freed is seen. Asking is one system call."""


class BuildLocks:
    """This process's claims.

    Args:
        path: the file; made, with its folder, when it is first used. No other code of this
            process may open it: closing any descriptor of a file drops a process's locks on it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._held: set[int] = set()

    async def claim(self, key: ImageKey) -> tuple[Callable[[], None], bool]:
        """Wait until no other process makes the result of ``key``, and claim it.

        Cancellation leaves no claim. Where the file cannot be used nothing is claimed and nobody
        waits: the work may then be done twice.

        Returns:
            What frees the claim, to be called once; and whether another process had it.
        """
        byte = _byte_of(key)
        waited = False
        while not self._try(byte):
            waited = True
            await trio.sleep(POLL_SECONDS)
        return lambda: self._free(byte), waited

    def close(self) -> None:
        """Free every claim."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._held.clear()

    def _try(self, byte: int) -> bool:
        if byte in self._held:  # by a write that is not done yet
            return False
        try:
            if self._descriptor is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o600)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN) and self._descriptor is not None:
                return False
        self._held.add(byte)
        return True

    def _free(self, byte: int) -> None:
        self._held.discard(byte)
        if self._descriptor is not None:
            with suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)


def _byte_of(key: ImageKey) -> int:
    """A position that two keys share once in 2**62 pairs; then one waits for the other."""
    name = f"{key.etag} {key.blob.did} {key.format or ''}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2

"""Locks on results that are being made: single flight across the processes on one folder.

A build lock is a lock on one byte of a file that is never read (fcntl, POSIX record locks): the
byte's position is a hash of the key. The kernel releases it at once when its process ends, so there
is nothing to clean up. Within a process, single flight already makes each result once.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog
import trio

from proxy.model.keys import ImageKey
from proxy.shared.regular_file import open_regular

FIRST_POLL_SECONDS = 0.01
"""The first pause before a lock that another process holds is tried again. A try is one system
call."""

POLL_GROWTH = 1.25
"""Each pause is this many times as long as the one before: at most a fifth of the wait is lost."""

LONGEST_POLL_SECONDS = 0.25
"""The longest pause between two tries."""

log = structlog.get_logger(__name__)


class BuildLocks:
    """The build locks of this process.

    Args:
        path: the file; made, with its folder, when it is first used. No other code of this
            process may open it: closing any descriptor of a file drops a process's locks on it.
        timeout: seconds to wait for another process, which may be stopped or hang. After this
            time the work is done twice.
    """

    def __init__(self, path: Path, *, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._descriptor: int | None = None
        self._opening = trio.Lock()
        self._held: set[int] = set()

    async def acquire(self, key: ImageKey) -> tuple[Callable[[], None], bool]:
        """Wait until no other process makes the result of ``key``, and lock it.

        Cancellation leaves no lock behind. After ``timeout`` seconds this returns without a lock.
        If the file cannot be used, it does so at once. The work may then be done twice.

        Returns:
            A function that releases the lock, to be called once; and whether the lock was held
            by another process.
        """
        if self._descriptor is None:
            await self._open()
        byte = _byte_of(key)
        deadline = trio.current_time() + self._timeout
        pause = FIRST_POLL_SECONDS
        waited = False
        while not self._try(byte):
            waited = True
            left = deadline - trio.current_time()
            if left <= 0:
                log.warning("build lock not released in time; the work is done twice")
                return _release_nothing, waited
            await trio.sleep(min(pause, left))
            pause = min(pause * POLL_GROWTH, LONGEST_POLL_SECONDS)
        return partial(self._release, byte), waited

    def close(self) -> None:
        """Release every lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._held.clear()

    async def _open(self) -> None:
        # One at a time: closing a second descriptor would drop the locks of the first.
        async with self._opening:
            if self._descriptor is None:
                with suppress(OSError):
                    self._descriptor = await trio.to_thread.run_sync(self._open_file)

    def _open_file(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return open_regular(self._path, os.O_RDWR | os.O_CREAT)

    def _try(self, byte: int) -> bool:
        if byte in self._held:  # a write of this process is still going on
            return False
        if self._descriptor is not None:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
        self._held.add(byte)
        return True

    def _release(self, byte: int) -> None:
        self._held.discard(byte)
        if self._descriptor is not None:
            with suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)


def _release_nothing() -> None:
    """The release of a lock that was not acquired."""


def _byte_of(key: ImageKey) -> int:
    """A position that two keys share once in 2**62 pairs; then one waits for the other."""
    key = key._replace(blob=key.blob.content)
    name = f"{key.etag} {key.blob.did} {key.format or ''}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2

"""Chooses the process that does a chore for all processes that share a folder: the leader.

The leader keeps a file locked (flock). When its process ends, for whatever reason, the kernel
unlocks the file, and another process takes over.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

from proxy.coordination.file_lock import try_lock

RETRY_SECONDS = 5.0
"""How often a process tries to become the leader."""

log = structlog.get_logger(__name__)


class Leadership:
    """The right to do one chore. Blocks for microseconds; one thread at a time.

    Args:
        path: the file to lock. It is made, with its folder, and stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Whether this process is now the leader. It stays so until ``give_up``. Idempotent.

        Raises:
            OSError: the file cannot be made or locked.
        """
        if self._descriptor is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = try_lock(self._path, os.O_CREAT)
        return self._descriptor is not None

    def give_up(self) -> None:
        """Let another process become the leader. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


async def as_leader(leadership: Leadership, chore: Callable[[], Awaitable[None]]) -> None:
    """Wait to become the leader, then do ``chore``. After it, or on cancellation, give up."""
    try:
        await _take(leadership)
        await chore()
    finally:
        leadership.give_up()


async def _take(leadership: Leadership) -> None:
    while True:
        try:
            if await trio.to_thread.run_sync(leadership.take):
                return
        except OSError as error:
            log.error("no process can become the leader of a chore", error=str(error))
        await trio.sleep(RETRY_SECONDS)

"""Chores that one process does for all that share a folder: whose turn it is.

A turn is a file that its holder keeps locked (flock). The kernel unlocks it when the process is
gone, however that happened, and another one takes over.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

from proxy.coordination.file_lock import try_lock

TURN_SECONDS = 5.0
"""How often a process asks whether the turn has become free."""

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
        """Whether it is this process's turn now; it stays so until ``give_up``. Idempotent.

        Raises:
            OSError: the file cannot be made or locked.
        """
        if self._descriptor is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = try_lock(self._path, os.O_CREAT)
        return self._descriptor is not None

    def give_up(self) -> None:
        """Leave the turn to another process. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


async def as_leader(turn: Leadership, chore: Callable[[], Awaitable[None]]) -> None:
    """Wait for the turn, then do ``chore``; at its end, also by cancellation, the turn is free."""
    try:
        await _take(turn)
        await chore()
    finally:
        turn.give_up()


async def _take(turn: Leadership) -> None:
    while True:
        try:
            if await trio.to_thread.run_sync(turn.take):
                return
        except OSError as error:
            log.error("a chore's turn cannot be taken", error=str(error))
        await trio.sleep(TURN_SECONDS)

"""Chooses the process that does a chore for all processes that share a folder: the leader.

The leader keeps a file locked (flock). When its process ends, for whatever reason, the kernel
unlocks the file, and another process takes over.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import structlog
import trio
from trio_util import periodic

from proxy.coordination.file_lock import try_lock
from proxy.coordination.interface import Leadership

RETRY_SECONDS = 5.0
"""How often a process tries to become the leader."""

CHECK_SECONDS = 1.0
"""How often a leader checks that it still is one, where that can be lost."""

log = structlog.get_logger(__name__)


class FolderLeadership:
    """See ``interface.Leadership``. Blocks for microseconds; one thread at a time.

    Args:
        path: the file to lock. It is made, with its folder, and stays.
    """

    can_be_lost = False

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

    def holds(self) -> bool:
        """Whether this process is the leader."""
        return self._descriptor is not None

    def give_up(self) -> None:
        """Let another process become the leader. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


async def as_leader(leadership: Leadership, chore: Callable[[], Awaitable[None]]) -> None:
    """Wait to become the leader, then do ``chore``. After it, or on cancellation, give up.

    Where the leadership is lost, ``chore`` is cancelled, and begun again when it was regained.
    """
    try:
        while True:
            await _take(leadership)
            if not leadership.can_be_lost:
                return await chore()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_lost, leadership, nursery.cancel_scope)
                await chore()
                nursery.cancel_scope.cancel()
                return None
            leadership.give_up()
    finally:
        leadership.give_up()


async def _cancel_when_lost(leadership: Leadership, scope: trio.CancelScope) -> None:
    async with aclosing(periodic(CHECK_SECONDS)) as ticks:
        async for _ in ticks:
            if not await trio.to_thread.run_sync(leadership.holds):
                log.warning("another process may be the leader of a chore now")
                scope.cancel()


async def _take(leadership: Leadership) -> None:
    while True:
        try:
            if await trio.to_thread.run_sync(leadership.take):
                return
        except OSError as error:
            log.error("no process can become the leader of a chore", error=str(error))
        await trio.sleep(RETRY_SECONDS)

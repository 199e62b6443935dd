"""Work that one process of those on a folder does: the one that holds a file locked (flock)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

LOOK_SECONDS = 1.0
"""How soon another process takes over from one that ended; the kernel unlocks for a dead one."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def alone(path: Path) -> AsyncIterator[None]:
    """Hold the lock of ``path`` for the time of the block; wait until it is free.

    The calls block for microseconds. Cancellation leaves nothing locked.
    """
    descriptor = _locked(path)
    while descriptor is None:
        await trio.sleep(LOOK_SECONDS)
        descriptor = _locked(path)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError as error:
        log.error("feeds cannot be locked", error=str(error))
    else:
        return descriptor
    if descriptor is not None:
        os.close(descriptor)
    return None

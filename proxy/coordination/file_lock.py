"""Locks on files (flock). The kernel frees a lock when its process ends, for whatever reason."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from proxy.shared.regular_file import open_regular


def try_lock(file: Path, flags: int = 0) -> int | None:
    """A descriptor that holds the lock of ``file`` until it is closed; None: it is already locked.

    Args:
        flags: flags for open(2), in addition to those for reading and writing.

    Raises:
        OSError: the file cannot be opened or locked, or is not a regular one.
    """
    descriptor = open_regular(file, flags | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

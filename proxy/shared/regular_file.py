"""Opens regular files only: no FIFO, device, socket or symbolic link. Opening never waits."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotRegular(OSError):
    """The name is not that of a regular file."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(errno.EINVAL, "not a regular file", str(path))


def is_regular(path: Path | str) -> bool:
    """Whether ``path`` is a regular file, and not a link to one.

    Raises:
        OSError: it is missing, or cannot be looked at.
    """
    return stat.S_ISREG(os.lstat(path).st_mode)


def open_regular(path: Path | str, flags: int, mode: int = 0o600) -> int:
    """A descriptor of the file at ``path``, as open(2) with ``flags`` gives it.

    Raises:
        NotRegular: it is something else. It was not opened, or, if it took the place of a regular
            file in this moment, it was closed at once.
        OSError: it cannot be opened.
    """
    # To open a device may have an effect, so it is looked at first.
    try:
        if not is_regular(path):
            raise NotRegular(path)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    try:
        descriptor = os.open(path, flags | _FLAGS, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotRegular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(path)
    return descriptor

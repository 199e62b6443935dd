"""Reads files as far as the kernel has them in memory. Never waits for a disk.

``openat2`` with ``RESOLVE_CACHED`` (Linux 5.12) opens a name only if the kernel knows every part of
it, and ``preadv2`` with ``RWF_NOWAIT`` (Linux 4.14) reads only what is in the page cache. Both fail
rather than wait, so the event loop may call them. A descriptor lives for one read: one that is kept
would still give the content of a file that is removed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from typing import NamedTuple

_OPENAT2 = 437
"""The number of the system call, the same on all architectures that came before it."""

_AT_FDCWD = -100

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_RESOLVE_CACHED = 0x20

_MISSING = frozenset(
    # Older kernels, and filters of system calls. The last: file systems such as tmpfs.
    (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG, errno.EOPNOTSUPP)
)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_HOW = _OpenHow(_FLAGS, 0, _RESOLVE_CACHED)
_HOW_POINTER = ctypes.byref(_HOW)
_HOW_SIZE = ctypes.c_size_t(ctypes.sizeof(_OpenHow))


class Cached(NamedTuple):
    """What was read.

    Attributes:
        accessed: the access time, seconds since the epoch.
    """

    data: bytes
    accessed: float


class CachedFiles:
    """Reads whole files from the kernel's memory.

    Attributes:
        is_possible: False once the system has said that it cannot do this.
    """

    def __init__(self) -> None:
        self.is_possible = sys.platform == "linux"
        if self.is_possible:
            # It does not give Python's lock away, as no call of it waits.
            self._syscall = ctypes.PyDLL(None, use_errno=True).syscall

    def read(self, path: bytes, size: int) -> Cached | None:
        """Return the content of the file at ``path``; None: it has to be opened in a thread.

        None too if it has another size than ``size`` bytes, or is not a regular file.
        """
        if not self.is_possible:
            return None
        descriptor: int = self._syscall(_OPENAT2, _AT_FDCWD, path, _HOW_POINTER, _HOW_SIZE)
        if descriptor < 0:
            self._note(ctypes.get_errno())
            return None
        try:
            status = os.fstat(descriptor)
            if status.st_size != size or not stat.S_ISREG(status.st_mode):
                return None
            data = bytearray(size)
            if os.preadv(descriptor, (data,), 0, os.RWF_NOWAIT) != size:
                return None
        except OSError as error:
            self._note(error.errno)
            return None
        finally:
            os.close(descriptor)
        return Cached(bytes(data), status.st_atime)

    def is_missing(self, path: bytes) -> bool:
        """Whether the kernel remembers that there is no file at ``path``; False: a thread tells."""
        if not self.is_possible:
            return False
        descriptor: int = self._syscall(_OPENAT2, _AT_FDCWD, path, _HOW_POINTER, _HOW_SIZE)
        if descriptor >= 0:
            os.close(descriptor)
            return False
        number = ctypes.get_errno()
        self._note(number)
        return number == errno.ENOENT

    def _note(self, number: int | None) -> None:
        self.is_possible = self.is_possible and number not in _MISSING

"""Tells which processes share a folder, and which of them have ended, for whatever reason.

A mark is a file that its process keeps locked (flock). The kernel unlocks it when the process
ends. So the files of an ended process can be distinguished from those of a running one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from proxy.coordination.file_lock import try_lock

_NEW = ".new"

_NUMBER_BYTES = 8

UNFINISHED_SECONDS = 3600.0
"""Age at which a mark that has no name of its own yet was left by a process that has ended."""


class Liveness:
    """This process's mark among those in ``folder``. Blocks, for as long as the disk takes.

    Only one thread at a time may call ``enter``, ``leave``, ``note`` and ``bury``. Any thread may
    call the rest.

    Attributes:
        token: the name of this mark, unique across machines and containers.
    """

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(8)
        self._folder = folder
        self._descriptor: int | None = None

    @property
    def path(self) -> Path:
        """The file of this mark."""
        return self._folder / self.token

    def enter(self) -> None:
        """Make the mark; ``leave`` or the end of the process removes it. Idempotent.

        Raises:
            OSError: the folder cannot be written.
        """
        if self._descriptor is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        new = self._folder / f"{self.token}{_NEW}"
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # It gets its name after it is locked, so that no process takes it for an ended one's.
            new.rename(self._folder / self.token)
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                new.unlink()
            raise
        self._descriptor = descriptor

    def leave(self) -> None:
        """Remove the mark. Idempotent."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            (self._folder / self.token).unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def note(self, number: int) -> None:
        """Write a number into the mark, for other processes to read.

        Raises:
            OSError: the mark does not exist (any more).
        """
        if self._descriptor is None or not self.is_there():
            raise FileNotFoundError(errno.ENOENT, "the mark is gone", self.token)
        os.pwrite(self._descriptor, number.to_bytes(_NUMBER_BYTES, "big"), 0)

    def noted(self, token: str) -> int | None:
        """The number in a mark, 0 before one is written; None: the mark is gone.

        Raises:
            OSError: it cannot be read.
        """
        try:
            return int.from_bytes((self._folder / token).read_bytes(), "big")
        except FileNotFoundError:
            return None

    def is_there(self) -> bool:
        """Whether the mark was made, and its file was not deleted."""
        return self._descriptor is not None and os.fstat(self._descriptor).st_nlink > 0

    def living(self) -> frozenset[str]:
        """The tokens of all marks whose process is running, including this process's own.

        Raises:
            OSError: the folder cannot be read.
        """
        return frozenset(token for token in self._marks() if self._lives(token))

    def are_some_dead(self) -> bool:
        """Whether there is a mark of a process that has ended without removing it.

        Raises:
            OSError: the folder cannot be read.
        """
        return not all(map(self._lives, self._marks()))

    def bury(self) -> frozenset[str]:
        """Remove the marks of processes that have ended, and return their tokens.

        Each token is returned to only one caller, also when several look at the same time. What is
        left of a mark that was never finished goes too.

        Raises:
            OSError: the folder cannot be read or written.
        """
        for name in self._names():
            if name.endswith(_NEW):
                self._take_unfinished(self._folder / name)
        return frozenset(token for token in self._marks() if self._take(token))

    def _marks(self) -> Iterable[str]:
        return (name for name in self._names() if not name.endswith(_NEW))

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._folder) as entries:
                return [each.name for each in entries if each.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def _take_unfinished(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > UNFINISHED_SECONDS:
                path.unlink()

    def _lives(self, token: str) -> bool:
        if token == self.token:
            return self._descriptor is not None
        descriptor = self._locked(token)
        if descriptor is None:
            return (self._folder / token).exists()
        os.close(descriptor)
        return False

    def _take(self, token: str) -> bool:
        if token == self.token:
            return False
        descriptor = self._locked(token)
        if descriptor is None:
            return False
        try:
            (self._folder / token).unlink()
        except FileNotFoundError:  # another process removed it first
            return False
        finally:
            os.close(descriptor)
        return True

    def _locked(self, token: str) -> int | None:
        """A descriptor that holds the lock of a mark; None if the mark is locked, or gone."""
        while True:
            try:
                descriptor = try_lock(self._folder / token)
            except FileNotFoundError:
                return None
            if descriptor is None or os.fstat(descriptor).st_nlink > 0:
                return descriptor
            # Its process left while it was opened, and may be back by now.
            os.close(descriptor)

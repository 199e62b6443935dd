"""Opens SQLite files that several processes share, and makes their writers wait for each other."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from proxy.shared.regular_file import NotRegular, is_regular, open_regular

BUSY_SECONDS = 10.0
"""How long a write waits for writes of other processes; each of them takes milliseconds."""

TRIES_WITH_ROOM = 8
"""How often room is made for one write on a full disk. If that is not enough, something else uses
the room at the same time."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def is_full(error: Exception) -> bool:
    """Whether a write failed because the disk or a quota is full."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        # The second code: no room for the memory that processes share, a file beside the log.
        return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class _Opened:
    connection: sqlite3.Connection
    inode: int
    generation: int


class Database:
    """One file in WAL mode: many connections read while one writes. Blocks; call it in threads.

    A file that is removed or replaced while it is in use is opened again.

    Args:
        path: the file; made, with its folder, at the first use.
        schema: statements that make missing tables and indexes; run on every new connection.
        synchronous: with ``FULL`` a commit survives a loss of power. With ``NORMAL`` it survives
            the end of a process; after a loss of power the file is not damaged, but the last
            commits may be missing.
        disposable: remove a damaged file after its error; the next use makes an empty one.
        may_make: make the file when it is missing. If False, ``make`` alone makes it, and any
            other use of a missing or empty file raises ``FileNotFoundError``.
        before_making: called before a missing file is made. May raise ``sqlite3.Error`` or
            ``OSError``; none is made then.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        synchronous: Literal["NORMAL", "FULL"],
        disposable: bool = False,
        may_make: bool = True,
        before_making: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self._before_making = before_making
        self._may_make = may_make
        self._disposable = disposable
        self._schema = schema
        self._synchronous = synchronous
        self._guard = threading.Lock()
        self._idle: list[_Opened] = []
        self._writer: _Opened | None = None
        self._generation = 0
        # Writers of this process queue at this lock; SQLite itself would sleep and try again.
        self._writing = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for statements that change nothing. Several threads may each have one.

        Raises:
            sqlite3.Error, OSError: the file cannot be read or made.
        """
        with self._guard:
            opened = self._idle.pop() if self._idle else None
        opened = self._current(opened)
        try:
            yield opened.connection
        except sqlite3.Error as error:
            opened.connection.close()
            self._dispose(error, opened.inode)
            raise
        except BaseException:
            self._put_back(opened)
            raise
        self._put_back(opened)

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection for statements that all see the file as it was at the first of them.

        Raises:
            sqlite3.Error, OSError: as ``reading`` does.
        """
        with self.reading() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, committed at the end of the block. No other process writes meanwhile.

        An exception within the block rolls back all its changes.

        Raises:
            sqlite3.Error, OSError: the file cannot be written.
        """
        with self._writing:
            opened = self._writer = self._current(self._writer)
            connection = opened.connection
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    # The file of this connection may be damaged: the next write opens a new one.
                    connection.close()
                    self._writer = None
                    self._dispose(error, opened.inode)
                raise

    def exists(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def make(self) -> None:
        """Make the file, with its folder, if it is missing."""
        opened = self._open(may_make=True)
        with self._guard:
            self._idle.append(opened)

    def close(self) -> None:
        """Close every connection. One that another thread reads from closes when it has finished.

        The next use opens a new connection.
        """
        with self._writing, self._guard:
            self._generation += 1
            for opened in (*self._idle, self._writer):
                if opened is not None:
                    opened.connection.close()
            self._idle.clear()
            self._writer = None

    def _put_back(self, opened: _Opened) -> None:
        with self._guard:
            if opened.generation == self._generation:
                self._idle.append(opened)
                return
        opened.connection.close()

    def _current(self, opened: _Opened | None) -> _Opened:
        """``opened`` if its file is still the one at ``path``; otherwise a new connection."""
        if opened is not None:
            with suppress(FileNotFoundError):
                if self.path.stat().st_ino == opened.inode:
                    return opened
            opened.connection.close()
        return self._open(may_make=self._may_make)

    def _open(self, *, may_make: bool) -> _Opened:
        generation = self._generation
        if may_make:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self._before_making()
        with self.creating():
            self._refuse_special_files()
            # SQLite would make a database of an empty file, too.
            if not may_make and self.path.stat().st_size == 0:
                raise FileNotFoundError(errno.ENOENT, "the file is empty", str(self.path))
            if not self.path.exists():
                # A log whose file is gone would be applied to the new file.
                for suffix in ("-wal", "-shm"):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={'rwc' if may_make else 'rw'}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA synchronous = {self._synchronous}")
                connection.executescript(self._schema)
                return _Opened(connection, self.path.stat().st_ino, generation)
            except sqlite3.Error as error:
                connection.close()
                if self._disposable and code_of(error) in _DAMAGED:
                    self.path.unlink()
                raise
            except BaseException:
                connection.close()
                raise

    def _refuse_special_files(self) -> None:
        """Remove what is not a regular file in the place of a disposable one; or raise."""
        for suffix in ("", "-wal", "-shm"):
            path = self.path.with_name(self.path.name + suffix)
            try:
                if is_regular(path):
                    continue
            except FileNotFoundError:
                continue
            if self._disposable:
                path.unlink()
            elif not path.is_file():  # an operator may have put it elsewhere, and linked it
                raise NotRegular(path)

    def _dispose(self, error: sqlite3.Error, inode: int) -> None:
        """Remove a damaged file, but not a new one that another process put in its place."""
        if self._disposable and code_of(error) in _DAMAGED:
            with self.creating(), suppress(FileNotFoundError):
                if self.path.stat().st_ino == inode:
                    self.path.unlink()

    @contextmanager
    def creating(self) -> Iterator[None]:
        """Hold the lock to make or remove the file: one process at a time."""
        path = self.path.with_name(f".{self.path.name}.lock")
        with open(open_regular(path, os.O_CREAT | os.O_WRONLY), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

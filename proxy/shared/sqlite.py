"""SQLite files that several processes share: how they are opened, and who waits for whom."""

from __future__ import annotations

import errno
import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BUSY_SECONDS = 10.0
"""How long a write waits for those of other processes; each takes milliseconds."""

TRIES_WITH_ROOM = 8
"""How often room is made for one write on a full disk; beyond that somebody else takes it."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def is_full(error: Exception) -> bool:
    """Whether something could not be written for want of room: on the disk, or of a quota."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        # The second: of the memory that processes share, which is a file beside the log.
        return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class _Opened:
    connection: sqlite3.Connection
    inode: int
    generation: int


class Database:
    """One file in WAL mode: many read while one writes. Blocks; for threads.

    A file that is removed or replaced while it is used is opened anew.

    Args:
        path: made, with its folder, when it is first used.
        schema: statements that make what is missing, run on every new connection.
        synchronous: ``FULL``: a commit survives a loss of power; ``NORMAL``: the end of a
            process, and after a loss of power the file is whole, but may lack the last commits.
        disposable: a damaged file is removed once its error was raised; the next use makes an
            empty one.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        synchronous: Literal["NORMAL", "FULL"],
        disposable: bool = False,
    ) -> None:
        self.path = path
        self._disposable = disposable
        self._schema = schema
        self._synchronous = synchronous
        self._guard = threading.Lock()
        self._idle: list[_Opened] = []
        self._writer: _Opened | None = None
        self._generation = 0
        # Writers of this process queue here; SQLite's own waiting is by sleeping and trying again.
        self._writing = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for statements that change nothing. Several threads may have one each.

        Raises:
            sqlite3.Error, OSError: the file cannot be read, or made.
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
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process writes beside; committed at the end of the block.

        An exception within the block takes it all back.

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
                    # It may belong to a file that is damaged: the next one opens anew.
                    connection.close()
                    self._writer = None
                    self._dispose(error, opened.inode)
                raise

    def close(self) -> None:
        """Close every connection; one that another thread reads from, when that has finished.

        What is used next opens anew.
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
        """``opened`` if it still is of the file by that name, or a new one."""
        if opened is not None:
            with suppress(FileNotFoundError):
                if self.path.stat().st_ino == opened.inode:
                    return opened
            opened.connection.close()
        return self._open()

    def _open(self) -> _Opened:
        generation = self._generation
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._creating():
            if not self.path.exists():
                # A log without its file would be played into the new one.
                for suffix in ("-wal", "-shm"):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
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

    def _dispose(self, error: sqlite3.Error, inode: int) -> None:
        """Remove a damaged file, but not the one that another process replaced it with."""
        if self._disposable and code_of(error) in _DAMAGED:
            with self._creating(), suppress(FileNotFoundError):
                if self.path.stat().st_ino == inode:
                    self.path.unlink()

    @contextmanager
    def _creating(self) -> Iterator[None]:
        """One process at a time makes or removes the file."""
        with self.path.with_name(f".{self.path.name}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

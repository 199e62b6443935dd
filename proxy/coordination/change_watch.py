"""Tells whether an SQLite file has changed, many times a second, without reading its rows."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from proxy.shared.sqlite import BUSY_SECONDS


@dataclass(frozen=True, slots=True)
class Stamp:
    """The state of the file at one moment. If two stamps are equal, nothing happened between them.

    Attributes:
        file: identifies the file: a different file has a different value.
        content: its time and size. A checkpoint of the log changes them, and so does damage from
            outside.
        commits: changes with every commit of any other connection; None: it is not known.
    """

    file: tuple[int, int]
    content: tuple[int, int]
    commits: int | None


class ChangeWatch:
    """Looks at the file at ``path``. Blocks; one thread at a time.

    Its methods may raise ``sqlite3.Error`` or ``OSError``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Start watching from the beginning; the file must exist."""
        self.close()
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            # From now on a query does not wait for locks: it answers at once, or fails.
            connection.execute("PRAGMA busy_timeout = 0").fetchone()
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stamp(self) -> Stamp:
        """The current state of the file. Commits are seen in shared memory (the WAL-index)."""
        if self._connection is None:
            raise sqlite3.ProgrammingError("not open")
        status = os.stat(self._path)
        try:
            (commits,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            commits = None
        return Stamp((status.st_dev, status.st_ino), (status.st_mtime_ns, status.st_size), commits)

"""SQLite files that several processes share: how they are opened, and who waits for whom."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

BUSY_SECONDS = 10.0
"""How long a write waits for those of other processes; each takes milliseconds."""


class Database:
    """One file in WAL mode: many read while one writes. Blocks; for threads.

    Args:
        path: made, with its folder, when it is first used.
        schema: statements that make what is missing, run on every new connection.
        synchronous: ``FULL``: a commit survives a loss of power; ``NORMAL``: the end of a
            process, and after a loss of power the file is whole, but may lack the last commits.
    """

    def __init__(self, path: Path, schema: str, *, synchronous: Literal["NORMAL", "FULL"]) -> None:
        self.path = path
        self._schema = schema
        self._synchronous = synchronous
        self._guard = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        # Writers of this process queue here; SQLite's own waiting is by sleeping and trying again.
        self._writing = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for statements that change nothing. Several threads may have one each.

        Raises:
            sqlite3.Error, OSError: the file cannot be read, or made.
        """
        with self._guard:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._opened()
        try:
            yield connection
        except sqlite3.Error:
            connection.close()
            raise
        with self._guard:
            self._idle.append(connection)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process writes beside; committed at the end of the block.

        An exception within the block takes it all back.

        Raises:
            sqlite3.Error, OSError: the file cannot be written.
        """
        with self._writing:
            connection = self._writer = self._writer or self._opened()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    # It may belong to a file that is damaged or gone: the next one opens anew.
                    connection.close()
                    self._writer = None
                raise

    def close(self) -> None:
        """Close every connection that nobody uses. What is used next opens anew."""
        with self._writing, self._guard:
            for connection in (*self._idle, self._writer):
                if connection is not None:
                    connection.close()
            self._idle.clear()
            self._writer = None

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.executescript(self._schema)
        except BaseException:
            connection.close()
            raise
        return connection

"""The moderation store of one machine: an SQLite file in the cache folder."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import structlog

from proxy.moderation.decision_store import DecisionStore, raise_version, record_in_audit
from proxy.moderation.first_start import (
    StoreMissing,
    has_content,
    latest_backup,
    leave_marker,
    sign_in,
)
from proxy.shared.regular_file import NotRegular
from proxy.shared.sql import Statements
from proxy.shared.sqlite import Database

FILE_NAME = "moderation.sqlite3"

OLDER_NAME = "blocks.sqlite3"
"""The file of older versions, which stored only blocks."""

ADMIN = "admin"
"""The name of the decider of all blocks of older versions: those had a single token."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY,   -- in the order of arrival
    did TEXT NOT NULL,        -- '': every owner
    cid TEXT NOT NULL,        -- '': every blob; as it was typed; it stands for its digest
    who TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (did, cid, who)
);
CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    did TEXT NOT NULL,
    cid TEXT NOT NULL,
    reason TEXT NOT NULL,
    purge INTEGER             -- its row in purges; the decisions of one bulk share a row
);
CREATE INDEX IF NOT EXISTS audit_of_purge ON audit (purge) WHERE purge IS NOT NULL;
CREATE TABLE IF NOT EXISTS purges (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,      -- the token of the process that works on it
    removed INTEGER           -- NULL: not finished
);
CREATE INDEX IF NOT EXISTS purges_pending ON purges (id) WHERE removed IS NULL;
CREATE TABLE IF NOT EXISTS cursors (
    stream TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,   -- grows with every change that processes follow
    has_older INTEGER NOT NULL  -- whether the blocks of an older version were copied
);
"""

log = structlog.get_logger(__name__)


class ModerationStore(DecisionStore):
    """The store file, and connections to it. Several threads may use it at the same time.

    Args:
        path: the file. ``make`` and ``make_at_first_start`` make it, and so does the first use
            where there is a file of an older version.

    Every method raises ``sqlite3.Error`` or ``OSError`` where the file, or that of an older
    version beside it, cannot be read or written; nothing has changed then. Where the file is
    missing that is a ``StoreMissing``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Database(path, _SCHEMA, synchronous="FULL", may_make=False)
        super().__init__(self._file)
        self._older = path.with_name(OLDER_NAME)
        self._looked_for_older = False

    @property
    def place(self) -> str:
        """See ``DecisionStore``."""
        return str(self.path.parent)

    def is_there(self) -> bool:
        """Whether the store or the file of an older version exists.

        Raises:
            OSError: the folder cannot be read.
        """
        return has_content(self.path) or has_content(self._older)

    def is_made(self) -> bool:
        """Whether there is a store; False: the folder never had one.

        Raises:
            StoreMissing: it had one.
        """
        if self.is_there():
            return True
        sign = self._sign()
        if sign is not None:
            raise self._missing(sign)
        return False

    def make(self) -> None:
        """Make the file if there is none, whatever the folder has. For ``blocks restore``."""
        self._file.make()
        leave_marker(self.path.parent)

    def make_at_first_start(self) -> None:
        """Make the file if there is none and never was; note beside it that there is one.

        Raises:
            StoreMissing: there was one.
        """
        sign = None if has_content(self.path) else self._sign()
        # Another process may have made the store, and so the sign, since the first look.
        if sign is not None and not has_content(self.path):
            raise self._missing(sign)
        self.make()

    def _sign(self) -> Path | None:
        for path in (self.path, self._older):
            # Such as a link to a disk that is not mounted.
            if os.path.lexists(path) and not path.is_file():
                return path
        return sign_in(self.path.parent, has_older=self._older.exists())

    def _missing(self, sign: Path | None) -> StoreMissing:
        return StoreMissing(self.path, sign, latest_backup(self.path.parent))

    def _begin(self) -> None:
        """Copy the blocks of an older version once. Raise ``StoreMissing`` if the store was lost.

        The older file is not moved: a running process of that version goes on using it.
        """
        if not has_content(self.path):
            sign = self._sign()
            if sign is not None or not self._older.exists():
                raise self._missing(sign)
            self.make()
        if self._looked_for_older:
            return
        if self._older.exists():
            with self._database.writing() as connection:
                row = connection.execute("SELECT has_older FROM state").fetchone()
                if row is None or not row[0]:
                    _take_over(connection, _rows_of(self._older))
        self._looked_for_older = True


def _rows_of(older: Path) -> list[tuple[str, str, str, float]]:
    if not older.is_file():  # to read a FIFO would wait without end
        raise NotRegular(older)
    try:
        with closing(sqlite3.connect(f"{older.absolute().as_uri()}?mode=rw", uri=True)) as database:
            return database.execute(
                "SELECT did, cid, reason, created_at FROM blocks ORDER BY created_at"
            ).fetchall()
    except sqlite3.Error as error:
        raise sqlite3.DatabaseError(f"{older.name}: {error}") from error


def _take_over(connection: Statements, rows: Collection[tuple[str, str, str, float]]) -> None:
    connection.executemany(
        "INSERT INTO blocks (did, cid, who, reason, created_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        ((did, cid, ADMIN, reason, at) for did, cid, reason, at in rows),
    )
    entries = [(did, cid, reason) for did, cid, reason, _ in rows]
    record_in_audit(connection, time.time(), ADMIN, "block", entries, None)
    raise_version(connection)
    connection.execute("UPDATE state SET has_older = 1")
    log.info("blocks of an older version taken over", blocks=len(rows))

"""The blobs whose URLs the CDN has yet to forget, in SQLite: kept until it has done so.

Blobs and not URLs: an owner's ten thousand pictures are as many rows, and not half a million.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey
from proxy.shared.sqlite import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS cdn_queue (
    did TEXT NOT NULL,
    cid TEXT NOT NULL,
    queued_at REAL NOT NULL,    -- seconds since the epoch, as all times here
    request INTEGER NOT NULL,   -- counts the requests to purge it
    failures INTEGER NOT NULL,
    failed_at REAL NOT NULL,    -- 0: never
    error TEXT NOT NULL,        -- why, the last time
    PRIMARY KEY (did, cid)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cdn_queue_by_turn ON cdn_queue (failures, queued_at);
"""

_COLUMNS = "did, cid, queued_at, request, failures, failed_at, error"


@dataclass(frozen=True, slots=True)
class Pending:
    """A blob that waits.

    Attributes:
        queued_at, failed_at: seconds since the epoch; ``failed_at`` is 0 before a failure.
        request: tells apart what was asked for again meanwhile.
        error: why it was not purged the last time.
    """

    blob: BlobKey
    queued_at: float
    request: int
    failures: int
    failed_at: float
    error: str


class CdnQueue:
    """The queue of one cache folder, shared by the processes on it. Blocks; for threads.

    Every method may raise ``sqlite3.Error`` or ``OSError``: not done.

    Args:
        database: with ``SCHEMA`` among its own.
        clock: seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def add(self, blobs: Iterable[BlobKey], connection: sqlite3.Connection | None = None) -> None:
        """Queue ``blobs``; what waits already is purged once more if that is under way.

        Args:
            connection: of a transaction of the caller's, which it then is part of.
        """
        now = self._clock()
        rows = [(blob.did, blob.cid, now) for blob in blobs]
        if connection is not None:
            _add(connection, rows)
        elif rows:
            with self._database.writing() as own:
                _add(own, rows)

    def first(self, limit: int) -> list[Pending]:
        """Whose turn it is: what never failed before what did, the oldest first."""
        return self._select("ORDER BY failures, queued_at LIMIT ?", (limit,))

    def all(self) -> list[Pending]:
        """Everything that waits, oldest first."""
        return self._select("ORDER BY queued_at")

    def count(self) -> int:
        """How many blobs wait."""
        with self._database.reading() as connection:
            (count,) = connection.execute("SELECT count(*) FROM cdn_queue").fetchone()
        return int(count)

    def purged(self, done: Sequence[Pending]) -> None:
        """Take out what is purged, but for what was asked for again after it was read."""
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM cdn_queue WHERE did = ? AND cid = ? AND request = ?",
                [(pending.blob.did, pending.blob.cid, pending.request) for pending in done],
            )

    def failed(self, pending: Sequence[Pending], error: str) -> None:
        """Note a failure; they stay."""
        now = self._clock()
        with self._database.writing() as connection:
            connection.executemany(
                "UPDATE cdn_queue SET failures = failures + 1, failed_at = ?, error = ?"
                " WHERE did = ? AND cid = ?",
                [(now, error, each.blob.did, each.blob.cid) for each in pending],
            )

    def close(self) -> None:
        """Close its file; what is called next opens it anew."""
        self._database.close()

    def _select(self, rest: str, values: tuple[int, ...] = ()) -> list[Pending]:
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM cdn_queue {rest}",  # noqa: S608
                values,
            ).fetchall()
        return [Pending(BlobKey(Did(did), Cid(cid)), *others) for did, cid, *others in rows]


def _add(connection: sqlite3.Connection, rows: Sequence[tuple[str, str, float]]) -> None:
    connection.executemany(
        "INSERT INTO cdn_queue VALUES (?, ?, ?, 0, 0, 0, '')"
        " ON CONFLICT DO UPDATE SET request = request + 1",
        rows,
    )

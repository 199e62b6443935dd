"""A queue in SQLite of the blobs whose URLs the CDN must purge; they stay until it has done so.

It contains blobs instead of URLs: ten thousand pictures are ten thousand rows, not half a million.
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
    queued_at REAL NOT NULL,    -- seconds since the epoch, like all times here
    request INTEGER NOT NULL,   -- how often its purge was asked for again
    failures INTEGER NOT NULL,
    failed_at REAL NOT NULL,    -- 0: never
    error TEXT NOT NULL,        -- the reason of the last failure
    PRIMARY KEY (did, cid)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cdn_queue_by_turn ON cdn_queue (failures, queued_at);
"""

_COLUMNS = "did, cid, queued_at, request, failures, failed_at, error"


@dataclass(frozen=True, slots=True)
class Pending:
    """A blob in the queue.

    Attributes:
        queued_at, failed_at: seconds since the epoch; ``failed_at`` is 0 before the first failure.
        request: differs if the blob was queued again meanwhile.
        error: the reason of the last failure.
    """

    blob: BlobKey
    queued_at: float
    request: int
    failures: int
    failed_at: float
    error: str


class CdnQueue:
    """The queue of a cache folder, shared by its processes. Blocks: call in threads.

    Every method may raise ``sqlite3.Error`` or ``OSError``; then it has done nothing.

    Args:
        database: its schema contains ``SCHEMA``.
        clock: seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def add(self, blobs: Iterable[BlobKey], connection: sqlite3.Connection | None = None) -> None:
        """Queue ``blobs``. A blob that is being purged at this moment is purged once more.

        Args:
            connection: the connection of a transaction of the caller; None: a new transaction.
        """
        now = self._clock()
        rows = [(blob.did, blob.cid, now) for blob in blobs]
        if connection is not None:
            _add(connection, rows)
        elif rows:
            with self._database.writing() as own:
                _add(own, rows)

    def first(self, limit: int) -> list[Pending]:
        """Return the next blobs: those with the fewest failures first, then the oldest first."""
        return self._select("ORDER BY failures, queued_at LIMIT ?", (limit,))

    def all(self) -> list[Pending]:
        """Return all blobs in the queue, oldest first."""
        return self._select("ORDER BY queued_at")

    def count(self) -> int:
        """Return the number of blobs in the queue."""
        with self._database.reading() as connection:
            (count,) = connection.execute("SELECT count(*) FROM cdn_queue").fetchone()
        return int(count)

    def purged(self, done: Sequence[Pending]) -> None:
        """Remove purged blobs, except those that were queued again since they were read."""
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM cdn_queue WHERE did = ? AND cid = ? AND request = ?",
                [(pending.blob.did, pending.blob.cid, pending.request) for pending in done],
            )

    def failed(self, pending: Sequence[Pending], error: str) -> None:
        """Record a failure; the blobs stay in the queue."""
        now = self._clock()
        with self._database.writing() as connection:
            connection.executemany(
                "UPDATE cdn_queue SET failures = failures + 1, failed_at = ?, error = ?"
                " WHERE did = ? AND cid = ?",
                [(now, error, each.blob.did, each.blob.cid) for each in pending],
            )

    def close(self) -> None:
        """Close the file. The next call opens it again."""
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

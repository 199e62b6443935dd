"""A queue in a database of what the CDN must purge; it stays there until the CDN has done so.

It contains selections instead of tags or URLs: an owner is one row, whatever there is of theirs,
and what the CDN is asked follows from the configuration of the process that sends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from proxy.model.identifiers import Cid, Did, spellings
from proxy.model.selection import Selection
from proxy.shared.sql import SqlDatabase, Statements

SCHEMA = """
CREATE TABLE IF NOT EXISTS cdn_queue (
    did TEXT NOT NULL,          -- '': of every owner
    cid TEXT NOT NULL,          -- '': every blob
    queued_at REAL NOT NULL,    -- seconds since the epoch, like all times here
    request INTEGER NOT NULL,   -- how often its purge was asked for again
    failures INTEGER NOT NULL,  -- how often the CDN refused what it names
    failed_at REAL NOT NULL,    -- 0: never
    error TEXT NOT NULL,        -- the reason of the last failure, of any kind
    PRIMARY KEY (did, cid)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cdn_queue_by_turn ON cdn_queue (failures, queued_at);
"""

_COLUMNS = "did, cid, queued_at, request, failures, failed_at, error"


@dataclass(frozen=True, slots=True)
class Pending:
    """A selection in the queue.

    Attributes:
        queued_at, failed_at: seconds since the epoch; ``failed_at`` is 0 before the first failure.
        request: differs if the selection was queued again meanwhile.
        failures: how often the CDN refused what it names, alone or together with others.
        error: the reason of the last failure.
    """

    selection: Selection
    queued_at: float
    request: int
    failures: int
    failed_at: float
    error: str


class CdnQueue:
    """The queue that the processes of a folder or a cluster share. Blocks: call in threads.

    Every method may raise ``sqlite3.Error`` or ``OSError``; then it has done nothing.

    Args:
        database: has the table of ``SCHEMA``.
        clock: seconds since the epoch.
    """

    def __init__(self, database: SqlDatabase, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def add(self, selections: Iterable[Selection], connection: Statements | None = None) -> None:
        """Queue ``selections``. One that is being purged at this moment is purged once more.

        Args:
            connection: the connection of a transaction of the caller; None: a new transaction.
        """
        now = self._clock()
        rows = [(*_columns(each), now) for each in selections]
        if connection is not None:
            _add(connection, rows)
        elif rows:
            with self._database.writing() as own:
                _add(own, rows)

    def first(self, limit: int) -> list[Pending]:
        """Return the next selections: the least often refused first, then the oldest first."""
        return self._select("ORDER BY failures, queued_at LIMIT ?", (limit,))

    def all(self) -> list[Pending]:
        """Return all selections in the queue, oldest first."""
        return self._select("ORDER BY queued_at")

    def of(self, selection: Selection) -> list[Pending]:
        """Return what is in the queue of a selection, or covers it, oldest first."""
        did = selection.did or ""
        names = spellings(selection.cid) if selection.cid is not None else ()
        marks = ", ".join("?" * len(names))
        where, values = f"did IN ('', ?) AND cid IN ('', {marks})", [did, *names]
        if not did:
            where, values = f"cid IN ({marks})", [*names]
        elif not names:
            where, values = "did = ?", [did]
        return self._select(f"WHERE {where} ORDER BY queued_at", values)

    def count(self) -> int:
        """Return the number of selections in the queue."""
        with self._database.reading() as connection:
            (count,) = connection.execute("SELECT count(*) FROM cdn_queue").fetchone()
        return int(count)

    def purged(self, done: Sequence[Pending]) -> None:
        """Remove purged selections, except those that were queued again since they were read."""
        with self._database.writing() as connection:
            connection.executemany(
                # The time too: another process may have removed the row, and it was queued anew.
                "DELETE FROM cdn_queue WHERE did = ? AND cid = ? AND request = ? AND queued_at = ?",
                [(*_columns(each.selection), each.request, each.queued_at) for each in done],
            )

    def failed(self, pending: Sequence[Pending], error: str, *, is_refusal: bool) -> None:
        """Record a failure; the selections stay in the queue.

        Args:
            is_refusal: one of them may be the cause. Any other failure counts against none of them.
        """
        now = self._clock()
        with self._database.writing() as connection:
            connection.executemany(
                "UPDATE cdn_queue SET failures = failures + ?, failed_at = ?, error = ?"
                " WHERE did = ? AND cid = ?",
                [(int(is_refusal), now, error, *_columns(each.selection)) for each in pending],
            )

    def close(self) -> None:
        """Close the database. The next call opens it again."""
        self._database.close()

    def _select(self, rest: str, values: Sequence[int | str] = ()) -> list[Pending]:
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM cdn_queue {rest}",  # noqa: S608
                values,
            ).fetchall()
        return [
            Pending(Selection(Did(did) if did else None, Cid(cid) if cid else None), *others)
            for did, cid, *others in rows
        ]


def _columns(selection: Selection) -> tuple[str, str]:
    return selection.did or "", selection.cid or ""


def _add(connection: Statements, rows: Sequence[tuple[str, str, float]]) -> None:
    connection.executemany(
        "INSERT INTO cdn_queue VALUES (?, ?, ?, 0, 0, 0, '')"
        " ON CONFLICT (did, cid) DO UPDATE SET request = cdn_queue.request + 1",
        rows,
    )

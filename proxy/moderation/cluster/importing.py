"""Copies the decisions of one machine, SQLite files in its cache folder, into a cluster's database.

In one transaction: after a failure nothing is there, and the same can be asked for again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from proxy.coordination.folder import FolderCoordination
from proxy.moderation.cluster.node_files import own_decisions
from proxy.moderation.decision_store import storable
from proxy.moderation.first_start import FEEDS
from proxy.moderation.store import FILE_NAME, ModerationStore
from proxy.shared.sql import SqlDatabase, Statements, placeholders

AT_ONCE = 5000
"""Rows that are sent together."""

_DECISIONS = {
    "blocks": ("id", "did", "cid", "who", "reason", "created_at"),
    "audit": ("id", "at", "who", "action", "did", "cid", "reason", "purge"),
    "purges": ("id", "owner", "removed"),
    "cursors": ("stream", "cursor"),
    "cdn_queue": ("did", "cid", "queued_at", "request", "failures", "failed_at", "error"),
}

_LABELS = {
    "labels": (
        "id", "src", "uri", "blob", "val", "cts", "exp", "neg", "ended", "did", "collection",
        "key", "version", "tries", "ask_at",
    ),
    "asks": ("label", "did", "cid", "gone"),
    "followed": ("id", "src", "settings"),
    "forgotten": ("id", "did"),
}  # fmt: skip

_BOOLEANS = frozenset({"neg", "ended", "gone"})
"""Columns that are numbers in SQLite."""


class CannotImport(Exception):
    """Nothing was changed; the message says why."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What is in the database now.

    Attributes:
        rows: the number of rows by table; those of an earlier import too.
        is_new: False: they were there already.
    """

    rows: dict[str, int]
    is_new: bool


def import_folder(folder: Path, target: SqlDatabase) -> Imported:
    """Copy blocks, audit, purges, cursors, the CDN's queue and labels. Blocks; call in a thread.

    What was copied before, and only grew in the folder since, is copied anew.

    Raises:
        CannotImport: processes serve from the folder by its own decisions, it has none, or the
            database has other decisions.
        sqlite3.Error, OSError: something cannot be read or written.
    """
    if FolderCoordination(folder).replicas().serving():
        raise CannotImport(f"servers run on {folder} without the database: stop them first")
    if not own_decisions(folder)[0]:
        raise CannotImport(f"{folder} has no decisions: there is nothing to import")
    with closing(ModerationStore(folder / FILE_NAME)) as store:
        store.load()  # takes over what older releases have left
    name, _ = own_decisions(folder)
    with closing(_opened(folder / FILE_NAME)) as decisions, target.writing() as rows:
        decisions.execute("BEGIN")
        (last,) = decisions.execute("SELECT max(id) FROM audit").fetchone()
        if _is_there(rows, name, last):
            return Imported(_counts(rows), is_new=False)
        for table in reversed((*_DECISIONS, *_LABELS)):
            rows.execute(f"DELETE FROM {table}")  # noqa: S608
        _copy(decisions, rows, _DECISIONS)
        if (folder / FEEDS).exists():
            with closing(_opened(folder / FEEDS)) as labels:
                labels.execute("BEGIN")
                _copy(labels, rows, _LABELS)
        (version,) = decisions.execute("SELECT version FROM state").fetchone()
        rows.execute(
            "UPDATE state SET version = greatest(version, ?) + 1, imported = ?, imported_last = ?",
            (version, name, last),
        )
        return Imported(_counts(rows), is_new=True)


def _is_there(rows: Statements, name: str, last: int) -> bool:
    """Whether all was imported before; False: it can be imported. Raises CannotImport otherwise."""
    imported, imported_last = rows.execute("SELECT imported, imported_last FROM state").fetchone()
    (found,) = rows.execute("SELECT coalesce(max(id), 0) FROM audit").fetchone()
    if imported == name and imported_last == last:
        return True
    if found == (imported_last if imported == name else 0):
        return False
    raise CannotImport(
        "decisions were made in the database that are not of this folder: it has its own already"
    )


def _copy(source: sqlite3.Connection, rows: Statements, tables: dict[str, tuple[str, ...]]) -> None:
    there = {name for (name,) in source.execute("SELECT name FROM sqlite_master")}
    for table, columns in tables.items():
        if table not in there:  # made when it is first used
            continue
        names = ", ".join(columns)
        insert = f"INSERT INTO {table} ({names}) VALUES ({placeholders(columns)})"  # noqa: S608
        for part in _parts(source, f"SELECT {names} FROM {table}", columns):  # noqa: S608
            rows.executemany(insert, part)
        if columns[0] == "id":
            # The next number is one that was never given, also where the last rows are gone.
            rows.execute(
                "SELECT setval(pg_get_serial_sequence(?, 'id'), ?, true)",
                (table, max(_last_number(source, table), 1)),
            )


def _last_number(source: sqlite3.Connection, table: str) -> int:
    (last,) = source.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()  # noqa: S608
    given = source.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return max(int(last), int(given[0]) if given else 0)


def _parts(
    source: sqlite3.Connection, select: str, columns: tuple[str, ...]
) -> Iterator[list[tuple[object, ...]]]:
    is_boolean = [name in _BOOLEANS for name in columns]
    cursor = source.execute(select)
    while part := cursor.fetchmany(AT_ONCE):
        yield [tuple(map(_in_postgres, row, is_boolean)) for row in part]


def _in_postgres(value: object, is_boolean: bool) -> object:
    if isinstance(value, str):
        return storable(value)
    return bool(value) if is_boolean else value


def _counts(rows: Statements) -> dict[str, int]:
    return {
        table: int(rows.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608
        for table in (*_DECISIONS, *_LABELS)
    }


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)

"""The index of the disk cache: an SQLite database of the entries, beside their files.

The files are the source of truth; the index gives sizes, checksums and ages without reading the
folders. A file appears or disappears only under the index's write lock, and only after a row in
``moves`` announced it and was committed. If a process is killed, another one can finish its moves.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from proxy.cache.layout import owner_folder
from proxy.model.identifiers import spellings
from proxy.model.selection import Selection
from proxy.shared.sqlite import Database, code_of, is_full

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    folder TEXT NOT NULL,     -- of the file, below the folder of all files
    name TEXT NOT NULL,       -- of the file: "{cid}@{format}.{extension}"
    cid TEXT NOT NULL,
    size INTEGER NOT NULL,    -- bytes
    digest BLOB,              -- sha-256; NULL: found as a file, not read yet
    written REAL NOT NULL,    -- seconds since the epoch, like all times here
    used REAL NOT NULL,       -- the last recorded use; the file's access time may be later
    checked REAL NOT NULL,    -- when its PDS last had the blob
    UNIQUE (folder, name)
);
CREATE INDEX IF NOT EXISTS entries_by_cid ON entries (cid);
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used);
CREATE INDEX IF NOT EXISTS entries_by_age ON entries (written);
CREATE INDEX IF NOT EXISTS entries_by_check ON entries (checked);
-- Files that are about to appear or disappear, each with the process that moves it.
CREATE TABLE IF NOT EXISTS moves (
    process TEXT NOT NULL,
    arrives INTEGER NOT NULL,
    folder TEXT NOT NULL,
    name TEXT NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB,
    written REAL NOT NULL,
    UNIQUE (process, arrives, folder, name)
);
CREATE TABLE IF NOT EXISTS state (
    entries INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    complete INTEGER NOT NULL -- whether the index has exactly the files that exist
);
INSERT INTO state SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT * FROM state);
-- What distinguishes this incomplete index from others that were in its place; at most one row.
CREATE TABLE IF NOT EXISTS doubt (id TEXT NOT NULL);
-- The last start of the machine at which a process entered the folder; at most one row.
CREATE TABLE IF NOT EXISTS boot (id TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS entry_added AFTER INSERT ON entries BEGIN
    UPDATE state SET entries = entries + 1, bytes = bytes + new.size;
END;
CREATE TRIGGER IF NOT EXISTS entry_removed AFTER DELETE ON entries BEGIN
    UPDATE state SET entries = entries - 1, bytes = bytes - old.size;
END;
CREATE TRIGGER IF NOT EXISTS entry_resized AFTER UPDATE OF size ON entries BEGIN
    UPDATE state SET bytes = bytes + new.size - old.size;
END;
"""

FILE_NAME = "index-1.sqlite3"
"""Contains the version of the schema. An unreadable index is rebuilt from the files."""

_ERRNO = {
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}


@dataclass(frozen=True, slots=True)
class File:
    """A file, by the name of its folder and its own name."""

    folder: str
    name: str

    @property
    def path(self) -> str:
        """The path relative to the folder of all files."""
        return f"{self.folder}/{self.name}"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A row of the index. Times are seconds since the epoch; ``digest`` is as in the table."""

    file: File
    size: int
    digest: bytes | None
    written: float
    used: float


@dataclass(frozen=True, slots=True)
class Totals:
    """The number of entries, and the sum of their sizes in bytes."""

    entries: int
    bytes: int


class Rows:
    """The statements, on one connection. Those that change rows work only in ``Index.writing``."""

    def __init__(self, connection: sqlite3.Connection, process: str) -> None:
        self._connection = connection
        self._process = process

    def find(self, file: File) -> IndexEntry | None:
        """Return the row of a file, or None."""
        return next(self._records("folder = ? AND name = ?", (file.folder, file.name)), None)

    def totals(self) -> Totals:
        """Return the totals of all entries."""
        return Totals(*self._connection.execute("SELECT entries, bytes FROM state").fetchone())

    def arriving(self) -> int:
        """Return the number of bytes that all processes together are about to add."""
        (found,) = self._connection.execute(
            "SELECT coalesce(sum(size), 0) FROM moves WHERE arrives"
        ).fetchone()
        return int(found)

    def is_complete(self) -> bool:
        """Whether every file is in the index."""
        (complete,) = self._connection.execute("SELECT complete FROM state").fetchone()
        return bool(complete)

    def least_used(self, limit: int) -> list[IndexEntry]:
        """Return the least recently used entries, by the recorded use."""
        return list(self._records("true ORDER BY used LIMIT ?", (limit,)))

    def written_until(self, time: float, limit: int) -> list[IndexEntry]:
        """Return entries written at ``time`` or earlier, oldest first."""
        return list(self._records("written <= ? ORDER BY written LIMIT ?", (time, limit)))

    def written_after(self, time: float, limit: int) -> list[IndexEntry]:
        """Return entries written after ``time``."""
        return list(self._records("written > ? LIMIT ?", (time, limit)))

    def selected(self, selection: Selection, limit: int = -1) -> list[IndexEntry]:
        """Return the entries of an owner, a blob, or a pair; a negative limit means no limit."""
        where, values = _selected(selection)
        return list(self._records(f"{where} LIMIT ?", (*values, limit)))

    def below(self, folder: str) -> list[IndexEntry]:
        """Return the entries whose files are anywhere below a folder."""
        return list(self._records(*_below(folder)))

    def shelves(self, selection: Selection | None = None) -> Iterator[tuple[str, int, int]]:
        """Yield name, entries and bytes of each folder that has entries, in no order.

        Args:
            selection: count only its entries; None: all.
        """
        where, values = ("true", ()) if selection is None else _selected(selection)
        yield from self._connection.execute(
            f"SELECT folder, count(*), sum(size) FROM entries WHERE {where} GROUP BY folder",  # noqa: S608
            values,
        )

    def checked_between(self, after: float, until: float, limit: int) -> list[tuple[File, float]]:
        """Return files and when their PDS was last seen to have the blob, oldest first."""
        rows = self._connection.execute(
            "SELECT folder, name, checked FROM entries WHERE checked > ? AND checked <= ?"
            " ORDER BY checked LIMIT ?",
            (after, until, limit),
        )
        return [(File(folder, name), checked) for folder, name, checked in rows.fetchall()]

    def set_checked(self, selection: Selection, time: float) -> None:
        """Record that the PDS had the selected blobs at ``time``."""
        where, values = _selected(selection)
        self._connection.execute(f"UPDATE entries SET checked = ? WHERE {where}", (time, *values))  # noqa: S608

    def last_checked(self, selection: Selection) -> float | None:
        """Return the latest time when the PDS had a selected blob; None: there is no entry."""
        where, values = _selected(selection)
        (latest,) = self._connection.execute(
            f"SELECT max(checked) FROM entries WHERE {where}",  # noqa: S608
            values,
        ).fetchone()
        return None if latest is None else float(latest)

    def correct_checks(self, horizon: float, time: float) -> None:
        """Record that the PDS had a blob at ``time`` where a time after ``horizon`` is recorded.

        In the hour before ``time``, so that no moment has too many of them.
        """
        self._connection.execute(
            "UPDATE entries SET checked = ? - abs(random() % 3600000) / 1000.0 WHERE checked > ?",
            (time, horizon),
        )

    def correct_uses(self, horizon: float, time: float) -> None:
        """Record a use at ``time`` where one after ``horizon`` is recorded."""
        self._connection.execute("UPDATE entries SET used = ? WHERE used > ?", (time, horizon))

    def shards(self) -> list[str]:
        """Return the shards that have entries: two folders each, as ``plc/ab``."""
        return sorted({"/".join(folder.split("/")[:2]) for folder, _, _ in self.shelves()})

    def with_other_cids(self) -> list[File]:
        """Return the files whose CID is not a raw CIDv1; see ``identifiers.content_cid``."""
        rows = self._connection.execute(
            "SELECT folder, name FROM entries WHERE cid < 'bafkrei' OR cid >= 'bafkrej'"
        )
        return [File(folder, name) for folder, name in rows.fetchall()]

    def after(self, number: int, limit: int) -> list[tuple[int, File]]:
        """Return entries with row numbers above ``number``, in order. The numbers are temporary."""
        rows = self._connection.execute(
            "SELECT rowid, folder, name FROM entries WHERE rowid > ? ORDER BY rowid LIMIT ?",
            (number, limit),
        )
        return [(rowid, File(folder, name)) for rowid, folder, name in rows.fetchall()]

    def set_incomplete(self) -> None:
        """Record that there may be files that the index does not have."""
        self._connection.execute("UPDATE state SET complete = 0")
        self._connection.execute("DELETE FROM doubt")

    def doubt(self) -> str:
        """Return the name of the doubt that ``end_doubt`` ends, after all files were looked at."""
        if (found := self._connection.execute("SELECT id FROM doubt").fetchone()) is None:
            found = (secrets.token_hex(8),)
            self._connection.execute("INSERT INTO doubt VALUES (?)", found)
        return str(found[0])

    def end_doubt(self, doubt: str) -> None:
        """Record that the index has exactly the files that exist, unless a new doubt came up."""
        if self._connection.execute("DELETE FROM doubt WHERE id = ?", (doubt,)).rowcount:
            self._connection.execute("UPDATE state SET complete = 1")

    def boot(self) -> str | None:
        """Return what ``set_boot`` recorded, or None."""
        found = self._connection.execute("SELECT id FROM boot").fetchone()
        return None if found is None else str(found[0])

    def set_boot(self, boot: str) -> None:
        """Record at which start of the machine the folder is used."""
        self._connection.execute("DELETE FROM boot")
        self._connection.execute("INSERT INTO boot VALUES (?)", (boot,))

    def set_used(self, file: File, time: float) -> None:
        """Record a use."""
        self._connection.execute(
            "UPDATE entries SET used = ? WHERE folder = ? AND name = ?",
            (time, file.folder, file.name),
        )

    def add(self, record: IndexEntry) -> None:
        """Add an entry; it replaces an entry of the same file."""
        cid = record.file.name.partition("@")[0]
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (folder, name) DO UPDATE SET size = excluded.size,"
            " digest = excluded.digest, written = excluded.written, used = excluded.used,"
            " checked = max(checked, excluded.checked)",
            (*_names(record.file), cid, *_values(record), record.used, record.written),
        )

    def remove(self, file: File) -> bool:
        """Remove an entry; return whether there was one."""
        found = self._connection.execute(
            "DELETE FROM entries WHERE folder = ? AND name = ?", _names(file)
        )
        return found.rowcount > 0

    def begin_arrival(self, record: IndexEntry) -> None:
        """Announce that this process is about to add a file."""
        self._begin(record, arrives=True)

    def begin_removal(self, record: IndexEntry) -> None:
        """Remove an entry, and announce that this process is about to remove its file."""
        self.remove(record.file)
        self._begin(record, arrives=False)

    def refuse_arrivals(self, selection: Selection) -> list[IndexEntry]:
        """Cancel the announced arrivals of all processes for the selected entries; return them."""
        where, values = _selected(selection, cid="substr(name, 1, instr(name, '@') - 1)")
        refused = self._announced(f"arrives AND {where}", values)
        self._connection.execute(f"DELETE FROM moves WHERE arrives AND {where}", values)  # noqa: S608
        return refused

    def leaving(self) -> list[IndexEntry]:
        """Return the entries that any process is about to remove."""
        return self._announced("NOT arrives", ())

    def is_leaving(self, file: File) -> bool:
        """Whether any process is about to remove a file."""
        return bool(self._announced("NOT arrives AND folder = ? AND name = ?", _names(file)))

    def end_arrival(self, file: File, process: str | None = None) -> bool:
        """Record that a file arrives now, or never will.

        Returns:
            Whether it may: a purge cancels what was announced.
        """
        return self._end(file, process, arrives=True)

    def end_removal(self, file: File, process: str | None = None) -> None:
        """Record that a file is gone."""
        self._end(file, process, arrives=False)

    def removals(self, process: str | None = None) -> list[File]:
        """Return the files that a process (by default this one) is about to remove."""
        return [record.file for record in self._moves(process, arrives=False)]

    def arrivals(self, process: str | None = None) -> list[IndexEntry]:
        """Return the entries that a process (by default this one) is about to add."""
        return self._moves(process, arrives=True)

    def moving_processes(self) -> list[str]:
        """Return the processes that have announced arrivals or removals."""
        rows = self._connection.execute("SELECT DISTINCT process FROM moves").fetchall()
        return [process for (process,) in rows]

    def _moves(self, process: str | None, *, arrives: bool) -> list[IndexEntry]:
        return self._announced("process = ? AND arrives = ?", (process or self._process, arrives))

    def _announced(self, where: str, values: Iterable[object]) -> list[IndexEntry]:
        rows = self._connection.execute(
            f"SELECT folder, name, size, digest, written, written FROM moves WHERE {where}",  # noqa: S608
            tuple(values),
        )
        return list(map(_record, rows.fetchall()))

    def _begin(self, record: IndexEntry, *, arrives: bool) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO moves VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self._process, arrives, *_names(record.file), *_values(record)),
        )

    def _end(self, file: File, process: str | None, *, arrives: bool) -> bool:
        found = self._connection.execute(
            "DELETE FROM moves WHERE process = ? AND arrives = ? AND folder = ? AND name = ?",
            (process or self._process, arrives, *_names(file)),
        )
        return found.rowcount > 0

    def _records(self, where: str, values: Iterable[object]) -> Iterator[IndexEntry]:
        rows = self._connection.execute(
            f"SELECT folder, name, size, digest, written, used FROM entries WHERE {where}",  # noqa: S608
            tuple(values),
        )
        return map(_record, rows.fetchall())


class Index:
    """The index of one cache folder, shared by the processes that use it. Blocks: call in threads.

    Args:
        folder: the folder of the index file.
        process: the token of this process (``Liveness.token``).
        before_making: see ``Database``.
    """

    def __init__(
        self, folder: Path, process: str, before_making: Callable[[], None] = lambda: None
    ) -> None:
        self._database = Database(
            folder / FILE_NAME,
            _SCHEMA,
            synchronous="NORMAL",
            disposable=True,
            before_making=before_making,
        )
        self._process = process

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """Open the index for queries.

        Raises:
            OSError: the index cannot be read. A damaged index is deleted, and rebuilt later.
        """
        with self._mapped(), self._database.reading() as connection:
            yield Rows(connection, self._process)

    @contextmanager
    def writing(self) -> Iterator[Rows]:
        """Open the index for changes, as one transaction. Nobody else writes meanwhile.

        Raises:
            OSError: as for ``reading``, or the index cannot be written.
        """
        with self._mapped(), self._database.writing() as connection:
            yield Rows(connection, self._process)

    def identity(self) -> int | None:
        """Return a number that another index has not which takes the place of this one.

        None: none is there, because it has just been lost.

        Raises:
            OSError: as for ``reading``.
        """
        # It is open from now on, so that the file system gives its number to no other file.
        with self.reading(), suppress(FileNotFoundError):
            return self._database.path.stat().st_ino
        return None

    def close(self) -> None:
        """Close the database files; they open again when needed."""
        self._database.close()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            number = errno.ENOSPC if is_full(error) else _ERRNO.get(code_of(error), errno.EIO)
            message = f"index: {os.strerror(number)}: {error}"
            raise OSError(number, message, str(self._database.path)) from error


def _selected(selection: Selection, cid: str = "cid") -> tuple[str, tuple[str, ...]]:
    """Return the SQL condition of a selection, and its values."""
    conditions: list[str] = []
    values: tuple[str, ...] = ()
    if selection.did is not None:
        condition, values = _below(owner_folder(selection.did))
        conditions.append(condition)
    if selection.cid is not None:
        names = spellings(selection.cid)
        conditions.append(f"{cid} IN ({', '.join('?' * len(names))})")
        values = (*values, *names)
    return " AND ".join(conditions), values


def _below(folder: str) -> tuple[str, tuple[str, ...]]:
    # "0" comes right after "/".
    return "folder >= ? AND folder < ?", (f"{folder}/", f"{folder}0")


def _names(file: File) -> tuple[str, str]:
    return file.folder, file.name


def _values(record: IndexEntry) -> tuple[int, bytes | None, float]:
    return record.size, record.digest, record.written


def _record(row: tuple[str, str, int, bytes | None, float, float]) -> IndexEntry:
    folder, name, size, digest, written, used = row
    return IndexEntry(File(folder, name), size, digest, written, used)

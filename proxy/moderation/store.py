"""The moderation store: one SQLite file with blocks, the audit of decisions, purges and cursors.

Every decision is a row of ``audit``, and all processes follow these rows. A row names the owner,
blob or pair that changed; ``blocks`` has its current state. All calls block: call them in threads.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from proxy.model.identifiers import Cid, Did, content_cid, spellings
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection
from proxy.moderation.block_set import BlockSet
from proxy.moderation.first_start import (
    StoreMissing,
    has_content,
    latest_backup,
    leave_marker,
    sign_in,
)
from proxy.shared.regular_file import NotRegular
from proxy.shared.sqlite import Database

FILE_NAME = "moderation.sqlite3"

OLDER_NAME = "blocks.sqlite3"
"""The file of older versions, which stored only blocks."""

Action = Literal["block", "lift", "purge"]

ADMIN = "admin"
"""The name of the decider of all blocks of older versions: those had a single token."""

PAGE = 1000
"""Rows that a listing reads in one transaction. So a slow reader keeps no transaction open."""

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


_OTHER_CIDS = """
SELECT DISTINCT cid FROM blocks WHERE substr(cid, 1, 7) NOT IN ('', 'bafkrei')
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Block:
    """A block, as lists show it.

    Attributes:
        id: later blocks have larger ones.
        created_at: seconds since the epoch.
    """

    id: int
    did: Did | None
    cid: Cid | None
    by: str
    reason: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A row of the audit.

    Attributes:
        at: seconds since the epoch.
        removed: the number of entries that its purge removed (in a bulk, by all decisions
            together). None: it has no purge, or the purge is not finished.
    """

    at: float
    by: str
    action: Action
    did: Did | None
    cid: Cid | None
    reason: str
    removed: int | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """The result of recording decisions.

    Attributes:
        version: a process that has read this version applies the decisions.
        purge: the number of the purge that must follow; 0: none.
    """

    version: int
    purge: int


@dataclass(frozen=True, slots=True)
class BlocksSnapshot:
    """Everything that is in force at one moment.

    Attributes:
        version, last: see ``Changes``.
        purges: see ``Changes``.
    """

    version: int
    last: int
    blocks: BlockSet
    purges: frozenset[int]


@dataclass(frozen=True, slots=True)
class Change:
    """A decision, as processes follow it.

    Attributes:
        is_blocked: whether exactly this owner, blob or pair is blocked now, by anybody, and by any
            CID of the blob's digest.
        is_purge: whether the decision was only a purge.
        purge: the number of its purge, if it has one.
    """

    selection: Selection
    is_blocked: bool
    is_purge: bool
    purge: int | None


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes after a snapshot, or after earlier changes.

    Attributes:
        version: the version of the store.
        last: the number of the last decision; the next changes come after it.
        decided: the decisions, in order.
        is_all: whether there are no further changes.
        purges: the purges that are not finished.
    """

    version: int
    last: int
    decided: tuple[Change, ...]
    is_all: bool
    purges: frozenset[int]


@dataclass(frozen=True, slots=True)
class Purge:
    """A purge that is not finished."""

    id: int
    owner: str


class ModerationStore:
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
        self._database = Database(path, _SCHEMA, synchronous="FULL", may_make=False)
        self._older = path.with_name(OLDER_NAME)
        self._looked_for_older = False

    def close(self) -> None:
        """Close every connection. The next use opens the file again."""
        self._database.close()

    def record(
        self,
        action: Literal["block", "purge"],
        entries: Iterable[tuple[Selection, str]],
        *,
        by: str,
        owner: str,
        purge: int = 0,
    ) -> Recorded:
        """Record decisions, each with its reason, and a purge of them, in one transaction.

        Args:
            owner: the token of the process that will purge.
            purge: the number of an earlier purge that these decisions join; 0: a new purge.
        """
        now = time.time()
        rows = [(each.did or "", each.cid or "", reason) for each, reason in entries]
        with self._writing() as connection:
            if not purge:
                row = connection.execute("INSERT INTO purges (owner) VALUES (?)", (owner,))
                purge = row.lastrowid or 0
            if action == "block":
                connection.executemany(
                    "INSERT INTO blocks (did, cid, who, reason, created_at) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET reason = excluded.reason",
                    ((did, cid, by, reason, now) for did, cid, reason in rows),
                )
            _audit(connection, now, by, action, rows, purge)
            return Recorded(_raise_version(connection), purge)

    def lift(self, selection: Selection, *, by: str, reason: str, of_all: bool) -> tuple[bool, int]:
        """Lift the block of exactly ``selection`` that ``by`` decided.

        Args:
            of_all: lift the blocks of all deciders.

        Returns:
            Whether there was a block, and the version that has the change.
        """
        did, cid = selection.did or "", selection.cid or ""
        where, values = _of_content(did, cid)
        with self._writing() as connection:
            lifted = connection.execute(
                f"DELETE FROM blocks WHERE {where} AND (? OR who = ?)",  # noqa: S608
                (*values, of_all, by),
            ).rowcount
            if not lifted:
                return False, 0
            _audit(connection, time.time(), by, "lift", [(did, cid, reason)], None)
            return True, _raise_version(connection)

    def finish(self, purge: int, removed: int) -> int:
        """Record that a purge is finished; return the version that has this change."""
        with self._writing() as connection:
            connection.execute("UPDATE purges SET removed = ? WHERE id = ?", (removed, purge))
            return _raise_version(connection)

    def unfinished(self) -> list[Purge]:
        """Return the unfinished purges, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT id, owner FROM purges WHERE removed IS NULL ORDER BY id"
            ).fetchall()
        return [Purge(*row) for row in rows]

    def claim(self, purge: Purge, owner: str) -> bool:
        """Give an unfinished purge to ``owner``. Return False if another process took it first."""
        with self._writing() as connection:
            claimed = connection.execute(
                "UPDATE purges SET owner = ? WHERE id = ? AND owner = ? AND removed IS NULL",
                (owner, purge.id, purge.owner),
            ).rowcount
        return claimed > 0

    def decisions_of(self, purge: Purge) -> tuple[list[Selection], int]:
        """Return the selections of an unfinished purge, and a version that has all of them."""
        with self._snapshot() as connection:
            rows = connection.execute(
                "SELECT did, cid FROM audit WHERE purge = ? ORDER BY id", (purge.id,)
            ).fetchall()
            return [_selection(*row) for row in rows], _version(connection)

    def blocks_now(self, blob: BlobKey) -> bool:
        """Whether a blob is blocked, as of the last commit of any process."""
        did, cid = blob
        with self._reading() as connection:
            return any(_has_block(connection, *each) for each in ((did, ""), ("", cid), (did, cid)))

    def may_keep(self, key: ImageKey) -> bool:
        """Whether a result may be stored in the cache: ``blocks_now`` says that it is not blocked.

        Raises:
            OSError: the store cannot be read.
        """
        try:
            return not self.blocks_now(key.blob)
        except sqlite3.Error as error:
            raise OSError(errno.EIO, f"blocks cannot be read: {error}") from error

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
        self._database.make()
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

    def load(self) -> BlocksSnapshot:
        """Return all blocks."""
        self._rewrite_refused_cids()
        blocks = BlockSet()
        with self._snapshot() as connection:
            for did, cid in connection.execute("SELECT did, cid FROM blocks"):
                blocks.add(did, cid)
            return BlocksSnapshot(
                _version(connection), _last(connection), blocks, _unfinished(connection)
            )

    def changes(self, after: int, limit: int) -> Changes:
        """Return up to ``limit`` decisions after the decision with the number ``after``.

        Raises:
            sqlite3.Error: also if the file does not have that decision: it was replaced.
        """
        with self._snapshot() as connection:
            last = _last(connection)
            if last < after:
                raise sqlite3.DatabaseError("the file is older than it was")
            rows = connection.execute(
                "SELECT id, did, cid, action, purge FROM audit WHERE id > ? ORDER BY id LIMIT ?",
                (after, limit),
            ).fetchall()
            reached = rows[-1][0] if rows else after
            decided = tuple(
                Change(
                    _selection(did, cid), _has_block(connection, did, cid), action == "purge", purge
                )
                for _, did, cid, action, purge in rows
            )
            return Changes(
                _version(connection), reached, decided, reached == last, _unfinished(connection)
            )

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks, oldest first, read in pages."""
        after = 0
        while page := self.blocks_after(after):
            yield from page
            after = page[-1].id

    def blocks_after(self, after: int) -> list[Block]:
        """Return the next page of blocks; none if the folder never had a store."""
        if not self.is_made():
            return []
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT id, did, cid, who, reason, created_at FROM blocks"
                " WHERE id > ? ORDER BY id LIMIT ?",
                (after, PAGE),
            ).fetchall()
        return [
            Block(number, did or None, cid or None, who, reason, at)
            for number, did, cid, who, reason, at in rows
        ]

    def audit(self, limit: int) -> list[Decision]:
        """Return the last decisions, oldest first."""
        if not self.is_made():
            return []
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT at, who, action, did, cid, reason, removed"
                " FROM audit LEFT JOIN purges ON purges.id = purge"
                " ORDER BY audit.id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [
            Decision(at, who, action, did or None, cid or None, reason, removed)
            for at, who, action, did, cid, reason, removed in reversed(rows)
        ]

    def cursor(self, stream: str) -> int | None:
        """See ``Cursors``."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT cursor FROM cursors WHERE stream = ?", (stream,)
            ).fetchone()
        return None if row is None else int(row[0])

    def set_cursor(self, stream: str, cursor: int) -> None:
        """See ``Cursors``."""
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO cursors VALUES (?, ?)"
                " ON CONFLICT DO UPDATE SET cursor = excluded.cursor",
                (stream, cursor),
            )

    def _rewrite_refused_cids(self) -> None:
        """Give blocks by a CID that is not accepted (any more) the accepted one of its digest."""
        with self._reading() as connection:
            found = connection.execute(_OTHER_CIDS).fetchall()
        refused = [cid for (cid,) in found if cid not in spellings(cid)]
        if not refused:
            return
        with self._writing() as connection:
            for cid in refused:
                accepted = content_cid(Cid(cid))
                connection.execute(
                    "UPDATE OR IGNORE blocks SET cid = ? WHERE cid = ?", (accepted, cid)
                )
                connection.execute("DELETE FROM blocks WHERE cid = ?", (cid,))
                log.info("a block has the CID of a blob now", cid=accepted, before=cid)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._take_over()
        with self._database.reading() as connection:
            yield connection

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees the file as it was at its first statement."""
        with self._reading() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._take_over()
        with self._database.writing() as connection:
            yield connection

    def _take_over(self) -> None:
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


def _take_over(
    connection: sqlite3.Connection, rows: Collection[tuple[str, str, str, float]]
) -> None:
    connection.executemany(
        "INSERT INTO blocks (did, cid, who, reason, created_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        ((did, cid, ADMIN, reason, at) for did, cid, reason, at in rows),
    )
    entries = [(did, cid, reason) for did, cid, reason, _ in rows]
    _audit(connection, time.time(), ADMIN, "block", entries, None)
    _raise_version(connection)
    connection.execute("UPDATE state SET has_older = 1")
    log.info("blocks of an older version taken over", blocks=len(rows))


def _audit(
    connection: sqlite3.Connection,
    at: float,
    by: str,
    action: Action,
    rows: Iterable[tuple[str, str, str]],
    purge: int | None,
) -> None:
    connection.executemany(
        "INSERT INTO audit (at, who, action, did, cid, reason, purge) VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((at, by, action, did, cid, reason, purge) for did, cid, reason in rows),
    )


def _raise_version(connection: sqlite3.Connection) -> int:
    row = connection.execute(
        "INSERT INTO state VALUES (1, 1, 0)"
        " ON CONFLICT DO UPDATE SET version = version + 1 RETURNING version"
    ).fetchone()
    return int(row[0])


def _version(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT version FROM state").fetchone()
    return 0 if row is None else int(row[0])


def _last(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM audit").fetchone()
    return int(last)


def _unfinished(connection: sqlite3.Connection) -> frozenset[int]:
    rows = connection.execute("SELECT id FROM purges WHERE removed IS NULL")
    return frozenset(number for (number,) in rows)


def _of_content(did: str, cid: str) -> tuple[str, tuple[str, ...]]:
    """The SQL condition of the rows that are about the same owner and content, and its values."""
    names = spellings(Cid(cid))
    return f"did = ? AND cid IN ({', '.join('?' * len(names))})", (did, *names)


def _has_block(connection: sqlite3.Connection, did: str, cid: str) -> bool:
    where, values = _of_content(did, cid)
    row = connection.execute(f"SELECT 1 FROM blocks WHERE {where} LIMIT 1", values).fetchone()  # noqa: S608
    return row is not None


def _selection(did: str, cid: str) -> Selection:
    return Selection(Did(did) if did else None, Cid(cid) if cid else None)

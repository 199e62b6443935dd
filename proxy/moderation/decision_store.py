"""Decisions in a database: blocks, their audit, purges and cursors. In SQLite or PostgreSQL.

Every decision is a row of ``audit``, and all processes follow these rows. A row names the owner,
blob or pair that changed; ``blocks`` has its current state. All calls block: call them in threads.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import structlog

from proxy.model.identifiers import Cid, Did, content_cid, spellings
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection
from proxy.moderation.block_set import BlockSet
from proxy.shared.sql import SqlDatabase, Statements

Action = Literal["block", "lift", "purge"]

OF_STORE = "store"
"""Who decides purges that the shared store alone needs."""

PAGE = 1000
"""Rows that a listing reads in one transaction. So a slow reader keeps no transaction open."""

LOADED_AT_ONCE = 10_000
"""Blocks that are read by one statement, of which a million have to be read."""

ASKED_AT_ONCE = 100
"""Owners, blobs and pairs that one statement asks for, instead of a round trip for each."""

MAX_ID = 2**63 - 1
"""The largest id that a database has."""

_OTHER_CIDS = """
SELECT DISTINCT cid FROM blocks WHERE substr(cid, 1, 7) NOT IN ('', 'bafkrei')
"""

_BLOCKS = "SELECT id, did, cid, who, reason, created_at FROM blocks"

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
        id: later decisions have larger ones.
        at: seconds since the epoch.
        removed: the number of entries that its purge removed (in a bulk, by all decisions
            together). None: it has no purge, or the purge is not finished.
    """

    id: int
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


class DecisionStore:
    """The decisions in ``database``. Several threads may use it at the same time.

    Every method raises ``sqlite3.Error`` or ``OSError`` where the database cannot be read or
    written; nothing has changed then.
    """

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database

    @property
    def place(self) -> str:
        """Where the decisions are, for people."""
        raise NotImplementedError

    def is_made(self) -> bool:
        """Whether there is a store; False: there never was one."""
        raise NotImplementedError

    def close(self) -> None:
        """Close every connection. The next use opens one again."""
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
            purge: the number of an earlier purge that these decisions join; 0: a new purge. Another
                process may have finished it, as abandoned: it is unfinished again, and ``owner``'s.
        """
        now = time.time()
        rows = [(each.did or "", each.cid or "", storable(reason)) for each, reason in entries]
        with self._writing() as connection:
            if not purge:
                (purge,) = connection.execute(
                    "INSERT INTO purges (owner) VALUES (?) RETURNING id", (owner,)
                ).fetchone()
            else:
                connection.execute(
                    "UPDATE purges SET owner = ?, removed = NULL WHERE id = ?", (owner, purge)
                )
            if action == "block":
                connection.executemany(
                    "INSERT INTO blocks (did, cid, who, reason, created_at) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (did, cid, who) DO UPDATE SET reason = excluded.reason",
                    ((did, cid, by, reason, now) for did, cid, reason in rows),
                )
            record_in_audit(connection, now, by, action, rows, purge)
            return Recorded(raise_version(connection), purge)

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
            record_in_audit(
                connection, time.time(), by, "lift", [(did, cid, storable(reason))], None
            )
            return True, raise_version(connection)

    def finish(self, purge: int, removed: int, *, decisions: int | None = None) -> int:
        """Record that a purge is finished; return the version that has this change.

        Args:
            decisions: how many were carried out. If others have joined it since, it stays
                unfinished. None: all of them.
        """
        with self._writing() as connection:
            count = connection.execute("SELECT count(*) FROM audit WHERE purge = ?", (purge,))
            if decisions in (None, count.fetchone()[0]):
                connection.execute("UPDATE purges SET removed = ? WHERE id = ?", (removed, purge))
            return raise_version(connection)

    def removed_by(self, purge: int) -> int:
        """Return the number of entries that a finished purge removed."""
        with self._reading() as connection:
            row = connection.execute("SELECT removed FROM purges WHERE id = ?", (purge,)).fetchone()
        return int((row and row[0]) or 0)

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
            return [selection_of(*row) for row in rows], _version(connection)

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

    def load(self) -> BlocksSnapshot:
        """Return all blocks."""
        self._rewrite_refused_cids()
        blocks = BlockSet()
        with self._snapshot() as connection:
            after = 0
            while rows := connection.execute(
                "SELECT id, did, cid FROM blocks WHERE id > ? ORDER BY id LIMIT ?",
                (after, LOADED_AT_ONCE),
            ).fetchall():
                for _, did, cid in rows:
                    blocks.add(did, cid)
                after = rows[-1][0]
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
            blocked = _blocked_of(connection, [(did, cid) for _, did, cid, *_ in rows])
            decided = tuple(
                Change(selection_of(did, cid), is_blocked, action == "purge", purge)
                for (_, did, cid, action, purge), is_blocked in zip(rows, blocked, strict=True)
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
                f"{_BLOCKS} WHERE id > ? ORDER BY id LIMIT ?",
                (after, PAGE),
            ).fetchall()
        return [_block(*row) for row in rows]

    def blocks_of(self, selection: Selection) -> list[Block]:
        """Return the blocks that cover all of ``selection``, oldest first.

        Those of a pair are its own, its owner's and its blob's; an owner and a blob have their own.
        """
        if not self.is_made():
            return []
        did, cid = selection.did or "", selection.cid or ""
        found: dict[int, Block] = {}
        with self._reading() as connection:
            for pair in {(did, ""), ("", cid), (did, cid)} - {("", "")}:
                where, values = _of_content(*pair)
                rows = connection.execute(f"{_BLOCKS} WHERE {where}", values)
                found |= {row[0]: _block(*row) for row in rows}
        return [found[number] for number in sorted(found)]

    def blocks_within(self, selection: Selection) -> int:
        """Return how many blocks there are of single pairs of an owner, or of a blob."""
        if not self.is_made() or (selection.did and selection.cid):
            return 0
        names = spellings(selection.cid or Cid(""))
        where = f"cid IN ({', '.join('?' * len(names))}) AND did <> ''"
        values: tuple[str, ...] = names
        if selection.did is not None:
            where, values = "did = ? AND cid <> ''", (selection.did,)
        with self._reading() as connection:
            (count,) = connection.execute(
                f"SELECT count(*) FROM blocks WHERE {where}",  # noqa: S608
                values,
            ).fetchone()
        return int(count)

    def version(self) -> int:
        """Return the version that processes have to follow; 0: nothing was decided yet."""
        if not self.is_made():
            return 0
        with self._reading() as connection:
            return _version(connection)

    def audit(self, limit: int, before: int | None = None) -> list[Decision]:
        """Return the last decisions, oldest first.

        Args:
            before: the ``id`` of a decision, from 1: return those before it.
        """
        if not self.is_made():
            return []
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT audit.id, at, who, action, did, cid, reason, removed"
                " FROM audit LEFT JOIN purges ON purges.id = purge"
                " WHERE audit.id < ? ORDER BY audit.id DESC LIMIT ?",
                (MAX_ID if before is None else before, limit),
            ).fetchall()
        return [
            Decision(number, at, who, action, did or None, cid or None, reason, removed)
            for number, at, who, action, did, cid, reason, removed in reversed(rows)
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
                " ON CONFLICT (stream) DO UPDATE SET cursor = excluded.cursor",
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
                    "UPDATE blocks SET cid = ? WHERE cid = ? AND NOT EXISTS (SELECT 1"
                    " FROM blocks AS other WHERE other.did = blocks.did"
                    " AND other.who = blocks.who AND other.cid = ?)",
                    (accepted, cid, accepted),
                )
                connection.execute("DELETE FROM blocks WHERE cid = ?", (cid,))
                log.info("a block has the CID of a blob now", cid=accepted, before=cid)

    @contextmanager
    def _reading(self) -> Iterator[Statements]:
        self._begin()
        with self._database.reading() as connection:
            yield connection

    @contextmanager
    def _snapshot(self) -> Iterator[Statements]:
        """A connection that sees the database as it was at its first statement."""
        self._begin()
        with self._database.snapshot() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Statements]:
        self._begin()
        with self._database.writing() as connection:
            yield connection

    def _begin(self) -> None:
        """Called before each use."""


def storable(text: str) -> str:
    """Return a text of somebody else as every database takes it: PostgreSQL has no NUL."""
    return text.replace("\0", "\ufffd")


def record_in_audit(
    connection: Statements,
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


def raise_version(connection: Statements) -> int:
    row = connection.execute(
        "INSERT INTO state (one, version, has_older) VALUES (1, 1, 0)"
        " ON CONFLICT (one) DO UPDATE SET version = state.version + 1 RETURNING version"
    ).fetchone()
    return int(row[0])


def _version(connection: Statements) -> int:
    row = connection.execute("SELECT version FROM state").fetchone()
    return 0 if row is None else int(row[0])


def _last(connection: Statements) -> int:
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM audit").fetchone()
    return int(last)


def _unfinished(connection: Statements) -> frozenset[int]:
    rows = connection.execute("SELECT id FROM purges WHERE removed IS NULL")
    return frozenset(number for (number,) in rows)


def _of_content(did: str, cid: str) -> tuple[str, tuple[str, ...]]:
    """The SQL condition of the rows that are about the same owner and content, and its values."""
    names = spellings(Cid(cid))
    return f"did = ? AND cid IN ({', '.join('?' * len(names))})", (did, *names)


def _block(id: int, did: str, cid: str, who: str, reason: str, created_at: float) -> Block:
    selection = selection_of(did, cid)
    return Block(id, selection.did, selection.cid, who, reason, created_at)


def _has_block(connection: Statements, did: str, cid: str) -> bool:
    where, values = _of_content(did, cid)
    row = connection.execute(f"SELECT 1 FROM blocks WHERE {where} LIMIT 1", values).fetchone()  # noqa: S608
    return row is not None


def _blocked_of(connection: Statements, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """For each of ``pairs``, whether exactly it is blocked, by any CID of its digest."""
    blocked: set[tuple[str, str]] = set()
    for start in range(0, len(pairs), ASKED_AT_ONCE):
        names = {
            (did, name)
            for did, cid in pairs[start : start + ASKED_AT_ONCE]
            for name in spellings(Cid(cid))
        }
        values = ", ".join(["(?, ?)"] * len(names))
        blocked.update(
            connection.execute(
                f"WITH asked (did, cid) AS (VALUES {values}) SELECT asked.did, asked.cid"  # noqa: S608
                " FROM asked JOIN blocks ON blocks.did = asked.did AND blocks.cid = asked.cid",
                tuple(part for pair in names for part in pair),
            )
        )
    return [any((did, name) in blocked for name in spellings(Cid(cid))) for did, cid in pairs]


def selection_of(did: str, cid: str) -> Selection:
    return Selection(Did(did) if did else None, Cid(cid) if cid else None)

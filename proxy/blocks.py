"""The operator's blocks: owners, blobs and pairs that are never served.

Kept in SQLite beside the cache and shared by every process on it; looked up in memory.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from proxy.cache.base import Selection
from proxy.errors import BlobBlocked
from proxy.identifiers import Cid, Did
from proxy.urls import BlobKey

POLL_SECONDS = 0.05
"""How often another process's changes are looked for; asking costs microseconds."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    did TEXT NOT NULL,   -- '': every owner
    cid TEXT NOT NULL,   -- '': every blob
    reason TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (did, cid)
) WITHOUT ROWID
"""

SETTLED_SECONDS = 2.0
"""Age from which a file's time tells changes apart; the coarsest file systems count in these."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Block:
    """One block, as it is listed.

    Attributes:
        created_at: seconds since the epoch.
    """

    did: Did | None
    cid: Cid | None
    reason: str
    created_at: float


class BlockStore:
    """The blocks of one cache folder.

    Args:
        path: the database file. It is made with the first block.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limiter = trio.CapacityLimiter(1)
        self._blocked: frozenset[tuple[str, str]] = frozenset()
        self._seen: tuple[int, int, int] | None = None
        self._settled = True

    def is_blocked(self, blob: BlobKey) -> bool:
        """Whether the owner, the blob or the pair is blocked. Microseconds; asks memory."""
        blocked = self._blocked
        return bool(blocked) and (
            (blob.did, "") in blocked
            or ("", blob.cid) in blocked
            or (blob.did, blob.cid) in blocked
        )

    def check(self, blob: BlobKey) -> None:
        """Raise ``BlobBlocked`` for what is blocked."""
        if self.is_blocked(blob):
            raise BlobBlocked(f"{blob.did} {blob.cid} is blocked")

    async def load(self) -> None:
        """Read the blocks.

        Raises:
            sqlite3.Error, OSError: the file is there and cannot be read.
        """
        await trio.to_thread.run_sync(self._load, limiter=self._limiter)

    async def add(self, selection: Selection, reason: str = "") -> None:
        """Block what is selected: in force in this process at return, in others soon after.

        Raises:
            sqlite3.Error, OSError: it could not be kept, and is not in force.
        """

        def work() -> None:
            with self._database() as database:
                database.execute(
                    "INSERT INTO blocks VALUES (?, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET reason = excluded.reason",
                    (*_key(selection), reason, time.time()),
                )
            self._load()

        await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def remove(self, selection: Selection) -> bool:
        """Lift exactly the block of ``selection``; whether there was one.

        Raises:
            sqlite3.Error, OSError: the file cannot be written.
        """

        def work() -> bool:
            with self._database() as database:
                found = database.execute(
                    "DELETE FROM blocks WHERE did = ? AND cid = ?", _key(selection)
                ).rowcount
            self._load()
            return found > 0

        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def list(self) -> list[Block]:
        """All blocks, oldest first."""

        def work() -> list[Block]:
            if not self._path.exists():
                return []
            with self._database() as database:
                rows = database.execute(
                    "SELECT did, cid, reason, created_at FROM blocks ORDER BY created_at"
                ).fetchall()
            return [Block(did or None, cid or None, reason, at) for did, cid, reason, at in rows]

        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def follow(self) -> None:
        """Take over other processes' changes until cancelled."""
        while True:
            await trio.sleep(POLL_SECONDS)
            try:
                if not self._settled or self._stamp() != self._seen:
                    await self.load()
            except (sqlite3.Error, OSError) as error:
                # What was last read stays in force.
                log.error("blocks cannot be read", error=str(error))

    def _load(self) -> None:
        # The stamp first: a change that comes while reading is then seen the next time.
        stamp = self._stamp()
        rows: list[tuple[str, str]] = []
        if stamp is not None:
            with self._database() as database:
                rows = database.execute("SELECT did, cid FROM blocks").fetchall()
        self._blocked = frozenset(rows)
        self._seen = stamp
        # A second change within one tick of the file system's clock would leave the same stamp.
        self._settled = stamp is None or abs(time.time() - stamp[1] / 1e9) > SETTLED_SECONDS

    def _stamp(self) -> tuple[int, int, int] | None:
        """Changes with every commit: the rollback journal mode writes the file itself."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
            database.execute(_SCHEMA)
            yield database


def _key(selection: Selection) -> tuple[str, str]:
    return selection.did or "", selection.cid or ""

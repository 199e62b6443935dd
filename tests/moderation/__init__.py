"""Two owners with two blobs, what may be blocked of them, and stores that share a folder.

Two stores on one folder stand for two processes: they share nothing but its files.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import trio

from proxy.coordination.replicas import FolderReplicas
from proxy.model.keys import BlobKey
from proxy.model.selection import Covering, Selection
from proxy.moderation.decision_store import DecisionStore
from proxy.moderation.feeds.label_store import SCHEMA, FeedStore
from proxy.moderation.first_start import FEEDS
from proxy.moderation.folder_blocks import FolderBlocks
from proxy.moderation.store import ModerationStore
from proxy.shared.sqlite import Database
from tests.cache import blob_cid, owner
from tests.processes import until

A1 = BlobKey(owner(1), blob_cid(1))
A2 = BlobKey(owner(1), blob_cid(2))
B1 = BlobKey(owner(2), blob_cid(1))
B2 = BlobKey(owner(2), blob_cid(2))
ALL = [A1, A2, B1, B2]

OWNER = Selection(did=owner(1))
BLOB = Selection(cid=blob_cid(1))
PAIR = Selection(did=owner(1), cid=blob_cid(1))


StoreIn = Callable[[Path], ModerationStore]
"""The fixture ``store_in``."""

AnyStoreIn = Callable[[Path], DecisionStore]
"""The fixture ``any_store_in``."""


@dataclass
class Served:
    """What a process has that follows decisions.

    Attributes:
        cached, remembered: what is on the disk, and in its memory.
    """

    cached: set[BlobKey] = field(default_factory=lambda: {A1, B2})
    remembered: set[BlobKey] = field(default_factory=set)

    def forget(self, covering: Covering) -> None:
        """Drop what is covered from memory."""
        self.remembered = {blob for blob in self.remembered if not covering.covers_blob(blob)}


def open_store(folder: Path) -> ModerationStore:
    """A store as another process would open it; to be closed."""
    store = ModerationStore(folder / "moderation.sqlite3")
    store.make()
    return store


def feed_store_in(folder: Path) -> FeedStore:
    """The store of a folder's labels; to be closed."""
    return FeedStore(Database(folder / FEEDS, SCHEMA, synchronous="FULL"))


def followers_in(folder: Path) -> FolderReplicas:
    """A mark as another process would leave it."""
    return FolderReplicas(folder / "followers")


def decide(store: DecisionStore, *selections: Selection, by: str = "a test") -> int:
    """Keep blocks; the version to follow."""
    entries = [(selection, "") for selection in selections]
    return store.record("block", entries, by=by, owner="nobody").version


def lift(store: DecisionStore, selection: Selection, by: str = "a test") -> bool:
    """Lift the block that ``by`` asked for; whether there was one."""
    return store.lift(selection, by=by, reason="", of_all=False)[0]


def plant_older(folder: Path, *rows: tuple[str, str, str, float]) -> Path:
    """The file in which older versions kept blocks."""
    path = folder / "blocks.sqlite3"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE blocks (did TEXT NOT NULL, cid TEXT NOT NULL, reason TEXT NOT NULL,"
            " created_at REAL NOT NULL, PRIMARY KEY (did, cid)) WITHOUT ROWID"
        )
        database.executemany("INSERT INTO blocks VALUES (?, ?, ?, ?)", rows)
    return path


def checkpoint(path: Path) -> None:
    """Empty the log of a file: from it alone SQLite would make the file whole again."""
    with closing(sqlite3.connect(path)) as connection:
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy


class CountingFollowers(FolderReplicas):
    """Counts what a process does in vain, to be waited for.

    Attributes:
        starts: how often it began to read everything.
        looks: how often it looked for changes.
    """

    starts = looks = 0

    def enter(self) -> None:
        self.starts += 1
        super().enter()

    def is_there(self) -> bool:
        self.looks += 1
        return super().is_there()


class Process:
    """One that follows: what it knows, and what it was told to forget.

    Attributes:
        written: opens for its acknowledgements, as the end of a write does.
    """

    def __init__(self, folder: Path) -> None:
        self.replicas = CountingFollowers(folder / "followers")
        self.blocks = FolderBlocks(ModerationStore(folder / "moderation.sqlite3"), self.replicas)
        self.forgotten: list[Covering] = []
        self.written = trio.Event()
        self.written.set()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow while the block runs."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.blocks.follow, self.forgotten.append, self._wait)
            yield
            nursery.cancel_scope.cancel()

    def blocked(self) -> list[BlobKey]:
        """What of all it has blocked."""
        return [blob for blob in ALL if self.blocks.is_blocked(blob)]

    def forgot(self, since: int = 0) -> list[BlobKey]:
        """What of all it was told to forget after the first ``since`` times."""
        told = self.forgotten[since:]
        return [blob for blob in ALL if any(each.covers_blob(blob) for each in told)]

    async def started_again(self, times: int = 2) -> None:
        """Wait until it has tried to read everything ``times`` more."""
        tries = self.replicas.starts
        await until(lambda: self.replicas.starts >= tries + times)

    async def looked_again(self, times: int = 2) -> None:
        """Wait until it has looked for changes ``times`` more."""
        looks = self.replicas.looks
        await until(lambda: self.replicas.looks >= looks + times)

    async def _wait(self) -> None:
        await self.written.wait()

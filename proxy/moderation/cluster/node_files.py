"""What one machine of a cluster has removed from its disk of what was decided.

A file in the cache folder says which database this is about, and up to which decision. What was
decided while the machine was off is removed when it comes back, before anything is served.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from proxy.cache.layout import IMAGES
from proxy.model.selection import Selection
from proxy.moderation.cluster.store import ClusterStore
from proxy.moderation.first_start import has_content
from proxy.moderation.store import FILE_NAME
from proxy.shared.sqlite import is_full

NAME = "cluster.json"
"""The file, in the cache folder."""


class Remove(Protocol):
    """Removes the selected entries from the disk of this machine; returns their number."""

    async def __call__(self, *selections: Selection) -> int:
        """See ``Cache.purge``."""
        ...


class WrongDatabase(OSError):
    """The decisions of this folder are not those of the database."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.ESTALE, text)


class NodeFiles:
    """The files of results of this machine.

    Methods that are no coroutines block; call them in threads. All may raise ``OSError``.

    Args:
        shares: whether this machine writes to a store that others read.
    """

    def __init__(
        self, folder: Path, store: ClusterStore, remove: Remove, *, shares: bool = False
    ) -> None:
        self._folder = folder
        self._store = store
        self._shares = shares
        self.remove = remove
        self._identity = ""
        self._done = 0
        self._settled = 0

    def check(self) -> None:
        """Check that the database has the decisions of this folder.

        Raises:
            WrongDatabase: it is another one than before, or decisions that were made here before
                there was a cluster were not imported.
            sqlite3.Error: the store of this folder cannot be read.
        """
        self._identity, imported, imported_last = self._store.identity()
        self._settled = self._store.settled()
        try:
            found = json.loads((self._folder / NAME).read_bytes())
            before, self._done = str(found["database"]), int(found["removed"])
        except FileNotFoundError:
            before, self._done = "", -1
        except (ValueError, KeyError, TypeError):
            raise WrongDatabase(f"{self._folder / NAME} cannot be understood") from None
        if before not in ("", self._identity):
            raise WrongDatabase(
                f"this folder followed the decisions of another database: to follow those of"
                f" {self._store.place}, remove {self._folder / NAME}"
            )
        name, own_last = own_decisions(self._folder)
        is_there = not name or (name == imported and own_last <= imported_last)
        if not is_there:
            raise WrongDatabase(
                f"{self._folder / FILE_NAME} has decisions that are not in {self._store.place}:"
                ' run "imageproxy cluster import"'
            )

    async def catch_up(self, last: int) -> None:
        """Remove what was decided up to the decision ``last`` while this machine was away.

        In a folder that is new to the cluster that is all that is blocked. A shared store is purged
        of it once more: a write of this machine may have come there after the purge, and the
        machine may have died before it took that back.
        """
        limiter = trio.CapacityLimiter(1)
        await self._remove_missed(last, limiter)
        # An unfinished purge keeps ``note`` from being called, for days where a store is gone. The
        # machine must not be taken for a new one when it comes back.
        settled = partial(self.note, max(self._settled, self._done))
        await trio.to_thread.run_sync(settled, limiter=limiter)

    async def _remove_missed(self, last: int, limiter: trio.CapacityLimiter) -> None:
        if self._done < 0:
            images = self._folder / IMAGES
            if not await trio.to_thread.run_sync(has_content, images, limiter=limiter):
                return
            after = 0
            while True:
                read = partial(self._store.blocks_after, after)
                page = await trio.to_thread.run_sync(read, limiter=limiter)
                if not page:
                    return
                await self.remove(*(Selection(each.did, each.cid) for each in page))
                after = page[-1].id
        after = self._done
        while after < last:
            work = partial(self._store.decided_to_go, after, last)
            selections, reached = await trio.to_thread.run_sync(work, limiter=limiter)
            if selections:
                await self.remove(*selections)
                if self._shares:
                    again = partial(self._store.purge_again, after, reached)
                    await trio.to_thread.run_sync(again, limiter=limiter)
            after = reached

    def note(self, last: int) -> None:
        """Note that all is removed that was decided up to the decision ``last``.

        On a full disk an earlier note stays, and what is removed by now is removed once more when
        this machine comes back: no decision has to wait for room.
        """
        if last == self._done:
            return
        new = self._folder / f".{NAME}.{os.getpid()}"
        text = json.dumps({"database": self._identity, "removed": last})
        try:
            new.write_text(text, encoding="utf-8")
            new.replace(self._folder / NAME)
        except OSError as error:
            if self._done < 0 or not is_full(error):
                raise
            new.unlink(missing_ok=True)
        else:
            self._done = last


def own_decisions(folder: Path) -> tuple[str, int]:
    """A name for the decisions of a folder's own store, by the first of them, and the number of the
    last; ("", 0): it has none.

    Raises:
        sqlite3.Error, OSError: the store is there, and cannot be read.
    """
    if not has_content(folder / FILE_NAME):
        return "", 0
    with closing(
        sqlite3.connect(f"{(folder / FILE_NAME).absolute().as_uri()}?mode=ro", uri=True)
    ) as file:
        first = file.execute("SELECT at, who, did, cid FROM audit ORDER BY id LIMIT 1").fetchone()
        (last,) = file.execute("SELECT max(id) FROM audit").fetchone()
    if first is None:
        return "", 0
    return hashlib.sha256(repr(first).encode()).hexdigest()[:32], int(last)

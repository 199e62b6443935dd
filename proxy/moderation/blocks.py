"""The blocks in the memory of this process. It follows the changes of the store. In doubt,
nothing is served.

A change is read in a thread and comes into force on the event loop, between two steps of any
request. So a request that begins after the change is always checked against it.
"""

from __future__ import annotations

import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Set
from contextlib import suppress
from functools import partial
from typing import TypeVar

import structlog
import trio

from proxy.coordination.interface import Replicas
from proxy.coordination.replicas import SERVES_NOTHING
from proxy.errors import BlobBlocked, ModerationUnreadable
from proxy.model.keys import BlobKey
from proxy.model.selection import Covering, Everything, Selection, Selections
from proxy.moderation.block_set import BlockSet
from proxy.moderation.decision_store import BlocksSnapshot, Changes, DecisionStore
from proxy.moderation.unfinished_purges import UnfinishedPurges

RETRY_SECONDS = 0.5
"""Seconds until a store that cannot be read is tried again."""

PATIENCE_SECONDS = 5.0
"""A read that takes longer than this shows that the disk hangs; usual reads take milliseconds."""

AT_ONCE = 2000
"""Decisions that are put in force in one step of the event loop, which takes milliseconds."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Blocks(ABC):
    """Follows a store of decisions. Subclasses know how its changes are noticed.

    Before ``follow`` runs, and while the store cannot be read, every check raises.
    """

    def __init__(self, store: DecisionStore, replicas: Replicas) -> None:
        self._store = store
        self._replicas = replicas
        self._limiter = trio.CapacityLimiter(1)
        self._blocked = BlockSet()
        self._purges: dict[int, list[Selection]] = {}
        self._unfinished: frozenset[int] = frozenset()
        self._purging = UnfinishedPurges()
        self._version = 0
        self._last = 0
        self._noted = 0
        self._was_read = False
        self._closed_because: str | None = "not read yet"
        self._reading_since: float | None = None
        self._nudged = trio.Event()
        self._written: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    def __len__(self) -> int:
        """The number of blocked owners, blobs and pairs."""
        return len(self._blocked)

    @property
    def purges_pending(self) -> int:
        """The number of unfinished purges of all processes."""
        return len(self._unfinished)

    def is_purging(self, blob: BlobKey) -> bool:
        """Whether a purge that may cover ``blob`` is not finished in every tier."""
        return self._purging.covers(blob)

    @property
    def problem(self) -> str | None:
        """Why nothing may be served at the moment; None: there is no problem."""
        since = self._reading_since
        if since is not None and time.monotonic() - since > PATIENCE_SECONDS:
            return "the disk does not answer"
        return self._closed_because

    def is_blocked(self, blob: BlobKey) -> bool:
        """Whether a blob may not be served: it is blocked, or the blocks are not known."""
        return self.problem is not None or self._blocked.covers(blob)

    def check(self, blob: BlobKey) -> None:
        """Return if ``blob`` may be served. Reads only memory, in microseconds.

        Raises:
            BlobBlocked: the owner, the blob or the pair is blocked.
            ModerationUnreadable: the blocks are not known.
        """
        problem = self.problem
        if problem is not None:
            raise ModerationUnreadable(f"blocks cannot be read: {problem}")
        if self._blocked.covers(blob):
            raise BlobBlocked(f"{blob.did} {blob.cid} is blocked")

    def make_store_at_first(self) -> None:  # noqa: B027 (not every store is a file there)
        """Make the store before anything else shows that the cache folder is in use.

        The disk may take files only some time after the start. A store that was read is not made
        again. Blocks; call in a thread.

        Raises:
            sqlite3.Error, OSError: it cannot be made, or was lost.
        """

    def nudge(self) -> None:
        """Look for changes now: this process has just made one."""
        self._nudged.set()

    async def follow(
        self,
        forget: Callable[[Covering], None],
        written: Callable[[], Awaitable[None]],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Put the decisions of all processes in force, until cancelled.

        Reports its start after the first attempt to read the store. When it ends, nothing may be
        served any more.

        Args:
            forget: called with what was blocked or purged, in the step of the event loop in which
                that comes into force. It removes all of it from memory and from waiting writes.
            written: awaited before this process confirms a version, or that it serves nothing:
                writes of forgotten results that had begun must have ended.
        """
        self._written = written
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        await self._catch_up(forget, written, nursery)
                    except (sqlite3.Error, OSError) as error:
                        await self._failed(error)
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    with trio.move_on_after(self._poll_seconds if self._follows else RETRY_SECONDS):
                        await self._nudged.wait()
                    self._nudged = trio.Event()
        finally:
            self._closed_because = "stopped"
            with trio.CancelScope(shield=True):
                await self._in_thread(self._leave)

    @property
    def _is_open(self) -> bool:
        return self._closed_because is None

    @property
    def _follows(self) -> bool:
        return self._is_open and self._was_read

    async def _catch_up(
        self,
        forget: Callable[[Covering], None],
        written: Callable[[], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> None:
        if not self._follows:
            await self._read_all(forget)
        elif await self._has_changed():
            await self._read_changes(forget)
        else:
            return
        nursery.start_soon(self._acknowledge, self._version, written)

    async def _read_changes(self, forget: Callable[[Covering], None]) -> None:
        is_all = False
        while not is_all:
            changes = await self._read(partial(self._store.changes, self._last, AT_ONCE))
            self._put_in_force(changes, forget)
            is_all = changes.is_all

    def _put_in_force(self, changes: Changes, forget: Callable[[Covering], None]) -> None:
        meant: list[Selection] = []
        for change in changes.decided:
            did, cid = change.selection.did or "", change.selection.cid or ""
            if change.is_blocked:
                self._blocked.add(did, cid)
            else:
                self._blocked.discard(did, cid)
            meant.append(change.selection)
            if change.purge is not None:
                self._purging.add(change.purge, change.selection)
                again = self._purges.setdefault(change.purge, [])
                if change.is_purge:
                    again.append(change.selection)
        # What is only purged is still served. It may have come back from the disk before the purge
        # was finished there, so it is forgotten again.
        finished = (self._unfinished | self._purges.keys()) - changes.purges
        is_told = True
        for purge in finished:
            self._purging.discard(purge)
            found = self._purges.pop(purge, None)
            is_told = is_told and found is not None
            meant += found or []
        self._last = changes.last
        if changes.is_all:  # until then this version is not in force here
            self._version = changes.version
        self._finish(finished)
        self._unfinished = changes.purges
        if not is_told:  # the purge began before this process followed the store
            forget(Everything())
        elif meant:
            forget(Selections(meant))

    @abstractmethod
    def _finish(self, purges: Set[int]) -> None:
        """Called with purges that are finished from now on."""

    async def _acknowledge(self, version: int, written: Callable[[], Awaitable[None]]) -> None:
        await written()
        # Meanwhile this process may have closed, or confirmed a later version. Notes are written by
        # one thread in order, so the last one stays.
        if self._is_open and version > self._noted:
            self._noted = version
            try:
                await self._in_thread(partial(self._replicas.note, version))
            except OSError as error:
                await self._close(error)

    async def _close(self, error: Exception) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if reason != self._closed_because:
            self._tell(error, reason)
        self._closed_because = reason
        # If this fails, the mark is gone, and no decision waits for this process.
        with suppress(OSError):
            await self._note_closed()

    async def _note_closed(self) -> None:
        """Tell the others that this process serves nothing."""
        await self._in_thread(partial(self._replicas.note, SERVES_NOTHING))

    @property
    @abstractmethod
    def _poll_seconds(self) -> float:
        """Seconds between two looks for changes."""

    @abstractmethod
    async def _has_changed(self) -> bool:
        """Whether there are changes to read.

        Raises:
            sqlite3.Error, OSError: that cannot be told.
        """

    @abstractmethod
    async def _read_all(self, forget: Callable[[Covering], None]) -> None:
        """Read everything, and open.

        Raises:
            sqlite3.Error, OSError: it cannot be read.
        """

    @abstractmethod
    async def _failed(self, error: Exception) -> None:
        """Judge a failure to read: ``_close``, or go on."""

    @abstractmethod
    def _tell(self, error: Exception, reason: str) -> None:
        """Log why nothing is served."""

    @abstractmethod
    def _leave(self) -> None:
        """Close what is open. Blocks."""

    def _load(self, snapshot: BlocksSnapshot) -> None:
        self._blocked = snapshot.blocks
        self._last = snapshot.last
        self._unfinished, self._purges = snapshot.purges, {}
        self._purging = UnfinishedPurges(snapshot.purges)

    def _open(self, forget: Callable[[Covering], None]) -> None:
        forget(Everything())
        self._was_read = True
        self._closed_because = None
        log.info("blocks read", blocks=len(self._blocked))

    async def _read(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the thread. While it takes too long, ``problem`` says so."""
        self._reading_since = time.monotonic()
        try:
            return await self._in_thread(work)
        finally:
            self._reading_since = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

"""The blocks of one machine: those of the store in its cache folder, an SQLite file."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Awaitable, Callable, Set
from contextlib import suppress
from functools import partial

import structlog

from proxy.coordination.change_watch import ChangeWatch, Stamp
from proxy.coordination.replicas import FolderReplicas
from proxy.model.selection import Covering
from proxy.moderation.blocks import Blocks
from proxy.moderation.first_start import StoreMissing
from proxy.moderation.store import ModerationStore
from proxy.shared.sqlite import is_full

POLL_SECONDS = 0.05
"""How often this process looks for changes; a look takes a thread some microseconds."""

NOTHING_READ = 0
"""Noted instead of a version by a process that serves without a store: it is waited for."""

log = structlog.get_logger(__name__)


class FolderBlocks(Blocks):
    """Follows the moderation store of a cache folder.

    Args:
        make_room: called before the next try if the disk is full.
    """

    def __init__(
        self,
        store: ModerationStore,
        replicas: FolderReplicas,
        *,
        make_room: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        super().__init__(store, replicas)
        self._file_store = store
        self._marks = replicas
        self._make_room = make_room
        self._watch = ChangeWatch(store.path)
        self._stamp: Stamp | None = None
        self._must_reopen = False

    def make_store_at_first(self) -> None:
        """See ``Blocks``."""
        if not self._was_read:
            self._file_store.make_at_first_start()

    @property
    def _poll_seconds(self) -> float:
        return POLL_SECONDS

    async def _has_changed(self) -> bool:
        before, self._stamp = self._stamp, await self._read(self._look)
        if before is None or self._stamp.file != before.file:
            raise FileNotFoundError(errno.ENOENT, "the file was replaced by another")
        if self._stamp.content != before.content:
            # A checkpoint, or damage that a connection may not see if it has read before.
            self._must_reopen = True
        return self._stamp != before or self._stamp.commits is None

    def _look(self) -> Stamp:
        if not self._marks.is_there():
            raise FileNotFoundError(errno.ENOENT, "the mark of this process is gone")
        return self._watch.stamp()

    def _enter(self) -> None:
        if not (self._is_open and self._marks.is_there()):
            self._replicas.enter()
        if self._is_open:
            self._replicas.note(NOTHING_READ)

    async def _read_all(self, forget: Callable[[Covering], None]) -> None:
        await self._in_thread(self._enter)
        await self._in_thread(self._file_store.close)
        # After the first read, a missing file means that the blocks were lost.
        await self._in_thread(self.make_store_at_first)
        if self._is_open:  # it served without: now there is one, with blocks perhaps
            self._closed_because = "not read yet"
        await self._in_thread(self._watch.open)
        # A million blocks take seconds. No decision waits for this: nothing is served yet.
        snapshot = await self._in_thread(self._file_store.load)
        self._load(snapshot)
        # From now on, other processes wait for this one. Their earlier decisions are read now.
        self._noted = snapshot.version
        await self._in_thread(partial(self._replicas.note, snapshot.version))
        self._stamp = await self._in_thread(self._watch.stamp)
        await self._read_changes(forget)
        self._open(forget)

    async def _read_changes(self, forget: Callable[[Covering], None]) -> None:
        if self._must_reopen:
            self._must_reopen = False
            await self._in_thread(self._store.close)
        await super()._read_changes(forget)

    async def _failed(self, error: Exception) -> None:
        if await self._in_thread(self._can_be_none):
            await self._serve_without(error)
            return
        await self._close(error)
        if self._make_room is not None and is_full(error):
            with suppress(OSError):
                await self._make_room()

    async def _note_closed(self) -> None:
        # A write that began before could end after a purge that did not wait for it. None begins.
        await self._written()
        await super()._note_closed()

    def _finish(self, purges: Set[int]) -> None:
        """The process that finished them has removed the files, which all processes share."""

    def _tell(self, error: Exception, reason: str) -> None:
        named = getattr(error, "filename", None) or self._file_store.path.name
        path = str(self._file_store.path.parent / named)
        told = str(error) if isinstance(error, StoreMissing) else reason
        log.error("blocks cannot be read: nothing is served", error=told, path=path)

    def _can_be_none(self) -> bool:
        """Whether there is no block here: there never was a store, and none can be made."""
        if self._was_read:
            return False
        try:
            if not self._file_store.is_there():
                self._file_store.make_at_first_start()
        except StoreMissing:
            return False
        except (sqlite3.Error, OSError):
            with suppress(OSError):
                return not self._file_store.is_there()
        return False

    async def _serve_without(self, error: Exception) -> None:
        """Serve without blocks: the cache folder never had a store, and cannot be used."""
        with suppress(OSError):  # without a mark no decision waits for this process
            await self._in_thread(partial(self._replicas.note, NOTHING_READ))
        if self._closed_because is not None:
            log.error("blocks cannot be kept: there are none", error=str(error))
        self._closed_because = None

    def _leave(self) -> None:
        self._watch.close()
        self._replicas.leave()
        self._store.close()

"""The disk tier: a cache folder, worked on in threads."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from proxy.cache.files import CacheFolder, Evicted
from proxy.cache.index import Totals
from proxy.cache.interface import Due, Entry
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection

HIT_THREADS = 4
"""Hits read at once. More of them wait for each other at Python's lock than for the disk."""

CHANGE_THREADS = 2
"""Writes and purges at once. More of them would only wait for the write lock of the index."""

CHORE_THREADS = 2
"""Chores at once: while one is long, such as an index that is made anew, others go on."""

INDEX_CHECK_SECONDS = 5.0
"""How soon an index that was lost is noticed, and made anew."""

MEASURE_SECONDS = 15.0
"""How often the room on the disk is looked at: as often as Prometheus asks."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class DiskCache:
    """A cache in a folder, shared with other processes.

    Cancellation of a call waits for the thread: what was begun is done, or not at all.

    What removes entries works on a full disk too: it gives others up for its own records.

    Args:
        path: the folder; made when it is missing.
        max_bytes: sum of file sizes; least recently used entries go first.
        ttl_seconds: age at which an entry goes; 0: never.
        may_keep: asked in a thread just before a file appears, while no purge can run in any
            process; what it refuses does not appear. May raise ``OSError``.
        on_evicted: called with ``"ttl"`` or ``"size"`` and how many went.
        clock: seconds since the epoch, as file times are.

    Attributes:
        free_bytes: what the file system has left, as ``keep_measured`` found it.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        ttl_seconds: float = 0,
        may_keep: Callable[[ImageKey], bool] = lambda key: True,
        on_evicted: Callable[[str, int], None] = lambda reason, count: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = CacheFolder(
            path, max_bytes=max_bytes, ttl_seconds=ttl_seconds, may_keep=may_keep, clock=clock
        )
        self._on_evicted = on_evicted
        self.free_bytes = math.nan
        # Apart: no hit waits for a write, and neither of them for a chore.
        self._hits = trio.CapacityLimiter(HIT_THREADS)
        self._changes = trio.CapacityLimiter(CHANGE_THREADS)
        self._chores = trio.CapacityLimiter(CHORE_THREADS)

    @property
    def images(self) -> Path:
        """The folder of the results, absolute."""
        return self._folder.images

    def statistics(self) -> Totals:
        """What is kept, as of this process's last change or cleanup."""
        return self._folder.totals

    async def check(self) -> None:
        """See ``Cache.check``. Makes the folder, and finishes what dead processes began."""
        await trio.to_thread.run_sync(self._folder.check, limiter=self._changes)

    async def get(self, key: ImageKey) -> Entry | None:
        """See ``Cache.get``. What expired is not found; what is not what was written goes."""
        return await trio.to_thread.run_sync(self._folder.get, key, limiter=self._hits)

    async def put(self, key: ImageKey, entry: Entry) -> None:
        """See ``Cache.put``. What was put survives the end of this process, and a loss of power."""
        self._note(
            await trio.to_thread.run_sync(self._folder.put, key, entry, limiter=self._changes)
        )

    async def purge(self, *selections: Selection) -> int:
        """See ``Cache.purge``. Writes of it under way in any process come to nothing."""
        return await self._with_room(self._changes, lambda: self._folder.purge(selections))

    async def blobs(self, selections: Sequence[Selection]) -> frozenset[BlobKey]:
        """The blobs that anything is kept of, among those that are selected."""
        return await trio.to_thread.run_sync(self._folder.blobs, selections, limiter=self._changes)

    async def cleanup(self) -> int:
        """See ``Cache.cleanup``."""
        evicted = await self._with_room(self._chores, self._folder.cleanup)
        self._note(evicted)
        return evicted.expired + evicted.for_size

    async def with_room(self, work: Callable[[], T]) -> T:
        """Do ``work``, in a thread; where the disk is too full for it, entries are given up.

        Raises what it raises, also where there was nothing (more) to give up.
        """
        return await self._with_room(self._changes, work)

    async def make_room(self) -> bool:
        """Give entries up, because the disk is full; whether there were any.

        Raises:
            OSError: they cannot be removed.
        """
        return await trio.to_thread.run_sync(self._folder.give_up, limiter=self._changes) > 0

    async def aclose(self) -> None:
        """Tell other processes that this one is done. What is called next begins anew."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._folder.close, limiter=self._changes)

    async def make_indexed(self) -> None:
        """Make the index anew from the files where it is not complete.

        Cancellation leaves it incomplete; the next call goes on.

        Raises:
            OSError: the folder cannot be read, or the index not written.
        """
        if not await self._with_room(self._chores, self._folder.is_indexed):
            await self._index()

    async def keep_indexed(self) -> None:
        """``make_indexed``, again and again, until cancelled."""
        while True:
            try:
                await self.make_indexed()
            except OSError as error:
                log.warning("the index of the cache cannot be made", error=str(error))
            await trio.sleep(INDEX_CHECK_SECONDS)

    async def keep_measured(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Know ``free_bytes``, until cancelled; not a number while the disk does not tell."""
        is_first = True
        while True:
            try:
                self.free_bytes = await trio.to_thread.run_sync(
                    self._folder.free, limiter=self._chores
                )
            except OSError:
                self.free_bytes = math.nan
            if is_first:
                is_first = False
                task_status.started()
            await trio.sleep(MEASURE_SECONDS)

    async def by_preset(self) -> dict[str, Totals]:
        """What is kept, by preset and fingerprint."""
        return await trio.to_thread.run_sync(self._folder.by_preset, limiter=self._chores)

    async def verify(
        self, *, repair: bool
    ) -> AsyncGenerator[tuple[float, list[tuple[str, Path]]], None]:
        """Hold files and index against each other; see ``CacheFolder.verify_shard``.

        Yields:
            The share that is done, and what is wrong in the part that was looked at.
        """
        shards = await trio.to_thread.run_sync(self._folder.known_shards, limiter=self._chores)
        for number, shard in enumerate(shards, 1):
            look = partial(self._folder.verify_shard, shard, repair=repair)
            yield number / len(shards), await self._with_room(self._chores, look)

    async def has(self, selection: Selection) -> bool:
        """Whether anything of what is selected is kept."""
        return await trio.to_thread.run_sync(self._folder.has, selection, limiter=self._chores)

    async def due_for_check(self, before: float, limit: int, *, after: float = 0.0) -> list[Due]:
        """Blobs last seen at their PDS later than ``after`` and until ``before``, oldest first.

        Times are seconds since the epoch. A blob comes once for each of its entries.
        """
        return await trio.to_thread.run_sync(
            self._folder.due_for_check, before, limit, after, limiter=self._chores
        )

    async def mark_checked(self, blob: BlobKey) -> None:
        """Note that its PDS has the blob now."""
        await trio.to_thread.run_sync(self._folder.mark_checked, blob, limiter=self._chores)

    async def _index(self) -> None:
        added = 0
        for shard in await trio.to_thread.run_sync(self._folder.shards, limiter=self._chores):
            added += await self._with_room(self._chores, partial(self._folder.index_shard, shard))
        await self._with_room(self._chores, self._folder.forget_missing)
        await self._with_room(self._chores, self._folder.set_indexed)
        if added:
            log.info("files found that the index of the cache did not know", files=added)

    def _note(self, evicted: Evicted) -> None:
        for reason, count in (("ttl", evicted.expired), ("size", evicted.for_size)):
            if count:
                self._on_evicted(reason, count)

    async def _with_room(self, limiter: trio.CapacityLimiter, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(self._folder.with_room, work, limiter=limiter)

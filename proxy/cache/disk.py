"""The disk tier: a cache folder, read and changed in threads."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from proxy.cache.files import CacheFolder, Evicted
from proxy.cache.index import Totals
from proxy.cache.interface import Due, Entry
from proxy.cache.lately_read import LatelyRead
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Covering, Selection

HIT_THREADS = 4
"""Hits read at the same time. More would wait for Python's lock rather than for the disk."""

LARGEST_AT_ONCE = 256 * 1024
"""Bytes of a file that the event loop may read and hash: a fifth of a millisecond."""

CHANGE_THREADS = 2
"""Writes and purges at the same time. More would only wait for the write lock of the index."""

CHORE_THREADS = 2
"""Chores at the same time: during a long one, such as rebuilding the index, others go on."""

INDEX_CHECK_SECONDS = 5.0
"""Seconds between two checks whether the index was lost and must be rebuilt."""

MEASURE_SECONDS = 15.0
"""Seconds between measurements of the free space: as often as Prometheus scrapes."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class DiskCache:
    """A cache in a folder, shared with other processes.

    A cancelled call still waits for its thread: the work is done completely, or not at all.

    Methods that remove entries work on a full disk too: they delete other entries to make room for
    their own records in the index.

    Args:
        path: the folder; created if it is missing.
        max_bytes: limit of the sum of file sizes; least recently used entries are removed first.
        ttl_seconds: age at which an entry expires; 0: never.
        may_keep: called in a thread just before a file appears, while no purge can run in any
            process. If it returns False, the file does not appear. May raise ``OSError``.
        before_making: called in a thread before the index is made. May raise ``OSError``.
        fsync: sync each file before it appears.
        on_evicted: called with ``"ttl"`` or ``"size"``, and the number of entries removed.
        clock: seconds since the epoch, like file times.

    Attributes:
        free_bytes: free space of the file system, as ``keep_measured`` last measured it.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        ttl_seconds: float = 0,
        may_keep: Callable[[ImageKey], bool] = lambda key: True,
        before_making: Callable[[], None] = lambda: None,
        fsync: bool = True,
        on_evicted: Callable[[str, int], None] = lambda reason, count: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = CacheFolder(
            path,
            max_bytes=max_bytes,
            ttl_seconds=ttl_seconds,
            may_keep=may_keep,
            before_making=before_making,
            fsync=fsync,
            clock=clock,
        )
        self._lately_read = LatelyRead()
        self._on_evicted = on_evicted
        self.free_bytes = math.nan
        # Separate limiters: no hit waits for a write, and neither waits for a chore.
        self._hits = trio.CapacityLimiter(HIT_THREADS)
        self._changes = trio.CapacityLimiter(CHANGE_THREADS)
        self._chores = trio.CapacityLimiter(CHORE_THREADS)

    @property
    def images(self) -> Path:
        """The absolute path of the folder of results."""
        return self._folder.images

    def statistics(self) -> Totals:
        """Return the totals as of this process's last change or cleanup."""
        return self._folder.totals

    async def check(self) -> None:
        """See ``Cache.check``. Creates the folder, and finishes the work of dead processes."""
        await trio.to_thread.run_sync(self._folder.check, limiter=self._changes)

    def at_once(self, key: ImageKey) -> Entry | None:
        """See ``Cache.at_once``: a file that was read lately, and that the kernel has in memory."""
        file = self._lately_read.find(key, trio.current_time())
        return None if file is None else self._folder.get_cached(file)

    def forget(self, covering: Covering) -> None:
        """See ``Cache.forget``."""
        self._lately_read.forget(covering)

    async def get(self, key: ImageKey) -> Entry | None:
        """See ``Cache.get``. An expired entry is not found; a damaged one is removed."""
        since = self._lately_read.moment
        if self._folder.is_known_missing(key):  # as when it was looked for a moment ago
            await trio.lowlevel.checkpoint()
            found = None
        else:
            found = await trio.to_thread.run_sync(self._folder.get, key, limiter=self._hits)
        if found is None:
            self._lately_read.discard(key)
            return None
        entry, file = found
        if file.size <= LARGEST_AT_ONCE:
            self._lately_read.add(key, file, trio.current_time(), since)
        return entry

    async def put(self, key: ImageKey, entry: Entry) -> None:
        """See ``Cache.put``. The entry survives the end of this process.

        With ``fsync`` it survives a loss of power too.
        """
        await self.put_all({key: entry})

    async def put_all(self, entries: Mapping[ImageKey, Entry]) -> None:
        """See ``Cache.put_all``; otherwise like ``put``."""
        self._note(
            await trio.to_thread.run_sync(self._folder.put_all, entries, limiter=self._changes)
        )

    async def purge(self, *selections: Selection) -> int:
        """See ``Cache.purge``. Cancels matching writes that are in progress in any process."""
        return await self._with_room(self._changes, lambda: self._folder.purge(selections))

    async def blobs(self, selections: Sequence[Selection]) -> frozenset[BlobKey]:
        """Return the selected blobs that have at least one entry."""
        return await trio.to_thread.run_sync(self._folder.blobs, selections, limiter=self._changes)

    async def cleanup(self) -> int:
        """See ``Cache.cleanup``."""
        evicted = await self._with_room(self._chores, self._folder.cleanup)
        self._note(evicted)
        return evicted.expired + evicted.for_size

    async def with_room(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread; if the disk is too full for it, delete entries and try again.

        Raises whatever ``work`` raises, also if there are no (more) entries to delete.
        """
        return await self._with_room(self._changes, work)

    async def make_room(self) -> bool:
        """Delete entries because the disk is full; return whether there were any.

        Raises:
            OSError: the entries cannot be removed.
        """
        return await trio.to_thread.run_sync(self._folder.give_up, limiter=self._changes) > 0

    async def aclose(self) -> None:
        """Tell other processes that this one has finished. A later call starts afresh."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._folder.close, limiter=self._changes)

    async def make_indexed(self) -> None:
        """Rebuild the index from the files if it is not complete.

        Cancellation leaves it incomplete; the next call continues.

        Raises:
            OSError: the folder cannot be read, or the index cannot be written.
        """
        if not await self._with_room(self._chores, self._folder.is_indexed):
            await self._index()

    async def keep_indexed(self) -> None:
        """Call ``make_indexed`` every ``INDEX_CHECK_SECONDS``, until cancelled.

        After the first time, remove what an earlier release left; see ``remove_refused``.
        """
        is_first = True
        while True:
            try:
                await self.make_indexed()
                if is_first:
                    await self._with_room(self._chores, self._folder.remove_refused)
                    is_first = False
            except OSError as error:
                log.warning("the index of the cache cannot be made", error=str(error))
            await trio.sleep(INDEX_CHECK_SECONDS)

    async def keep_measured(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Update ``free_bytes`` until cancelled; NaN while it cannot be measured."""
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

    async def by_preset(self, selection: Selection | None = None) -> dict[str, Totals]:
        """Return the totals by preset and fingerprint: those of a selection, or of all."""
        return await trio.to_thread.run_sync(
            self._folder.by_preset, selection, limiter=self._chores
        )

    async def verify(
        self, *, repair: bool
    ) -> AsyncGenerator[tuple[float, list[tuple[str, Path]]], None]:
        """Compare the files with the index; see ``CacheFolder.verify_shard``.

        Yields:
            The share that is done (0 to 1), and the faults in the part just compared.
        """
        above = partial(self._folder.verify_above_shards, repair=repair)
        yield 0.0, await trio.to_thread.run_sync(above, limiter=self._chores)
        shards = await trio.to_thread.run_sync(self._folder.known_shards, limiter=self._chores)
        for number, shard in enumerate(shards, 1):
            look = partial(self._folder.verify_shard, shard, repair=repair)
            yield number / len(shards), await self._with_room(self._chores, look)

    async def due_for_check(self, before: float, limit: int, *, after: float = 0.0) -> list[Due]:
        """Return blobs last seen at their PDS after ``after`` and until ``before``, oldest first.

        Times are seconds since the epoch. A blob is listed once for each of its entries.
        """
        return await trio.to_thread.run_sync(
            self._folder.due_for_check, before, limit, after, limiter=self._chores
        )

    async def last_checked(self, blob: BlobKey) -> float | None:
        """Return when the PDS was last seen to have the blob; None: it is not cached."""
        return await trio.to_thread.run_sync(self._folder.last_checked, blob, limiter=self._chores)

    async def correct_checks(self, time: float) -> None:
        """Let blobs that were last seen in the future have been seen at ``time``."""
        await trio.to_thread.run_sync(self._folder.correct_checks, time, limiter=self._chores)

    async def mark_checked(self, blob: BlobKey) -> None:
        """Record that the PDS has the blob now."""
        await trio.to_thread.run_sync(self._folder.mark_checked, blob, limiter=self._chores)

    async def _index(self) -> None:
        added = 0
        doubt = await self._with_room(self._chores, self._folder.begin_indexing)
        for shard in await trio.to_thread.run_sync(self._folder.shards, limiter=self._chores):
            added += await self._with_room(self._chores, partial(self._folder.index_shard, shard))
        await self._with_room(self._chores, self._folder.forget_missing)
        await self._with_room(self._chores, partial(self._folder.set_indexed, doubt))
        if added:
            log.info("files found that the index of the cache did not know", files=added)

    def _note(self, evicted: Evicted) -> None:
        for reason, count in (("ttl", evicted.expired), ("size", evicted.for_size)):
            if count:
                self._on_evicted(reason, count)

    async def _with_room(self, limiter: trio.CapacityLimiter, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(self._folder.with_room, work, limiter=limiter)

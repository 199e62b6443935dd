"""The supervised cache writer: takes writes from a bounded channel, so that no response waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import structlog
import trio
from trio_util import AsyncValue

from proxy.cache.interface import Cache, Entry
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Covering, Selection, Selections
from proxy.shared.tag_index import TagIndex

RETRY_PAUSE = 1.0
"""Seconds before a failed write is tried its second and last time."""

MAX_BYTES = 64 * 1024**2
"""Bytes of results that may wait; a larger one waits only if it is alone."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    entry: Entry
    on_settled: Callable[[], None]


class CacheWriter:
    """Writes results to the cache in the background, so that responses do not wait.

    Args:
        cache: the cache to write to.
        queue_size: how many writes may wait.
        refuses: called just before a write; if True, the blob was blocked meanwhile, and nothing
            is written.
        on_written: called for each successful write.
        on_error: called for each failed attempt.
        on_dropped: called for each write dropped because the channel is full.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        queue_size: int,
        refuses: Callable[[BlobKey], bool] = lambda blob: False,
        on_written: Callable[[], None] = lambda: None,
        on_error: Callable[[Exception], None] = lambda error: None,
        on_dropped: Callable[[], None] = lambda: None,
    ) -> None:
        self._cache = cache
        self._send, self._receive = trio.open_memory_channel[ImageKey](queue_size)
        self._pending: dict[ImageKey, _Write] = {}
        self._by_tag: TagIndex[ImageKey] = TagIndex(attrgetter("blob.tags"))
        self._writing = trio.Lock()
        self._queue_size = queue_size
        self._waiting: AsyncValue[int] = AsyncValue(0)
        self._bytes = 0
        self._refuses = refuses
        self._on_written = on_written
        self._on_error = on_error
        self._on_dropped = on_dropped

    def offer(
        self, key: ImageKey, entry: Entry, on_settled: Callable[[], None] = lambda: None
    ) -> None:
        """Queue ``entry`` for writing. Never waits: a full channel drops and counts the write.

        The channel is full too if what waits has more than ``MAX_BYTES``.

        Args:
            on_settled: called once, when the entry was written or will never be written.
        """
        if key in self._pending:
            on_settled()
            return
        length = len(entry.data)
        try:
            if self._pending and self._bytes + length > MAX_BYTES:
                raise trio.WouldBlock
            self._send.send_nowait(key)
        except (trio.WouldBlock, trio.ClosedResourceError):
            self._on_dropped()
            log.warning("cache write dropped", preset=key.preset)
            on_settled()
            return
        self._pending[key] = _Write(entry, on_settled)
        self._bytes += length
        self._by_tag.add(key)
        self._waiting.value += 1

    def pending(self, key: ImageKey) -> Entry | None:
        """Return the entry of ``key`` while it waits to be written, else None."""
        write = self._pending.get(key)
        return None if write is None else write.entry

    async def settled(self) -> None:
        """Wait until less than half of the channel is in use."""
        await self._waiting.wait_value(lambda waiting: waiting * 2 < self._queue_size)

    def discard(self, covering: Covering) -> None:
        """Drop covered writes that still wait. For a write that has begun, see ``begun``."""
        for key in self._by_tag.find(covering.tags, self._pending):
            self._settle(key)

    async def begun(self) -> None:
        """Wait for the write in progress, so that it cannot restore an entry purged next."""
        async with self._writing:
            pass

    async def purge(self, *selections: Selection) -> int:
        """Remove the selected entries from the cache, and drop their waiting writes.

        Waits for a write in progress, so that it cannot restore an entry.
        """
        self.discard(Selections(selections))
        async with self._writing:
            return await self._cache.purge(*selections)

    def close(self) -> None:
        """Accept no more writes; ``run`` returns when the accepted ones are done."""
        self._send.close()

    async def run(self) -> None:
        """Write until ``close``, then write what is left in the channel, and return.

        It may be called again after a crash: only the write that crashed is lost.
        """
        async for key in self._receive:
            self._waiting.value -= 1
            await self._write(key)

    async def _write(self, key: ImageKey) -> None:
        write = self._pending.get(key)
        if write is None:  # purged
            return
        try:
            for is_last_try in (False, True):
                try:
                    async with self._writing:
                        if self._pending.get(key) is not write or self._refuses(key.blob):
                            return
                        await self._cache.put(key, write.entry)
                except Exception as error:
                    self._on_error(error)
                    log.warning("cache write failed", error=str(error), gives_up=is_last_try)
                else:
                    self._on_written()
                    return
                if not is_last_try:
                    await trio.sleep(RETRY_PAUSE)
        finally:
            # A purge may have settled this write, and a newer write may have the same key.
            if self._pending.get(key) is write:
                self._settle(key)

    def _settle(self, key: ImageKey) -> None:
        self._by_tag.discard((key,))
        write = self._pending.pop(key)
        self._bytes -= len(write.entry.data)
        write.on_settled()

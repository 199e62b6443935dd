"""The supervised cache writer: takes writes from a bounded channel, so that no response waits."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter

import structlog
import trio
from trio_util import AsyncValue

from proxy.cache.interface import Cache, Entry
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Covering, Selection, Selections
from proxy.observability.repeats import Repeats
from proxy.shared.tag_index import TagIndex

RETRY_PAUSE = 1.0
"""Seconds before a failed write is tried its second and last time."""

TOGETHER = 16
"""The most writes of one transaction. A purge waits for it: on a slow disk, tenths of a second."""

GATHERING_SECONDS = 0.05
"""Seconds between the begins of two transactions, unless ``TOGETHER`` wait. A write that comes
alone does not wait; of a stream of misses each transaction has several."""

MAX_BYTES = 64 * 1024**2
"""Bytes of results that may wait; a larger one waits only if it is alone."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    entry: Entry
    on_settled: Callable[[], None]
    is_new: bool


class CacheWriter:
    """Writes results to the cache in the background, so that responses do not wait.

    Args:
        cache: the cache to write to.
        queue_size: how many writes may wait.
        refuses: called just before a write; if True, the blob was blocked meanwhile, and nothing
            is written.
        on_written: called for each successful write.
        hand_on: called with what was made here, once it was written or could not be.
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
        hand_on: Callable[[ImageKey, Entry], None] = lambda key, entry: None,
        on_error: Callable[[Exception], None] = lambda error: None,
        on_dropped: Callable[[], None] = lambda: None,
    ) -> None:
        self._cache = cache
        self._send, self._receive = trio.open_memory_channel[ImageKey](queue_size)
        self._pending: dict[ImageKey, _Write] = {}
        # Off the channel, and not written yet. It outlives a crash of ``run``.
        self._taken: deque[ImageKey] = deque()
        self._by_tag: TagIndex[ImageKey] = TagIndex(attrgetter("blob.tags"))
        self._writing = trio.Lock()
        self._queue_size = queue_size
        self._waiting: AsyncValue[int] = AsyncValue(0)
        self._bytes = 0
        self._last_taken = -math.inf
        self._refuses = refuses
        self._on_written = on_written
        self._hand_on = hand_on
        self._on_error = on_error
        self._on_dropped = on_dropped
        self._drops = Repeats()

    def offer(
        self,
        key: ImageKey,
        entry: Entry,
        on_settled: Callable[[], None] = lambda: None,
        *,
        is_new: bool = True,
    ) -> None:
        """Queue ``entry`` for writing. Never waits: a full channel drops and counts the write.

        The channel is full too if what waits has more than ``MAX_BYTES``.

        Args:
            on_settled: called once, when the entry was written or will never be written.
            is_new: it was made here; False: it came from where it would be handed on to.
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
            told = "cache write dropped"
            self._drops.write(
                told, trio.current_time(), log.warning, log.debug, told, preset=key.preset
            )
            on_settled()
            return
        self._pending[key] = _Write(entry, on_settled, is_new)
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
        while await self._take():
            if len(self._taken) > 1:
                await self._write_together()
            while self._taken:
                await self._write(self._leave(self._taken[0]))

    async def _take(self) -> bool:
        """Take what waits off the channel, at most ``TOGETHER``; False: there will be no more."""
        with suppress(trio.EndOfChannel, trio.WouldBlock):
            if not self._taken:
                self._taken.append(await self._receive.receive())
            with trio.move_on_at(self._last_taken + GATHERING_SECONDS):
                while len(self._taken) < TOGETHER:
                    self._taken.append(await self._receive.receive())
            while len(self._taken) < TOGETHER:
                self._taken.append(self._receive.receive_nowait())
        self._last_taken = trio.current_time()
        return bool(self._taken)

    def _leave(self, key: ImageKey) -> ImageKey:
        """``key``, which waits no longer: its write begins, or has ended."""
        self._taken.remove(key)
        self._waiting.value -= 1
        return key

    async def _write_together(self) -> None:
        """Write what was taken. What this leaves is to be written one by one."""
        async with self._writing:
            try:
                writes = {
                    key: write
                    for key in self._taken
                    if (write := self._pending.get(key)) is not None and not self._refuses(key.blob)
                }
                await self._cache.put_all({key: write.entry for key, write in writes.items()})
            except Exception as error:
                # One of them may be the cause, which shows when each is written by itself.
                log.info("cache writes failed together", writes=len(self._taken), error=str(error))
                return
        for key, write in writes.items():
            self._leave(key)
            try:
                self._on_written()
                self._finish(key, write)
            finally:
                self._end(key, write)

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
                    break
                if not is_last_try:
                    await trio.sleep(RETRY_PAUSE)
            self._finish(key, write)
        finally:
            self._end(key, write)

    def _finish(self, key: ImageKey, write: _Write) -> None:
        if write.is_new and self._pending.get(key) is write:
            self._hand_on(key, write.entry)

    def _end(self, key: ImageKey, write: _Write) -> None:
        # A purge may have settled this write, and a newer write may have the same key.
        if self._pending.get(key) is write:
            self._settle(key)

    def _settle(self, key: ImageKey) -> None:
        self._by_tag.discard((key,))
        write = self._pending.pop(key)
        self._bytes -= len(write.entry.data)
        write.on_settled()

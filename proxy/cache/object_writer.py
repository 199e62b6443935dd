"""Gives results and sources to the shared store in the background, through a bounded channel.

The writer of the disk hands them on, so that neither an answer nor a write to the disk waits for
the store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from proxy.cache.interface import Entry
from proxy.cache.object_store import WRITE_THREADS, ObjectStore, Source, StoreUnavailable
from proxy.cache.writer import MAX_BYTES
from proxy.model.keys import BlobKey, ImageKey, Tag
from proxy.model.selection import Covering
from proxy.shared.tag_index import TagIndex

Key = ImageKey | BlobKey
"""Of a result, or of a source."""


class _Write:
    """A write that waits or has begun."""

    __slots__ = ("ended", "is_dropped", "size", "work")

    def __init__(self, size: int, work: Callable[[], Awaitable[None]]) -> None:
        self.size = size
        self.work = work
        self.is_dropped = False
        self.ended: trio.Event | None = None


class ObjectWriter:
    """Writes to a store in ``WRITE_THREADS`` tasks.

    Args:
        queue_size: how many writes may wait; together at most ``MAX_BYTES``.
        on_dropped: called for each write that found no room.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        queue_size: int,
        on_dropped: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._send, self._receive = trio.open_memory_channel[Key](queue_size)
        self._writes: dict[Key, _Write] = {}
        self._by_tag: TagIndex[Key] = TagIndex(_tags_of)
        self._bytes = 0
        self._on_dropped = on_dropped

    def offer(self, key: ImageKey, entry: Entry) -> None:
        """Queue a result. Never waits: without room it is dropped and counted."""
        self._offer(key, len(entry.data), partial(self._store.put, key, entry))

    def offer_source(self, blob: BlobKey, source: Source) -> None:
        """Queue a source, as ``offer`` does."""
        work = partial(self._store.put_source, blob, source)
        self._offer(blob, len(source.data), work)

    def discard(self, covering: Covering) -> None:
        """Drop covered writes that wait. For those that have begun, see ``begun``."""
        for key in self._by_tag.find(covering.tags, self._writes):
            self._writes[key].is_dropped = True
        self._store.forget(covering)

    async def begun(self) -> None:
        """Wait for the writes that were dropped after they had begun."""
        for write in list(self._writes.values()):
            if write.is_dropped and write.ended is not None:
                await write.ended.wait()

    def close(self) -> None:
        """Accept no more writes; ``run`` returns when the accepted ones are done."""
        self._send.close()

    async def run(self) -> None:
        """Write until ``close``, then write what is left, and return."""
        async with trio.open_nursery() as nursery:
            for _ in range(WRITE_THREADS):
                nursery.start_soon(self._consume, name="store_consumer")

    async def _consume(self) -> None:
        async for key in self._receive:
            write = self._writes[key]
            try:
                if not write.is_dropped:
                    write.ended = trio.Event()
                    await write.work()
            except StoreUnavailable:
                pass  # counted and logged; another node, or a later miss, may write it
            finally:
                del self._writes[key]
                self._by_tag.discard((key,))
                self._bytes -= write.size
                if write.ended is not None:
                    write.ended.set()

    def _offer(self, key: Key, size: int, work: Callable[[], Awaitable[None]]) -> None:
        if key in self._writes:
            # Of one that was purged, no second write is needed: the next miss brings it.
            return
        try:
            if self._writes and self._bytes + size > MAX_BYTES:
                raise trio.WouldBlock
            self._send.send_nowait(key)
        except (trio.WouldBlock, trio.ClosedResourceError):
            self._on_dropped()
            return
        self._writes[key] = _Write(size, work)
        self._by_tag.add(key)
        self._bytes += size


def _tags_of(key: Key) -> tuple[Tag, ...]:
    return key.blob.tags if isinstance(key, ImageKey) else key.tags

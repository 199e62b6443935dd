"""A cache that notes when it is looked after, for the tests of its chores."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import trio

from proxy.cache.interface import Entry
from proxy.model.keys import ImageKey
from proxy.model.selection import Covering, Selection

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FakeCache:
    """Notes when it is looked after."""

    def __init__(self) -> None:
        self.cleanups: list[float] = []
        self.checks: list[float] = []
        self.failure: OSError | None = None
        self.hangs = False

    def at_once(self, key: ImageKey) -> Entry | None:
        """See ``Cache.at_once``."""
        return None

    def forget(self, covering: Covering) -> None:
        """See ``Cache.forget``."""

    async def get(self, key: ImageKey) -> Entry | None:
        raise NotImplementedError

    async def put(self, key: ImageKey, entry: Entry) -> None:
        raise NotImplementedError

    async def put_all(self, entries: Mapping[ImageKey, Entry]) -> None:
        raise NotImplementedError

    async def purge(self, *selections: Selection) -> int:
        raise NotImplementedError

    async def cleanup(self) -> int:
        await self._note(self.cleanups)
        return 7

    async def check(self) -> None:
        await self._note(self.checks)

    async def _note(self, times: list[float]) -> None:
        times.append(trio.current_time() - self.began)
        if self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure

    @property
    def began(self) -> float:
        return getattr(self, "_began", 0.0)

    def begin(self) -> None:
        """Count time from now."""
        self._began = trio.current_time()


@asynccontextmanager
async def running(
    cache: FakeCache, chore: Callable[..., object], *arguments: object
) -> AsyncIterator[trio.Nursery]:
    """The chore runs from the block's beginning, and has to end when it is cancelled."""
    cache.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chore, *arguments)  # type: ignore[arg-type]
        yield nursery
        nursery.cancel_scope.cancel()

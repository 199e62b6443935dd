"""Implementations of the service's Protocols without disk, threads or network.

They count their calls, fail on demand, and can be held at a gate, so that what depends on time
runs under an autojumping clock (which does not wait for threads).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from proxy.cache.interface import Entry
from proxy.imaging.workers.fair_shares import UNKNOWN, Publisher
from proxy.imaging.workers.pool import Processed
from proxy.model.formats import Format
from proxy.model.identifiers import Did
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.presets import Preset
from proxy.model.selection import Covering, Selection, Selections


class Gate:
    """Open by default; closed, it holds all that pass."""

    def __init__(self) -> None:
        self._open = trio.Event()
        self._open.set()
        self.waiting = 0

    def close(self) -> None:
        self._open = trio.Event()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        """A checkpoint at least."""
        self.waiting += 1
        try:
            await trio.lowlevel.checkpoint()
            await self._open.wait()
        finally:
            self.waiting -= 1


class FakeCache:
    """A ``Cache`` in a dictionary.

    Attributes:
        gets, puts: the keys of every call, in order.
        get_gate, put_gate: hold those calls.
        get_error, put_errors: raised by ``get`` always, by ``put`` one each.
    """

    def __init__(self) -> None:
        self.entries: dict[ImageKey, Entry] = {}
        self.gets: list[ImageKey] = []
        self.puts: list[ImageKey] = []
        self.get_gate = Gate()
        self.put_gate = Gate()
        self.get_error: Exception | None = None
        self.put_errors: list[Exception] = []
        self.check_error: OSError | None = None

    def at_once(self, key: ImageKey) -> Entry | None:
        """See ``Cache.at_once``."""
        return None

    def forget(self, covering: Covering) -> None:
        """See ``Cache.forget``."""

    async def get(self, key: ImageKey) -> Entry | None:
        """See ``Cache.get``."""
        self.gets.append(key)
        found = self.entries.get(key)
        await self.get_gate.passed()
        if self.get_error is not None:
            raise self.get_error
        return found

    async def put(self, key: ImageKey, entry: Entry) -> None:
        """See ``Cache.put``."""
        self.puts.append(key)
        await self.put_gate.passed()
        if self.put_errors:
            raise self.put_errors.pop(0)
        self.entries[key] = entry

    async def put_all(self, entries: Mapping[ImageKey, Entry]) -> None:
        """See ``Cache.put_all``. It fails where a ``put`` would, which is still to fail then."""
        if self.put_errors:
            raise self.put_errors[0]
        for key, entry in entries.items():
            await self.put(key, entry)

    async def purge(self, *selections: Selection) -> int:
        """See ``Cache.purge``."""
        await trio.lowlevel.checkpoint()
        covering = Selections(selections)
        selected = [key for key in self.entries if covering.covers_blob(key.blob)]
        for key in selected:
            del self.entries[key]
        return len(selected)

    async def cleanup(self) -> int:
        """See ``Cache.cleanup``."""
        await trio.lowlevel.checkpoint()
        return 0

    async def check(self) -> None:
        """See ``Cache.check``."""
        await trio.lowlevel.checkpoint()
        if self.check_error is not None:
            raise self.check_error


class FakeProcessor:
    """A ``Processor`` whose result names its source and preset.

    Attributes:
        calls: sources and presets that a transform was begun for, in order.
        publishers: of the sources that were asked for, in order.
        queue: holds transforms that wait for their turn.
        gate: holds transforms under way.
        error: raised by every transform.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, Preset]] = []
        self.publishers: list[Publisher] = []
        self.queue = Gate()
        self.gate = Gate()
        self.error: Exception | None = None

    async def process(
        self,
        source: bytes,
        preset: Preset,
        output: Format | None,
        *,
        publisher: Publisher = UNKNOWN,
        on_start: Callable[[], None] = lambda: None,
    ) -> Processed:
        """See ``Processor.process``."""
        self.publishers.append(publisher)
        await self.queue.passed()
        on_start()
        self.calls.append((source, preset))
        # A thread cannot be stopped half-way either.
        with trio.CancelScope(shield=True):
            await self.gate.passed()
        if self.error is not None:
            raise self.error
        return Processed(self.result(source, preset), output or Format.PNG, 0.0, 0.0)

    @staticmethod
    def result(source: bytes, preset: Preset) -> bytes:
        """What ``process`` makes of ``source``."""
        return b"%dx%d of " % (preset.width, preset.height) + source


class FakeFetcher:
    """A ``Fetcher`` of blobs that were put into it.

    Attributes:
        blobs: by PDS and key.
        calls: in order.
        gate: holds fetches under way.
        errors: raised instead, one each.
        cancelled: fetches that were cancelled.
    """

    def __init__(self) -> None:
        self.blobs: dict[tuple[str, BlobKey], bytes] = {}
        self.calls: list[tuple[str, BlobKey]] = []
        self.gate = Gate()
        self.errors: list[Exception] = []
        self.cancelled = 0

    async def fetch(self, pds: str, blob: BlobKey) -> bytes:
        """See ``Fetcher.fetch``."""
        self.calls.append((pds, blob))
        try:
            await self.gate.passed()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        return self.blobs[pds, blob]


class FakeResolver:
    """A ``Resolver`` of PDSes that were put into it.

    Attributes:
        pds: by DID.
        calls: DID and ``max_age``, in order.
        errors: raised instead, one each.
    """

    def __init__(self) -> None:
        self.pds: dict[Did, str] = {}
        self.calls: list[tuple[Did, float | None]] = []
        self.errors: list[Exception] = []

    async def resolve(self, did: Did, *, max_age: float | None = None) -> str:
        """See ``Resolver.resolve``."""
        self.calls.append((did, max_age))
        await trio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        return self.pds[did]

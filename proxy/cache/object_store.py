"""The tier that machines share: an object store, asked in threads, and left alone while it fails.

A request costs at most ``timeout``, and nothing while the circuit is open. What comes back is held
to its checksum, its age and its format before it is given out.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Literal, NoReturn, TypeVar

import structlog
import trio

from proxy.cache.interface import Entry
from proxy.cache.layout import possible_formats
from proxy.cache.object_envelope import HEADER_BYTES, Damaged, pack, unpack
from proxy.cache.object_interface import Objects, Oversized
from proxy.cache.object_keys import (
    blob_at,
    mark_path,
    marks_prefix,
    owner_prefix,
    pair_prefix,
    result_path,
    source_path,
)
from proxy.cache.writer import MAX_BYTES
from proxy.egress.circuit import Circuits
from proxy.egress.errors import EgressError, TimedOut
from proxy.model.formats import sniff_result
from proxy.model.identifiers import Cid, cid_digest
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Covering, Selection
from proxy.shared.ages import age_of
from proxy.shared.expiring_map import ExpiringMap

READ_THREADS = 16
"""Objects read at the same time."""

WRITE_THREADS = 8
"""Objects written at the same time."""

PURGE_THREADS = 4
"""Requests of purges at the same time: none of them waits for reads or writes."""

MARK_SECONDS = 86400.0
"""Seconds after which a mark is written again, so that it expires after what it leads to."""

MARKS = 32768
"""Marks that are remembered as written."""

PASSES = 4
"""How often a purge lists a prefix until it finds nothing."""

DELETED_AT_ONCE = 100
"""Objects of one request to remove: a store takes milliseconds for each, within one time-out."""

PURGE_PATIENCE = 5
"""How many time-outs such a request may take as a whole: some stores take one for each object."""

_HOST = "store"

Operation = Literal["get", "put", "purge", "probe"]
Outcome = Literal[
    "hit", "miss", "damaged", "expired", "ok", "exists", "failed", "timeout", "skipped", "dropped"
]

OUTCOMES: dict[Operation, tuple[Outcome, ...]] = {
    "get": ("hit", "miss", "damaged", "expired", "failed", "timeout", "skipped"),
    "put": ("ok", "exists", "failed", "timeout", "skipped", "dropped"),
    "purge": ("ok", "failed", "timeout", "skipped"),
    "probe": ("ok", "failed", "timeout", "skipped"),
}
"""Label values of ``imageproxy_store_requests_total``."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class StoreUnavailable(OSError):
    """The store did not do what it was asked, or is left alone because it has failed before."""


@dataclass(frozen=True, slots=True)
class Source:
    """A verified blob.

    Attributes:
        seen: when its PDS last had it, seconds since the epoch.
    """

    data: bytes
    seen: float


class ObjectStore:
    """Results and sources in an object store.

    Args:
        objects: the store; called in threads.
        timeout: seconds for each request.
        ttl_seconds: age at which an object is no longer used; 0: never.
        max_source_bytes: larger sources are not used.
        may_use: whether objects of a blob may be read and written: it is not blocked, and no purge
            of it is unfinished.
        on_request: called with each operation and its outcome.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        objects: Objects,
        *,
        timeout: float,
        ttl_seconds: float = 0,
        max_source_bytes: int = MAX_BYTES,
        may_use: Callable[[BlobKey], bool] = lambda blob: True,
        on_request: Callable[[Operation, Outcome], None] = lambda operation, outcome: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._objects = objects
        self._timeout = timeout
        self._ttl = ttl_seconds or math.inf
        self._max_source_bytes = max_source_bytes
        self._may_use = may_use
        self._on_request = on_request
        self._clock = clock
        self._circuits = Circuits()
        self._marked: ExpiringMap[BlobKey, bool] = ExpiringMap(MARKS, tags=attrgetter("tags"))
        self._reads = trio.CapacityLimiter(READ_THREADS)
        self._writes = trio.CapacityLimiter(WRITE_THREADS)
        self._purges = trio.CapacityLimiter(PURGE_THREADS)

    @property
    def is_resting(self) -> bool:
        """Whether the store is left alone at the moment, because it has failed."""
        try:
            if self._circuits.check(_HOST, trio.current_time()):
                self._circuits.gave_up(_HOST, trio.current_time())
        except EgressError:
            return True
        return False

    def forget(self, covering: Covering) -> None:
        """Forget which marks were written: a purge is about to remove them."""
        self._marked.remove_tagged(covering.tags)

    async def get(self, key: ImageKey) -> Entry | None:
        """Return a result, or None. Never raises because of the store.

        A cancelled call leaves a thread that ends within ``timeout``.
        """
        formats = possible_formats(key)
        found = await self._read(
            key.blob, result_path(key), MAX_BYTES, lambda data: sniff_result(data) in formats
        )
        if found is None:
            return None
        data, seen = found
        format_ = sniff_result(data)
        return None if format_ is None else Entry(data, format_, seen)

    async def source(self, blob: BlobKey) -> Source | None:
        """Return a source that is what its CID names, or None; otherwise as ``get``."""
        digest = cid_digest(blob.cid)
        found = await self._read(
            blob,
            source_path(blob),
            self._max_source_bytes,
            lambda data: hashlib.sha256(data).digest() == digest,
        )
        return None if found is None else Source(*found)

    async def put(self, key: ImageKey, entry: Entry) -> None:
        """Write a result unless there is one.

        Raises:
            StoreUnavailable: it was not written, or that is not known.
        """
        await self._write(key.blob, result_path(key), entry.data, entry.seen)

    async def put_source(self, blob: BlobKey, source: Source) -> None:
        """Write a source unless there is one. Raises as ``put`` does."""
        await self._write(blob, source_path(blob), source.data, source.seen)

    async def purge(self, *selections: Selection) -> int:
        """Remove the selected objects; return their number without the marks.

        Nothing may write selected objects meanwhile. What was not removed before an error or a
        cancellation is found again by the next call.

        Raises:
            StoreUnavailable: not all of them are known to be removed.
        """
        rest = iter({each.tag: each for each in selections}.values())
        removed = 0
        failure: StoreUnavailable | None = None

        async def work() -> None:
            nonlocal removed, failure
            for selection in rest:
                if failure is not None:
                    return
                try:
                    count = await self._purge(selection)
                except StoreUnavailable as error:
                    failure = error
                else:
                    removed += count

        async with trio.open_nursery() as nursery:
            for _ in range(min(PURGE_THREADS, len(selections))):
                nursery.start_soon(work)
        if failure is not None:
            raise failure
        return removed

    async def probe(self) -> None:
        """Write, read and remove an object.

        Raises:
            StoreUnavailable: one of these failed.
        """
        path = f"v1/probe/{time.time_ns():x}"
        ask = partial(self._ask, "probe", limiter=self._purges)
        await ask(lambda: self._objects.put(path, b"probe"))
        found = await ask(lambda: self._objects.get(path, 64))
        await ask(lambda: self._objects.delete([path]))
        if found != b"probe":
            raise StoreUnavailable("what was written is not what was read")
        self._on_request("probe", "ok")

    async def _read(
        self,
        blob: BlobKey,
        path: str,
        max_bytes: int,
        proves: Callable[[bytes], bool],
    ) -> tuple[bytes, float] | None:
        if not self._may_use(blob):
            return None
        work = partial(self._read_in_thread, path, max_bytes, proves)
        try:
            outcome, found = await self._ask("get", work, limiter=self._reads)
        except StoreUnavailable:
            return None
        self._on_request("get", outcome)
        if outcome == "damaged":
            log.warning("a damaged object in the store", did=blob.did, cid=blob.cid)
        # It may have been purged while the store answered.
        return found if self._may_use(blob) else None

    def _read_in_thread(
        self, path: str, max_bytes: int, proves: Callable[[bytes], bool]
    ) -> tuple[Outcome, tuple[bytes, float] | None]:
        outcome: Outcome = "damaged"
        try:
            content = self._objects.get(path, max_bytes + HEADER_BYTES)
            if content is None:
                return "miss", None
            data, seen = unpack(path, content)
            if proves(data):
                if age_of(seen, self._clock()) < self._ttl:
                    return "hit", (data, seen)
                outcome = "expired"
        except (Damaged, Oversized):
            pass
        # While it is there, nothing is written in its place.
        self._objects.delete([path])
        return outcome, None

    async def _write(self, blob: BlobKey, path: str, data: bytes, seen: float | None) -> None:
        if not self._may_use(blob):
            return
        content = pack(path, data, self._clock() if seen is None else seen)
        is_marked = self._marked.get(blob.content, trio.current_time())
        work = partial(self._write_in_thread, None if is_marked else mark_path(blob), path, content)
        # Not abandoned: a purge waits for writes, and a thread that is left behind would go on.
        outcome = await self._ask("put", work, limiter=self._writes, abandons=False)
        self._on_request("put", outcome)
        if self._may_use(blob):
            self._marked.put(blob.content, True, trio.current_time() + MARK_SECONDS)
        else:
            # It was blocked meanwhile, or this process cannot read its blocks any more.
            remove = partial(self._objects.delete, [path])
            await self._ask("purge", remove, limiter=self._purges)
            self._on_request("purge", "ok")

    def _write_in_thread(self, mark: str | None, path: str, content: bytes) -> Outcome:
        if mark is not None:
            # Replaced, so that it becomes as young as what it leads to.
            self._objects.put(mark, b"", replaces=True)
        return "ok" if self._objects.put(path, content) else "exists"

    async def _purge(self, selection: Selection) -> int:
        if selection.did is not None and selection.cid is not None:
            return await self._purge_pair(BlobKey(selection.did, selection.cid))
        if selection.did is not None:
            removed, blobs = await self._empty(owner_prefix(selection.did))
            await self._delete([mark_path(blob) for blob in blobs])
            return removed
        removed = 0
        pages = self._objects.pages(marks_prefix(selection.cid or Cid("")))
        while page := await self._next(pages):
            for blob in filter(None, map(blob_at, page)):
                removed += await self._purge_pair(blob)
        return removed

    async def _purge_pair(self, blob: BlobKey) -> int:
        removed, _ = await self._empty(pair_prefix(blob))
        # Last: without it a later purge of the blob would not find what was left.
        await self._delete([mark_path(blob)])
        return removed

    async def _empty(self, prefix: str) -> tuple[int, set[BlobKey]]:
        """Remove all objects below ``prefix``; return their number, and their blobs."""
        removed, blobs = 0, set[BlobKey]()
        for _ in range(PASSES):
            found = 0
            pages = self._objects.pages(prefix)
            while page := await self._next(pages):
                found += len(page)
                blobs.update(filter(None, map(blob_at, page)))
                await self._delete(page)
            if not found:
                return removed, blobs
            removed += found
        raise StoreUnavailable("objects are still there after they were removed")

    async def _next(self, pages: Iterator[list[str]]) -> list[str] | None:
        """Return the next paths; none at the end."""
        page: list[str] | None = await self._ask("purge", partial(next, pages, None), self._purges)
        self._on_request("purge", "ok")
        return page

    async def _delete(self, paths: Sequence[str]) -> None:
        for at in range(0, len(paths), DELETED_AT_ONCE):
            work = partial(self._objects.delete, paths[at : at + DELETED_AT_ONCE])
            await self._ask("purge", work, self._purges)
            self._on_request("purge", "ok")

    async def _ask(
        self,
        operation: Operation,
        work: Callable[[], T],
        limiter: trio.CapacityLimiter,
        *,
        abandons: bool = True,
    ) -> T:
        """Run ``work`` in a thread. Counts failures; the caller counts what went well.

        Raises:
            StoreUnavailable: it failed, took longer than the time-out, or was not tried.
        """
        is_probe = False
        try:
            is_probe = self._circuits.check(_HOST, trio.current_time())
        except EgressError as error:
            self._on_request(operation, "skipped")
            raise StoreUnavailable(str(error)) from None
        seconds = self._timeout * (PURGE_PATIENCE if operation == "purge" else 1)
        try:
            with trio.fail_after(seconds if abandons else math.inf):
                result = await trio.to_thread.run_sync(
                    work, limiter=limiter, abandon_on_cancel=abandons
                )
        except trio.TooSlowError:
            self._failed(operation, "timeout", TimedOut(f"no answer in {seconds:g} s"))
        except EgressError as error:
            self._failed(operation, "failed", error)
        except BaseException:
            if is_probe:
                self._circuits.gave_up(_HOST, trio.current_time())
            raise
        self._circuits.succeeded(_HOST, trio.current_time())
        return result

    def _failed(self, operation: Operation, outcome: Outcome, error: EgressError) -> NoReturn:
        self._on_request(operation, outcome)
        self._circuits.failed(_HOST, error, trio.current_time())
        log.warning("the store failed", operation=operation, outcome=outcome, error=str(error))
        raise StoreUnavailable(str(error)) from None

"""Serves images and blobs by owner and CID: leads a request through the parts of the service."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from operator import attrgetter
from typing import Literal, TypeVar

import trio

from proxy.accounts.blob_fetcher import Fetcher
from proxy.accounts.did_documents import Resolver
from proxy.accounts.profiles import Profiles
from proxy.accounts.whereabouts import ask_pds
from proxy.cache.health import CacheHealth
from proxy.cache.interface import Cache, Entry
from proxy.cache.memory import MemoryCache
from proxy.cache.object_store import ObjectStore, Source
from proxy.cache.object_writer import ObjectWriter
from proxy.cache.writer import CacheWriter
from proxy.config import Config
from proxy.coordination.build_locks import BuildLocks
from proxy.egress.known_hosts import KnownHosts
from proxy.egress.neighbours import group_of_url
from proxy.errors import (
    BlobNotFound,
    Busy,
    CidMismatch,
    DidNotFound,
    DidUnresolvable,
    FetchFailed,
    ForbiddenDestination,
    ForbiddenDomain,
    ImageProxyError,
    ImageTooLarge,
    NoPdsEndpoint,
    RateLimited,
    ResultTooCostly,
    ResultTooLarge,
    UnsupportedImage,
    UpstreamTimeout,
)
from proxy.imaging.workers.fair_shares import Publisher
from proxy.imaging.workers.pool import Processed, Processor
from proxy.model.formats import Format, content_type_of, sniff
from proxy.model.keys import BlobKey, ImageKey, PosterKey, image_key
from proxy.model.picture_info import INFO_PRESET, PictureInfo, info_key_of
from proxy.model.preset_table import PresetTable
from proxy.model.presets import Preset
from proxy.model.selection import Covering
from proxy.moderation.blocks import Blocks
from proxy.moderation.gate import Gate
from proxy.moderation.moderator import Moderator
from proxy.observability.metrics import Metrics
from proxy.observability.spans import Spans
from proxy.posters import Posters
from proxy.shared.current import Current
from proxy.shared.negative_cache import LONGEST, NegativeCache
from proxy.shared.single_flight import Flight, Landed, SingleFlight
from proxy.shared.tag_index import TagIndex

CacheState = Literal["hit", "miss", "coalesced"]


@dataclass(frozen=True, slots=True)
class Image:
    """An image result.

    Attributes:
        data: the encoded image.
        format: the format of ``data``.
        etag: a strong entity tag, with its quotes.
        cache: ``"hit"``, ``"miss"``, or ``"coalesced"``: shared with a miss in progress.
        timings: seconds of ``resolve``, ``fetch``, ``queue`` and ``process``; only the steps
            that were run.
    """

    data: bytes
    format: Format
    etag: str
    cache: CacheState
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """The media type of ``data``."""
        return self.format.content_type


@dataclass(frozen=True, slots=True)
class FetchedBlob:
    """A verified blob, where it came from, and how long resolving and fetching took.

    Attributes:
        seen: as in ``Entry``.
    """

    data: bytes
    publisher: Publisher
    timings: Mapping[str, float] = field(default_factory=dict)
    seen: float | None = None


@dataclass(frozen=True, slots=True)
class MadeImage:
    """The outcome of a flight for a result.

    Attributes:
        state: ``"hit"``: it was cached; ``"coalesced"``: another process made it meanwhile.
    """

    entry: Entry
    state: CacheState
    timings: Mapping[str, float] = field(default_factory=dict)


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(eq=False, slots=True)
class _Making:
    """A result or a source in progress, and whether it was blocked or purged meanwhile."""

    blob: BlobKey
    is_forgotten: bool = False


@dataclass(frozen=True, slots=True)
class SharedTier:
    """What machines share.

    Attributes:
        has_sources: whether it keeps sources too.
    """

    store: ObjectStore
    writer: ObjectWriter
    has_sources: bool


@dataclass(frozen=True, slots=True)
class Blob:
    """A verified original."""

    data: bytes
    content_type: str
    etag: str


class Service:
    """Serves images by preset, owner and CID. Created by ``open_service``."""

    def __init__(
        self,
        config: Config,
        presets: Current[PresetTable],
        *,
        blocks: Blocks,
        gate: Gate,
        moderator: Moderator,
        cache: Cache,
        memory: MemoryCache,
        writer: CacheWriter,
        cache_health: CacheHealth,
        resolver: Resolver,
        fetcher: Fetcher,
        processor: Processor,
        build_locks: BuildLocks | None,
        shared: SharedTier | None,
        actors: Profiles,
        posters: Posters,
        known_hosts: Callable[[], KnownHosts],
        metrics: Metrics,
        spans: Spans,
        image_flights: SingleFlight[ImageKey, MadeImage],
        blob_flights: SingleFlight[BlobKey, FetchedBlob],
    ) -> None:
        self.config = config
        self.presets = presets
        self.actors = actors
        self.known_hosts = known_hosts
        self.metrics = metrics
        self.spans = spans
        self.blocks = blocks
        self.gate = gate
        self.moderator = moderator
        self.cache_health = cache_health
        self._cache = cache
        self._memory = memory
        self._writer = writer
        self._build_locks = build_locks
        self._shared = shared
        self._resolver = resolver
        self._fetcher = fetcher
        self._processor = processor
        self._posters = posters
        # Kept separate: a non-image can still be downloaded as a blob.
        self._fetch_failures = NegativeCache(config.identity.negative_ttl)
        self._image_failures = NegativeCache(config.identity.negative_ttl, longest=LONGEST)
        self._under_way: set[_Making] = set()
        self._under_way_by_tag: TagIndex[_Making] = TagIndex(attrgetter("blob.tags"))
        self._images = image_flights
        self._blobs = blob_flights

    @property
    def is_without_store(self) -> bool:
        """Whether there is a shared store, which is left alone now because it has failed."""
        return self._shared is not None and self._shared.store.is_resting

    async def get_image(self, preset: str, did: str, cid: str, format: str | None = None) -> Image:
        """Return one image.

        On cancellation the work goes on if other requests wait for it; otherwise it stops.

        Raises:
            ImageProxyError: a subclass per row of the error table.
        """
        settings = self.presets.now.by_name
        key = image_key(settings, preset, did, cid, format)
        return await self.get(key, settings[preset])

    async def get_info(self, did: str, cid: str) -> PictureInfo:
        """Return what is told of a picture; otherwise like ``get_image``."""
        told = await self.get(info_key_of(did, cid), INFO_PRESET)
        return PictureInfo.model_validate_json(told.data)

    async def get(self, key: ImageKey, preset: Preset) -> Image:
        """Return the image of a key that is already validated; otherwise like ``get_image``.

        Args:
            preset: that from which the key was made, whatever the presets are now.
        """
        await self.gate.permit(key.blob)
        image = self.hit(key)
        if image is not None:
            return image
        # The cache is read inside the flight. With a read before joining, another flight could
        # finish in between unnoticed, and the same work would be done twice.
        work = partial(self._make, key, preset)
        landed = await self._landed(self._images, key, key.blob, work)
        made = landed.value
        self.gate.check(key.blob)
        state = made.state
        if state == "miss" and not landed.started_it:
            state = "coalesced"
        if state == "coalesced":
            self.metrics.coalesced.inc()
        return Image(made.entry.data, made.entry.format, key.etag, state, made.timings)

    def hit(self, key: ImageKey) -> Image | None:
        """Return the image without waiting: from memory, the queue of writes to disk, or the disk.

        Raises:
            ImageProxyError: it is known that the image may not be served.
        """
        if not self.gate.check(key.blob):
            return None
        now = trio.current_time()
        entry = self._memory.get(key, now) or self._writer.pending(key)
        if entry is None and (entry := self._cache.at_once(key)) is not None:
            self._memory.put(key, entry, now)
        return None if entry is None else Image(entry.data, entry.format, key.etag, "hit")

    async def get_drawn(self, key: ImageKey, preset: Preset, source: bytes) -> Image:
        """Return the result of a picture that this service drew. It is not cached.

        Args:
            preset: as for ``get``.

        Raises:
            Busy: the transform did not begin in time.
        """
        made = await self._processor.process(source, preset, key.format)
        timings = {"queue": made.queue_seconds, "process": made.process_seconds}
        return Image(made.data, made.format, key.etag, "miss", timings)

    async def get_blob(self, blob: BlobKey) -> Blob:
        """Return a verified original.

        Raises:
            UnsupportedImage: its type is not among ``blob.allowed_types``.
            ImageProxyError: as for images.
        """
        await self.gate.permit(blob)
        landed = await self._landed(self._blobs, blob, blob, partial(self._obtain, blob))
        data = landed.value.data
        self.gate.check(blob)
        content_type = content_type_of(data)
        allowed_types = self.config.blob.allowed_types
        if not any(fnmatchcase(content_type, allowed) for allowed in allowed_types):
            raise UnsupportedImage(f"{content_type} is not among blob.allowed_types")
        return Blob(data, content_type, f'"{blob.cid}"')

    async def is_cached(self, key: ImageKey) -> bool:
        """Whether the cache holds the result of ``key``."""
        if (self._memory.get(key, trio.current_time()) or self._writer.pending(key)) is not None:
            return True
        return await self._cached(key) is not None

    @asynccontextmanager
    async def sharing(self, blob: BlobKey) -> AsyncIterator[None]:
        """Fetch ``blob``; requests for its results within the block reuse this fetch.

        Raises:
            ImageProxyError: as for an image.
        """
        await self.gate.permit(blob)
        async with self._blobs.join(blob, partial(self._obtain, blob)):
            yield

    async def written(self) -> None:
        """Wait until the cache writer has room, for work that must not be dropped."""
        await self._writer.settled()

    def forget(self, covering: Covering) -> None:
        """Drop what is covered, except on disk; do not store covered results of running flights.

        Nor does a request that comes after this join one of them: it began before.
        """
        self._images.part(covering.tags)
        self._blobs.part(covering.tags)
        for making in self._under_way_by_tag.find(covering.tags, self._under_way):
            making.is_forgotten = True
        self.gate.forget(covering)
        self._memory.purge(covering)
        self._cache.forget(covering)
        self._fetch_failures.purge(covering)
        self._image_failures.purge(covering)
        self._posters.forget(covering)
        self._writer.discard(covering)
        if self._shared is not None:
            self._shared.writer.discard(covering)

    async def _landed(
        self,
        flights: SingleFlight[K, V],
        key: K,
        blob: BlobKey,
        work: Callable[[Flight[V]], Awaitable[V]],
    ) -> Landed[V]:
        """Wait for a flight. If what it brings was forgotten meanwhile, it is begun once more.

        It may be gone at its PDS, and a CDN, which was told already, would keep the answer.
        """
        async with flights.join(key, work) as landed:
            if not landed.is_parted:
                return landed
        await self.gate.permit(blob)
        async with flights.join(key, work) as landed:
            return landed

    @contextmanager
    def _making(self, blob: BlobKey) -> Iterator[_Making]:
        making = _Making(blob)
        self._under_way.add(making)
        self._under_way_by_tag.add(making)
        try:
            yield making
        finally:
            self._under_way_by_tag.discard((making,))
            self._under_way.discard(making)

    async def _make(self, key: ImageKey, preset: Preset, flight: Flight[MadeImage]) -> MadeImage:
        with self._making(key.blob) as making:
            return await self._make_or_find(key, preset, making, flight)

    async def _make_or_find(
        self, key: ImageKey, preset: Preset, making: _Making, flight: Flight[MadeImage]
    ) -> MadeImage:
        cached = await self._recall(key, making)
        if cached is not None:
            return MadeImage(cached, "hit")
        if not isinstance(key, PosterKey):  # a video is no image
            self._image_failures.check(key.blob, trio.current_time())
        self._image_failures.check(key, trio.current_time())
        with ExitStack() as stack:
            if self._build_locks is not None:
                release, waited = await self._build_locks.acquire(key)
                stack.callback(release)
                # Another process may have made it since the first look-up, even without a wait.
                if (cached := await self._recall(key, making)) is not None:
                    return MadeImage(cached, "coalesced" if waited else "hit")
            made = await self._recall_shared(key, making)
            made = made or await self._transform(key, preset, flight)
            # No await from here on, so that a cancellation cannot lose the transformed image.
            if not (making.is_forgotten or self.gate.refuses(key.blob)):
                self._memory.put(key, made.entry, trio.current_time())
                stack.callback(self.spans.begin("write"))
                # Hold the build lock until the write is done: a process that waits for it then
                # finds the file.
                settled, is_new = stack.pop_all().close, made.state == "miss"
                self._writer.offer(key, made.entry, settled, is_new=is_new)
            return made

    async def _recall(self, key: ImageKey, making: _Making) -> Entry | None:
        """Return the cached entry, and keep it in memory unless it was purged meanwhile."""
        cached = await self._cached(key)
        if cached is not None and not making.is_forgotten:
            self._memory.put(key, cached, trio.current_time())
        return cached

    async def _recall_shared(self, key: ImageKey, making: _Making) -> MadeImage | None:
        """Return what the shared tier has, unless it was purged meanwhile."""
        if self._shared is None:
            return None
        found = await self._shared.store.get(key)
        return None if found is None or making.is_forgotten else MadeImage(found, "hit")

    async def _transform(
        self, key: ImageKey, preset: Preset, flight: Flight[MadeImage]
    ) -> MadeImage:
        if isinstance(key, PosterKey):
            remembers = partial(self._images.is_joined, key, flight)
            poster = await self._posters.make(key, preset, flight.commit, remembers)
            processed = poster.processed
            self.metrics.process_duration.labels(key.preset, processed.format.value).observe(
                processed.process_seconds
            )
            return MadeImage(Entry(processed.data, processed.format), "miss", poster.timings)
        async with self._blobs.join(key.blob, partial(self._obtain, key.blob)) as landed:
            source = landed.value
            processed = await self._process(source, preset, key, flight)
        self.metrics.process_duration.labels(key.preset, processed.format.value).observe(
            processed.process_seconds
        )
        own = {"queue": processed.queue_seconds, "process": processed.process_seconds}
        self.spans.past(own)
        entry = Entry(processed.data, processed.format, source.seen)
        return MadeImage(entry, "miss", {**source.timings, **own})

    async def _process(
        self, source: FetchedBlob, preset: Preset, key: ImageKey, flight: Flight[MadeImage]
    ) -> Processed:
        try:
            processed = await self._processor.process(
                source.data, preset, key.format, publisher=source.publisher, on_start=flight.commit
            )
            self._image_failures.succeeded(key)
            return processed
        except Busy:
            self.metrics.rejected.labels("process").inc()
            raise
        except ResultTooLarge:
            raise
        except ImageProxyError as error:
            if self._images.is_joined(key, flight):  # or a purge came meanwhile
                # Mostly the blob is the cause: every other preset would fail too.
                cause = key if isinstance(error, ResultTooCostly) else key.blob
                self._image_failures.failed(cause, error, trio.current_time())
            raise

    async def _cached(self, key: ImageKey) -> Entry | None:
        try:
            return await self._cache.get(key)
        except OSError as error:
            # The image can still come from its PDS.
            self.cache_health.failed(error)
            return None

    async def _obtain(self, blob: BlobKey, flight: Flight[FetchedBlob]) -> FetchedBlob:
        if self._shared is None or not self._shared.has_sources:
            return await self._fetch(blob, flight)
        with self._making(blob) as making:
            found = await self._shared.store.source(blob)
            if found is not None and not making.is_forgotten:
                # Which PDS it came from is not asked: all such sources are of one domain.
                return FetchedBlob(found.data, Publisher("", blob.did), seen=found.seen)
            # Its PDS had it at some time after this.
            seen = time.time()
            fetched = await self._fetch(blob, flight)
            is_kept = sniff(fetched.data) is not None and not making.is_forgotten
            if is_kept and not self.gate.refuses(blob):
                self._shared.writer.offer_source(blob, Source(fetched.data, seen))
            return fetched

    async def _fetch(self, blob: BlobKey, flight: Flight[FetchedBlob]) -> FetchedBlob:
        began = trio.current_time()
        self._fetch_failures.check(blob, began)
        outcome = "cancelled"
        try:
            source = await self._resolve_and_fetch(blob)
            outcome = "ok"
            self._fetch_failures.succeeded(blob)
            return source
        except ImageProxyError as error:
            outcome = OUTCOMES.get(type(error), "failed")
            if isinstance(error, Busy):
                self.metrics.rejected.labels("fetch").inc()
            # A pause with a known end is kept by the circuit breaker, which blocks until then.
            elif not (
                isinstance(error, RateLimited) and error.retry_after is not None
            ) and self._blobs.is_joined(blob, flight):  # or a purge came meanwhile
                self._fetch_failures.failed(blob, error, trio.current_time())
            raise
        except Exception:
            outcome = "defect"
            raise
        finally:
            took = trio.current_time() - began
            self.metrics.fetch_duration.labels(outcome).observe(took)

    async def _resolve_and_fetch(self, blob: BlobKey) -> FetchedBlob:
        began = trio.current_time()
        with self.spans.span("resolve"):
            pds = await self._resolver.resolve(blob.did)
        resolved = trio.current_time()
        with self.spans.span("fetch"):
            answered = await ask_pds(
                self._resolver,
                blob.did,
                pds,
                partial(self._fetcher.fetch, blob=blob),
                timeout=self.config.fetch.timeout,
            )
        pds, data = answered.pds, answered.value
        timings = {"resolve": resolved - began, "fetch": trio.current_time() - resolved}
        return FetchedBlob(data, Publisher(group_of_url(pds), blob.did), timings)


OUTCOMES: dict[type[ImageProxyError], str] = {
    BlobNotFound: "not_found",
    DidNotFound: "not_found",
    ImageTooLarge: "too_large",
    CidMismatch: "mismatch",
    DidUnresolvable: "unresolvable",
    NoPdsEndpoint: "unresolvable",
    ForbiddenDomain: "forbidden",
    ForbiddenDestination: "forbidden",
    RateLimited: "rate_limited",
    UpstreamTimeout: "timeout",
    Busy: "busy",
    FetchFailed: "failed",
}
"""Label values of ``imageproxy_fetch_duration_seconds``: the last column of the error table."""

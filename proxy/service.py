"""The service: one function opens the nurseries, and everything that runs is named there."""

from __future__ import annotations

import errno
import math
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from types import EllipsisType
from typing import Literal

import trio

from proxy.actors import Actors
from proxy.cache.base import Cache, Covering, Entry, Selection
from proxy.cache.claims import Claims
from proxy.cache.disk import DiskCache
from proxy.cache.memory import MemoryCache
from proxy.cache.upkeep import Upkeep
from proxy.cache.writer import CacheWriter
from proxy.config import Config
from proxy.database import Database
from proxy.egress.gateway import Gateway, guarded_networks
from proxy.egress.network import Network
from proxy.egress.txt import TxtRecords
from proxy.errors import (
    BlobNotFound,
    Busy,
    CidMismatch,
    DidNotFound,
    DidUnresolvable,
    ForbiddenDestination,
    ForbiddenDomain,
    ImageProxyError,
    ImageTooLarge,
    NoPdsEndpoint,
    ResultTooLarge,
    UnsupportedImage,
    UpstreamTimeout,
)
from proxy.fetch import Fetcher, PdsFetcher
from proxy.flight import Flight, SingleFlight
from proxy.formats import content_type_of
from proxy.handles import HandleResolver
from proxy.identifiers import Did
from proxy.identity import MIGRATION_AGE, DidResolver, Resolver
from proxy.metrics import Metrics
from proxy.moderation.blocks import Blocks
from proxy.moderation.cdn.apis import api_of
from proxy.moderation.cdn.queue import SCHEMA as CDN_SCHEMA
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.cdn.sender import CdnSender
from proxy.moderation.feeds.run import check_feeds, run_feeds
from proxy.moderation.followers import Followers
from proxy.moderation.moderator import Invalidate, Moderator
from proxy.moderation.permission import Permission
from proxy.moderation.policy import Policy
from proxy.moderation.revalidate import Revalidator
from proxy.moderation.store import ModerationStore
from proxy.negative import NegativeCache
from proxy.presets import Preset
from proxy.process.pool import Processed, ProcessingPool, Processor
from proxy.records import Records
from proxy.spans import NoSpans, Spans
from proxy.turns import Turn, in_turn
from proxy.urls import BlobKey, ImageKey, image_key

LAST_EXPORT_SECONDS = 2.0
"""Seconds that spans may take on their way out when everything else has stopped."""

MEMORY_SECONDS = 3600.0
"""How long a result is served from memory before its file is looked at again."""

CacheState = Literal["hit", "miss", "coalesced"]


@dataclass(frozen=True, slots=True)
class Image:
    """A result.

    Attributes:
        data: the encoded picture.
        content_type: of ``data``.
        etag: a strong entity tag, with its quotes.
        cache: ``"hit"``, ``"miss"``, or ``"coalesced"``: shared with a miss under way.
        timings: seconds of ``resolve``, ``fetch``, ``queue`` and ``process``, those that
            took place.
    """

    data: bytes
    content_type: str
    etag: str
    cache: CacheState
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Source:
    """A verified blob, and what getting it took."""

    data: bytes
    timings: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Made:
    """What a flight for a result brought.

    Attributes:
        state: ``"hit"``: it was cached; ``"coalesced"``: another process made it meanwhile.
    """

    entry: Entry
    state: CacheState
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Making:
    """A result under way, and whether it was blocked or purged meanwhile."""

    key: ImageKey
    is_forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Blob:
    """A verified original."""

    data: bytes
    content_type: str
    etag: str


class Service:
    """Images by preset, owner and CID. Made by ``open_service``."""

    def __init__(
        self,
        config: Config,
        *,
        blocks: Blocks,
        permission: Permission,
        moderator: Moderator,
        cache: Cache,
        memory: MemoryCache,
        writer: CacheWriter,
        upkeep: Upkeep,
        resolver: Resolver,
        fetcher: Fetcher,
        processor: Processor,
        claims: Claims | None,
        actors: Actors,
        metrics: Metrics,
        spans: Spans,
        nursery: trio.Nursery,
    ) -> None:
        self.config = config
        self.actors = actors
        self.metrics = metrics
        self.spans = spans
        self.blocks = blocks
        self.permission = permission
        self.moderator = moderator
        self.upkeep = upkeep
        self._cache = cache
        self._memory = memory
        self._writer = writer
        self._claims = claims
        self._resolver = resolver
        self._fetcher = fetcher
        self._processor = processor
        # Apart: what is no image can still be a blob that may be downloaded.
        self._fetch_failures = NegativeCache(config.identity.negative_ttl)
        self._image_failures = NegativeCache(config.identity.negative_ttl)
        self._under_way: set[_Making] = set()
        self._images: SingleFlight[ImageKey, _Made] = SingleFlight(nursery)
        self._blobs: SingleFlight[BlobKey, _Source] = SingleFlight(nursery)

    async def get_image(self, preset: str, did: str, cid: str, format: str | None = None) -> Image:
        """One image.

        Cancellation leaves the work to others who wait for it, or ends it.

        Raises:
            ImageProxyError: a subclass per row of the error table.
        """
        return await self.get(image_key(self.config.presets, preset, did, cid, format))

    async def get(self, key: ImageKey) -> Image:
        """The image of a key that was checked; otherwise as ``get_image``."""
        await self.permission.permit(key.blob)
        image = self.hit(key)
        if image is not None:
            return image
        # Looked up within the flight: between a look-up before it and joining it, a flight
        # could land unseen, and the same work would be done twice.
        async with self._images.join(key, partial(self._make, key)) as landed:
            made = landed.value
        self.permission.check(key.blob)
        state = made.state
        if state == "miss" and not landed.started_it:
            state = "coalesced"
        if state == "coalesced":
            self.metrics.coalesced.inc()
        return _image(key, made.entry, state, made.timings)

    def hit(self, key: ImageKey) -> Image | None:
        """The image where nothing has to be waited for: from memory, or on its way to disk.

        Raises:
            ImageProxyError: it is known that it may not be served.
        """
        if not self.permission.check(key.blob):
            return None
        entry = self._memory.get(key) or self._writer.pending(key)
        return None if entry is None else _image(key, entry, "hit", {})

    async def get_blob(self, blob: BlobKey) -> Blob:
        """A verified original.

        Raises:
            UnsupportedImage: its type is not among ``blob.allowed_types``.
            ImageProxyError: as for images.
        """
        await self.permission.permit(blob)
        async with self._blobs.join(blob, partial(self._obtain, blob)) as landed:
            data = landed.value.data
        self.permission.check(blob)
        content_type = content_type_of(data)
        if not any(fnmatchcase(content_type, allowed) for allowed in self._allowed_types):
            raise UnsupportedImage(f"{content_type} is not among blob.allowed_types")
        return Blob(data, content_type, f'"{blob.cid}"')

    async def is_cached(self, key: ImageKey) -> bool:
        """Whether the result of ``key`` needs nothing but the cache."""
        if (self._memory.get(key) or self._writer.pending(key)) is not None:
            return True
        return await self._cached(key) is not None

    @asynccontextmanager
    async def sharing(self, blob: BlobKey) -> AsyncIterator[None]:
        """Fetch ``blob``; results of it that are asked for during the block need no other fetch.

        Raises:
            ImageProxyError: as for an image.
        """
        await self.permission.permit(blob)
        async with self._blobs.join(blob, partial(self._obtain, blob)):
            yield

    async def written(self) -> None:
        """Wait until the cache-writer has room again, for work that must not be dropped."""
        await self._writer.settled()

    def forget(self, covering: Covering) -> None:
        """Keep nothing of what is covered but on disk, nor what flights under way bring of it."""
        for making in self._under_way:
            making.is_forgotten = making.is_forgotten or covering.covers(making.key)
        self._memory.purge(covering)
        self._fetch_failures.purge(covering)
        self._image_failures.purge(covering)
        self._writer.discard(covering)

    @property
    def _allowed_types(self) -> tuple[str, ...]:
        return self.config.blob.allowed_types

    async def _make(self, key: ImageKey, flight: Flight[_Made]) -> _Made:
        making = _Making(key)
        self._under_way.add(making)
        try:
            return await self._make_or_find(making, flight)
        finally:
            self._under_way.discard(making)

    async def _make_or_find(self, making: _Making, flight: Flight[_Made]) -> _Made:
        key = making.key
        cached = await self._recall(making)
        if cached is not None:
            return _Made(cached, "hit")
        self._image_failures.check(key.blob, trio.current_time())
        with ExitStack() as stack:
            if self._claims is not None:
                free, waited = await self._claims.claim(key)
                stack.callback(free)
                # Another process may have made it since the first look, waited for or not.
                if (cached := await self._recall(making)) is not None:
                    return _Made(cached, "coalesced" if waited else "hit")
            made = await self._transform(key, flight)
            # Nothing awaits from here on: what was transformed is not lost to a cancellation.
            if not (making.is_forgotten or self.permission.refuses(key.blob)):
                self._memory.put(key, made.entry)
                stack.callback(self.spans.begin("write"))
                # The claim goes with the write: who waits for it then finds the file.
                self._writer.offer(key, made.entry, stack.pop_all().close)
            return made

    async def _recall(self, making: _Making) -> Entry | None:
        """What the cache has, kept in memory from now on unless it was purged meanwhile."""
        cached = await self._cached(making.key)
        if cached is not None and not making.is_forgotten:
            self._memory.put(making.key, cached)
        return cached

    async def _transform(self, key: ImageKey, flight: Flight[_Made]) -> _Made:
        preset = self.config.presets[key.preset]
        async with self._blobs.join(key.blob, partial(self._obtain, key.blob)) as landed:
            source = landed.value
            processed = await self._process(source, preset, key, flight)
        self.metrics.process_duration.labels(key.preset, processed.format.value).observe(
            processed.process_seconds
        )
        own = {"queue": processed.queue_seconds, "process": processed.process_seconds}
        self.spans.past(own)
        return _Made(Entry(processed.data, processed.format), "miss", {**source.timings, **own})

    async def _process(
        self, source: _Source, preset: Preset, key: ImageKey, flight: Flight[_Made]
    ) -> Processed:
        try:
            return await self._processor.process(
                source.data, preset, key.format, on_start=flight.commit
            )
        except Busy:
            self.metrics.rejected.labels("process").inc()
            raise
        except ResultTooLarge:
            raise
        except ImageProxyError as error:
            # It lies in the blob: every other preset would fail too.
            self._image_failures.failed(key.blob, error, trio.current_time())
            raise

    async def _cached(self, key: ImageKey) -> Entry | None:
        try:
            return await self._cache.get(key)
        except OSError as error:
            # The image can still come from its PDS.
            self.upkeep.failed(error)
            return None

    async def _obtain(self, blob: BlobKey, _flight: Flight[_Source]) -> _Source:
        began = trio.current_time()
        self._fetch_failures.check(blob, began)
        outcome = "defect"
        try:
            source = await self._resolve_and_fetch(blob)
            outcome = "ok"
            self._fetch_failures.succeeded(blob)
            return source
        except ImageProxyError as error:
            outcome = _OUTCOMES.get(type(error), "failed")
            if isinstance(error, Busy):
                self.metrics.rejected.labels("fetch").inc()
            else:
                self._fetch_failures.failed(blob, error, trio.current_time())
            raise
        except trio.Cancelled:
            outcome = "cancelled"
            raise
        finally:
            took = trio.current_time() - began
            self.metrics.fetch_duration.labels(outcome).observe(took)

    async def _resolve_and_fetch(self, blob: BlobKey) -> _Source:
        began = trio.current_time()
        with self.spans.span("resolve"):
            pds = await self._resolver.resolve(blob.did)
        resolved = trio.current_time()
        with self.spans.span("fetch"):
            try:
                data = await self._fetcher.fetch(pds, blob)
            except BlobNotFound:
                # Accounts migrate: an older document may name a PDS that they have left.
                current = await self._resolver.resolve(blob.did, max_age=MIGRATION_AGE)
                if current == pds:
                    raise
                data = await self._fetcher.fetch(current, blob)
        return _Source(data, {"resolve": resolved - began, "fetch": trio.current_time() - resolved})


_OUTCOMES: dict[type[ImageProxyError], str] = {
    BlobNotFound: "not_found",
    DidNotFound: "not_found",
    ImageTooLarge: "too_large",
    CidMismatch: "mismatch",
    DidUnresolvable: "unresolvable",
    NoPdsEndpoint: "unresolvable",
    ForbiddenDomain: "forbidden",
    ForbiddenDestination: "forbidden",
    UpstreamTimeout: "timeout",
    Busy: "busy",
}
"""Label values of ``imageproxy_fetch_duration_seconds``; what is not here is ``failed``."""


def _image(key: ImageKey, entry: Entry, state: CacheState, timings: Mapping[str, float]) -> Image:
    return Image(entry.data, entry.format.content_type, key.etag, state, timings)


@asynccontextmanager
async def open_service(
    config: Config,
    *,
    cache: Cache | EllipsisType = ...,
    fetcher: Fetcher | EllipsisType = ...,
    processor: Processor | EllipsisType = ...,
    resolver: Resolver | EllipsisType = ...,
    networks: tuple[Network, Network] | None = None,
) -> AsyncIterator[Service]:
    """Run a service for the time of the block.

    It owns two nurseries. The inner one runs the fetch workers, the image workers, the flights
    and the chores; it is cancelled when the block ends, and requests that still wait get
    ``Busy``. The outer one runs the cache-writer, which then writes what it was given, for at
    most ``server.shutdown_timeout`` seconds, also when the block was cancelled; until then it
    follows what is decided. While that cannot be read, every request ends in
    ``ModerationUnreadable``.

    Args:
        cache, fetcher, processor, resolver: implementations of the Protocols of those names;
            what is not given is built from ``config``.
        networks: what hosts of strangers, and the directory, are reached over; None: guarded.

    Raises:
        TypeError: one of the four is None.
        ConfigError: feeds are configured, and what they need is not installed.
    """
    parts = {"cache": cache, "fetcher": fetcher, "processor": processor, "resolver": resolver}
    for name, part in parts.items():
        if part is None:
            raise TypeError(f"{name} must not be None")
    check_feeds(config)
    metrics = Metrics()
    spans = _spans(config)
    disk = claims = None
    store, followers = moderation_store_of(config), _followers_of(config)
    blocks = _blocks(store, followers, metrics)
    if cache is ...:
        cache = disk = _disk_cache(config, metrics, store)
        claims = Claims(config.cache.path / "flights.lock")
    pool = None
    if processor is ...:
        processor = pool = _processing_pool(config, metrics)
    networks = networks or guarded_networks(config)
    gateway = Gateway(config, *networks)
    metrics.gauge("fetch_queue_depth", "Fetches that wait", lambda: gateway.statistics().waiting)
    policy = None
    if config.policy.url:
        policy = Policy(
            config,
            *networks,
            on_taken_down=lambda blob: moderator.purge(Selection(blob.did, blob.cid), by="policy"),
            on_answer=lambda answer: metrics.policy_answers.labels(answer).inc(),
        )
    cdn = cdn_sender_of(
        config,
        moderation_database_of(config),
        networks[1],
        lambda outcome: metrics.cdn_requests.labels(outcome).inc(),
    )
    metrics.gauge("cdn_pending", "Blobs that the CDN has yet to forget", lambda: cdn.pending)
    permission = Permission(blocks, policy, on_refused=metrics.blocked.inc)
    upkeep = Upkeep(cache)
    writer = CacheWriter(
        cache,
        queue_size=config.cache.write_queue,
        may_write=lambda key: not permission.refuses(key.blob),
        on_written=upkeep.works,
        on_error=partial(_write_failed, metrics, upkeep),
        on_dropped=metrics.writes_dropped.inc,
    )
    moderator = Moderator(
        store,
        followers,
        remove=writer.purge,
        invalidate=_invalidate(config, cdn, disk),
        is_pending=lambda: blocks.purges_pending > 0,
        nudge=blocks.nudge,
        on_decision=lambda action, count: metrics.decisions.labels(action).inc(count),
    )
    failure: Exception | None = None

    # Stops last: the writer, once it has written what it was given, and who follows what is
    # blocked, for it must not write that. Then the cache is closed.
    async with AsyncExitStack() as closed, trio.open_nursery() as outlasting:
        if disk is not None and claims is not None:
            closed.callback(claims.close)
            closed.push_async_callback(disk.aclose)
        writing, following = trio.CancelScope(shield=True), trio.CancelScope(shield=True)
        outlasting.start_soon(_write, writing, writer, following, spans)
        exporting = trio.CancelScope(shield=True)
        outlasting.start_soon(_within, exporting, spans.run)
        try:
            # Stops first, all at once: whatever makes results.
            async with trio.open_nursery() as nursery:
                if pool is not None:
                    await nursery.start(pool.run)
                if policy is not None:
                    await nursery.start(policy.run)
                nursery.start_soon(gateway.run)
                nursery.start_soon(cdn.run)
                nursery.start_soon(upkeep.keep_checking)
                if disk is not None:
                    nursery.start_soon(disk.keep_indexed)
                nursery.start_soon(upkeep.keep_cleaning, config.cache.cleanup_interval_minutes * 60)
                dids = DidResolver(config, gateway, nursery)
                if resolver is ...:
                    resolver = dids
                pds = PdsFetcher(config, gateway, spans.outgoing)
                if fetcher is ...:
                    fetcher = pds
                if disk is not None and config.cache.revalidate_days:
                    turn = Turn(config.cache.path / "turns" / "revalidation")
                    revalidator = Revalidator(
                        age=config.cache.revalidate_days * 86400,
                        times=disk,
                        resolver=resolver,
                        exists=pds.exists,
                        decisions=moderator,
                        on_checked=lambda finding: metrics.revalidations.labels(finding).inc(),
                    )
                    nursery.start_soon(in_turn, turn, revalidator.run)
                service = Service(
                    config,
                    blocks=blocks,
                    permission=permission,
                    moderator=moderator,
                    cache=cache,
                    memory=_memory_cache(config),
                    writer=writer,
                    upkeep=upkeep,
                    resolver=resolver,
                    fetcher=fetcher,
                    processor=processor,
                    claims=claims,
                    actors=_actors(config, gateway, nursery, dids, resolver),
                    metrics=metrics,
                    spans=spans,
                    nursery=nursery,
                )
                await outlasting.start(_follow, following, blocks, service.forget, writer.begun)
                nursery.start_soon(moderator.keep_finishing)
                if disk is not None:
                    feeds = partial(
                        run_feeds,
                        config,
                        decisions=moderator,
                        cursors=moderator,
                        is_cached=partial(_is_cached, disk),
                        resolver=dids,
                        gateway=gateway,
                        networks=networks,
                        metrics=metrics,
                    )
                    nursery.start_soon(feeds)
                await upkeep.check()
                try:
                    yield service
                except Exception as error:
                    # Raised below, outside the nurseries, which would wrap it in groups.
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            writer.close()
            writing.deadline = trio.current_time() + config.server.shutdown_timeout
            exporting.deadline = writing.deadline + LAST_EXPORT_SECONDS
    if failure is not None:
        raise failure


async def _within(scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await work()


def _spans(config: Config) -> Spans:
    if not config.trace.endpoint:
        return NoSpans()
    try:
        # Imported late: it is an extra.
        from proxy.tracing import tracing_of
    except ImportError as error:
        raise RuntimeError(f"trace.endpoint needs the extra otel: {error}") from error
    return tracing_of(config.trace)


async def _write(
    writing: trio.CancelScope, writer: CacheWriter, following: trio.CancelScope, spans: Spans
) -> None:
    with writing:
        await writer.run()
    following.cancel()
    spans.close()


async def _follow(
    following: trio.CancelScope,
    blocks: Blocks,
    forget: Callable[[Covering], None],
    written: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[None],
) -> None:
    with following:
        await blocks.follow(forget, written, task_status)


@asynccontextmanager
async def open_moderator(config: Config) -> AsyncIterator[Moderator]:
    """Decide without a service, for the time of the block: what commands do.

    Raises:
        sqlite3.Error, OSError: the cache folder cannot be used.
    """
    store, followers = moderation_store_of(config), _followers_of(config)
    disk = disk_cache_of(config)
    cdn = cdn_sender_of(config, moderation_database_of(config), guarded_networks(config)[1])
    await trio.to_thread.run_sync(followers.enter)
    try:
        yield Moderator(
            store, followers, remove=disk.purge, invalidate=_invalidate(config, cdn, disk)
        )
    finally:
        # Its unfinished purges, if any, are now for others to finish.
        followers.leave()
        store.close()
        await disk.aclose()


async def _is_cached(disk: DiskCache, did: Did) -> bool:
    return await disk.has(Selection(did=did))


def _invalidate(config: Config, cdn: CdnSender, disk: DiskCache | None) -> Invalidate | None:
    """What notes for the CDN the blobs that are meant; None where there is no CDN."""
    if not config.cdn.kind:
        return None

    async def invalidate(selections: Sequence[Selection]) -> None:
        pairs = {BlobKey(each.did, each.cid) for each in selections if each.did and each.cid}
        others = [each for each in selections if not (each.did and each.cid)]
        cached = await disk.blobs(others) if disk is not None and others else frozenset()
        await cdn.invalidate([*pairs, *cached])

    return invalidate


def moderation_store_of(config: Config) -> ModerationStore:
    """What is kept of moderation beside the configured cache."""
    return ModerationStore(config.cache.path / "moderation.sqlite3")


def _followers_of(config: Config) -> Followers:
    return Followers(config.cache.path / "followers")


def moderation_database_of(config: Config) -> Database:
    """What moderation keeps beside the configured cache."""
    return Database(config.cache.path / "moderation.sqlite3", CDN_SCHEMA, synchronous="FULL")


def cdn_sender_of(
    config: Config,
    database: Database,
    network: Network,
    on_request: Callable[[str], None] = lambda outcome: None,
) -> CdnSender:
    """Who purges the configured CDN, over ``network``."""
    turn = Turn(config.cache.path / "turns" / "cdn")
    return CdnSender(
        config, CdnQueue(database), api_of(config), network, turn, on_request=on_request
    )


def disk_cache_of(
    config: Config,
    *,
    may_keep: Callable[[ImageKey], bool] = lambda key: True,
    on_evicted: Callable[[str, int], None] = lambda reason, count: None,
) -> DiskCache:
    """The configured disk cache."""
    settings = config.cache
    return DiskCache(
        settings.path,
        max_bytes=settings.max_bytes,
        ttl_seconds=settings.ttl_days * 86400,
        may_keep=may_keep,
        on_evicted=on_evicted,
    )


def _blocks(store: ModerationStore, followers: Followers, metrics: Metrics) -> Blocks:
    blocks = Blocks(store, followers)
    metrics.gauge(
        "blocks", "Owners, blobs and pairs that are blocked", lambda: len(blocks), shared=True
    )
    metrics.gauge(
        "purges_pending",
        "Purges, of any process, that are not finished",
        lambda: blocks.purges_pending,
        shared=True,
    )
    return blocks


def _disk_cache(config: Config, metrics: Metrics, store: ModerationStore) -> DiskCache:
    def may_keep(key: ImageKey) -> bool:
        # As committed, by whatever process: no purge that follows a block is waited for here.
        try:
            return not store.blocks_now(key.blob)
        except sqlite3.Error as error:
            raise OSError(errno.EIO, f"blocks cannot be read: {error}") from error

    disk = disk_cache_of(
        config,
        may_keep=may_keep,
        on_evicted=lambda reason, count: metrics.evictions.labels(reason).inc(count),
    )
    kept = disk.statistics
    metrics.gauge("cache_entries", "Entries on disk", lambda: kept().entries, shared=True)
    metrics.gauge("cache_bytes", "Bytes on disk", lambda: kept().bytes, shared=True)
    return disk


def _actors(
    config: Config,
    gateway: Gateway,
    nursery: trio.Nursery,
    documents: DidResolver,
    resolver: Resolver,
) -> Actors:
    txt = TxtRecords(config.identity.nameserver_addresses)
    handles = HandleResolver(config, gateway, nursery, documents, txt.lookup)
    return Actors(config, handles, Records(config, gateway, resolver), nursery)


def _memory_cache(config: Config) -> MemoryCache:
    # An entry's time in memory comes on top of its age on disk, so it is a small part of the TTL.
    return MemoryCache(
        int(config.cache.memory_mb * 1024**2),
        ttl_seconds=min(config.cache.ttl_days * 86400 or math.inf, MEMORY_SECONDS),
    )


def _processing_pool(config: Config, metrics: Metrics) -> ProcessingPool:
    pool = ProcessingPool(
        config, on_death=lambda reason: metrics.worker_deaths.labels(reason).inc()
    )
    metrics.gauge(
        "process_waiting", "Transforms that wait for a turn", lambda: pool.statistics().waiting
    )
    return pool


def _write_failed(metrics: Metrics, upkeep: Upkeep, error: Exception) -> None:
    metrics.write_errors.inc()
    if isinstance(error, OSError):
        upkeep.failed(error)

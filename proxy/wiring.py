"""Builds the parts of a service from the configuration, with their metrics. Runs none of them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import EllipsisType

import trio

from proxy.accounts.blob_fetcher import Fetcher, PdsFetcher
from proxy.accounts.did_documents import DidResolver, Resolver
from proxy.accounts.handles import HandleResolver
from proxy.accounts.profiles import Profiles
from proxy.accounts.records import Records
from proxy.cache.disk import DiskCache
from proxy.cache.health import CacheHealth
from proxy.cache.interface import Cache
from proxy.cache.janitor import keep_cleaning
from proxy.cache.memory import MemoryCache
from proxy.cache.writer import CacheWriter
from proxy.config import Config
from proxy.coordination.build_locks import BuildLocks
from proxy.coordination.folder import FolderCoordination
from proxy.coordination.interface import Coordination
from proxy.coordination.leader import as_leader
from proxy.coordination.replicas import Replicas
from proxy.egress.dns_txt import TxtRecords
from proxy.egress.fetch_channel import FetchChannels
from proxy.egress.gateway import Gateway, guarded_networks
from proxy.egress.network import Network
from proxy.imaging.workers.pool import ProcessingPool, Processor
from proxy.model.identifiers import Did, spellings
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection
from proxy.moderation.backups import keep_backed_up
from proxy.moderation.blocks import Blocks
from proxy.moderation.cdn.apis import api_of
from proxy.moderation.cdn.queue import SCHEMA as CDN_SCHEMA
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.cdn.sender import CdnSender
from proxy.moderation.feeds.run import run_feeds
from proxy.moderation.gate import Gate
from proxy.moderation.moderator import Invalidate, Moderator
from proxy.moderation.policy import Policy
from proxy.moderation.revalidate import Revalidator
from proxy.moderation.store import FILE_NAME, ModerationStore
from proxy.observability.metrics import Metrics
from proxy.observability.spans import NoSpans, Spans
from proxy.service import FetchedBlob, MadeImage, Service
from proxy.shared.single_flight import SingleFlight
from proxy.shared.sqlite import Database

MEMORY_SECONDS = 3600.0
"""Seconds that a result is served from memory before its file is checked again."""


@dataclass(frozen=True)
class Parts:
    """The parts that need neither a nursery nor the cache writer.

    Attributes:
        networks: the networks for untrusted hosts, and for the operator's own.
        disk, build_locks: None if the caller supplied the cache.
        policy: None if no policy service is configured.
    """

    metrics: Metrics
    spans: Spans
    networks: tuple[Network, Network]
    gateway: Gateway
    cache: Cache
    disk: DiskCache | None
    build_locks: BuildLocks | None
    cache_health: CacheHealth
    store: ModerationStore
    replicas: Replicas
    blocks: Blocks
    policy: Policy | None
    gate: Gate
    cdn: CdnSender

    async def make_room(self) -> bool:
        """Evict cache entries because the disk is full; return whether there were any."""
        return self.disk is not None and await self.disk.make_room()

    @asynccontextmanager
    async def closed_at_the_end(self) -> AsyncIterator[None]:
        """Close the files of the parts when the block ends."""
        try:
            yield
        finally:
            await self.cdn.aclose()
            if self.disk is not None:
                await self.disk.aclose()
            if self.build_locks is not None:
                self.build_locks.close()


def parts_of(
    config: Config,
    metrics: Metrics,
    fetch_channels: FetchChannels,
    *,
    cache: Cache | EllipsisType,
    networks: tuple[Network, Network] | None,
) -> Parts:
    """Build the parts. ``cache`` and ``networks`` are as for ``open_service``."""
    networks = networks or guarded_networks(config.fetch, fetch_channels.conduct.connects)
    metrics.tell_process()
    metrics.gauge("fetch_queue_depth", lambda: fetch_channels.statistics().waiting)
    store, coordination = moderation_store_of(config), coordination_of(config)
    replicas = coordination.replicas()
    disk = build_locks = None
    if cache is ...:
        cache = disk = _counted_disk_cache(config, metrics, store)
        # The time of a miss with a slow host and slow workers. If it were longer, clients would
        # give up; if the result is made twice, that costs only work.
        patience = config.fetch.timeout + config.process.queue_wait
        build_locks = coordination.build_locks(timeout=patience)
    blocks = Blocks(store, replicas, make_room=lambda: parts.make_room())
    cache_health = CacheHealth(cache)
    policy = _policy_of(config, networks, metrics)
    cdn = _counted_cdn_sender(config, networks[1], metrics)
    metrics.gauge("blocks", lambda: len(blocks))
    metrics.gauge("purges_pending", lambda: blocks.purges_pending)
    metrics.tell_not_ready("blocks", lambda: blocks.problem is not None)
    metrics.tell_not_ready("cache", lambda: cache_health.problem is not None)
    parts = Parts(
        metrics=metrics,
        spans=spans_of(config),
        networks=networks,
        gateway=Gateway(config.fetch, *networks, channels=fetch_channels),
        cache=cache,
        disk=disk,
        build_locks=build_locks,
        cache_health=cache_health,
        store=store,
        replicas=replicas,
        blocks=blocks,
        policy=policy,
        gate=Gate(blocks, policy, on_refused=metrics.blocked.inc),
        cdn=cdn,
    )
    return parts


def processing_pool_of(config: Config, metrics: Metrics) -> ProcessingPool:
    """Build the configured processing pool, with its metrics."""
    pool = ProcessingPool(
        config, on_death=lambda reason: metrics.worker_deaths.labels(reason).inc()
    )
    metrics.gauge("process_waiting", lambda: pool.statistics().waiting)
    return pool


def cache_writer_of(config: Config, parts: Parts) -> CacheWriter:
    """Build the writer of results to the cache; it skips blocked ones."""

    def failed(error: Exception) -> None:
        parts.metrics.write_errors.inc()
        if isinstance(error, OSError):
            parts.cache_health.failed(error)

    return CacheWriter(
        parts.cache,
        queue_size=config.cache.write_queue,
        refuses=parts.gate.refuses,
        on_written=parts.cache_health.works,
        on_error=failed,
        on_dropped=parts.metrics.writes_dropped.inc,
    )


def moderator_of(config: Config, parts: Parts, cache_writer: CacheWriter) -> Moderator:
    """Build the moderator, which carries out decisions in this service."""
    return Moderator(
        parts.store,
        parts.replicas,
        remove=cache_writer.purge,
        invalidate=invalidation(config, parts.cdn, parts.disk),
        is_pending=lambda: parts.blocks.purges_pending > 0,
        nudge=parts.blocks.nudge,
        on_decision=lambda action, count: parts.metrics.decisions.labels(action).inc(count),
        make_room=parts.make_room,
    )


@dataclass(frozen=True)
class Accounts:
    """The clients for account data: DID documents, blobs and profiles."""

    did_resolver: DidResolver
    blob_fetcher: PdsFetcher
    resolver: Resolver
    profiles: Profiles


def accounts_of(
    config: Config, parts: Parts, nursery: trio.Nursery, resolver: Resolver | EllipsisType
) -> Accounts:
    """Build the clients; ``nursery`` owns running look-ups, which concurrent callers share."""
    on_directory = parts.metrics.asked_directory
    did_resolver = DidResolver(config, parts.gateway, nursery, on_directory=on_directory)
    pds_resolver = did_resolver if resolver is ... else resolver
    lookup = TxtRecords(config.identity.nameserver_addresses).lookup
    handles = HandleResolver(config, parts.gateway, nursery, did_resolver, lookup)
    records = Records(config, parts.gateway, pds_resolver)
    return Accounts(
        did_resolver=did_resolver,
        blob_fetcher=PdsFetcher(config, parts.gateway, parts.spans.outgoing),
        resolver=pds_resolver,
        profiles=Profiles(config, handles, records, nursery),
    )


def service_of(
    config: Config,
    parts: Parts,
    accounts: Accounts,
    *,
    image_flights: SingleFlight[ImageKey, MadeImage],
    blob_flights: SingleFlight[BlobKey, FetchedBlob],
    fetcher: Fetcher | EllipsisType,
    processor: Processor,
    cache_writer: CacheWriter,
    moderator: Moderator,
) -> Service:
    """Build the service from all parts."""
    return Service(
        config,
        blocks=parts.blocks,
        gate=parts.gate,
        moderator=moderator,
        cache=parts.cache,
        memory=memory_cache_of(config),
        writer=cache_writer,
        cache_health=parts.cache_health,
        resolver=accounts.resolver,
        fetcher=accounts.blob_fetcher if fetcher is ... else fetcher,
        processor=processor,
        build_locks=parts.build_locks,
        actors=accounts.profiles,
        metrics=parts.metrics,
        spans=parts.spans,
        image_flights=image_flights,
        blob_flights=blob_flights,
    )


def chores_of(
    config: Config, parts: Parts, moderator: Moderator, accounts: Accounts
) -> dict[str, Callable[[], Awaitable[None]]]:
    """The background tasks by name. None has to be ready before the first request."""
    cleanup_seconds = config.cache.cleanup_interval_minutes * 60
    chores: dict[str, Callable[[], Awaitable[None]]] = {
        "keep_connections": parts.gateway.keep_connections,
        "cdn_sender": parts.cdn.run,
        "keep_finishing": moderator.keep_finishing,
        "keep_checking": parts.cache_health.keep_checking,
        "keep_cleaning": partial(keep_cleaning, parts.cache, parts.cache_health, cleanup_seconds),
        "keep_backed_up": partial(
            keep_backed_up, parts.store.path, coordination_of(config).leadership("backup")
        ),
    }
    if parts.disk is None:
        return chores
    chores["keep_indexed"] = parts.disk.keep_indexed
    chores["keep_measured"] = parts.disk.keep_measured
    chores["feeds"] = partial(
        run_feeds,
        config,
        decisions=moderator,
        cursors=moderator,
        is_cached=partial(_is_cached, parts.disk),
        resolver=accounts.did_resolver,
        gateway=parts.gateway,
        networks=parts.networks,
        leadership=coordination_of(config).leadership("feeds"),
        metrics=parts.metrics,
    )
    if config.cache.revalidate_days:
        chores["revalidator"] = _revalidation_of(config, parts, parts.disk, moderator, accounts)
    return chores


async def purge_taken_down(moderator: Moderator, blob: BlobKey) -> int:
    """Purge a blob that the policy service took down."""
    return await moderator.purge(Selection(blob.did, blob.cid), by="policy")


def moderation_store_of(config: Config) -> ModerationStore:
    """The moderation store in the folder of the configured cache."""
    return ModerationStore(config.cache.path / FILE_NAME)


def coordination_of(config: Config) -> Coordination:
    """Coordination between this process and others that share the configured cache."""
    return FolderCoordination(config.cache.path)


def moderation_database_of(config: Config) -> Database:
    """The moderation database in the folder of the configured cache."""
    path = config.cache.path / FILE_NAME
    return Database(path, CDN_SCHEMA, synchronous="FULL", may_make=False)


def cdn_sender_of(
    config: Config, network: Network, on_request: Callable[[str], None] = lambda outcome: None
) -> CdnSender:
    """Build the sender of purges to the configured CDN, over ``network``."""
    queue = CdnQueue(moderation_database_of(config))
    leadership = coordination_of(config).leadership("cdn")
    return CdnSender(config, queue, api_of(config), network, leadership, on_request=on_request)


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


def memory_cache_of(config: Config) -> MemoryCache:
    """The configured memory cache."""
    # Time in memory adds to an entry's age on disk, so it is a small part of the TTL.
    return MemoryCache(
        int(config.cache.memory_mb * 1024**2),
        ttl_seconds=min(config.cache.ttl_days * 86400 or math.inf, MEMORY_SECONDS),
    )


def invalidation(config: Config, cdn: CdnSender, disk: DiskCache | None) -> Invalidate | None:
    """The function that queues the selected blobs for the CDN purge; None without a CDN."""
    if not config.cdn.kind:
        return None

    async def invalidate(selections: Sequence[Selection]) -> None:
        pairs = {BlobKey(each.did, each.cid) for each in selections if each.did and each.cid}
        of_all = [each for each in selections if each.did is None]
        owners = [each for each in selections if each.cid is None]
        # A CDN knows URLs: each CID of the same bytes has its own.
        blobs = pairs | await _cached(disk, of_all)
        blobs = {BlobKey(blob.did, cid) for blob in blobs for cid in spellings(blob.cid)}
        await cdn.invalidate([*(blobs | await _cached(disk, owners))])

    return invalidate


def spans_of(config: Config) -> Spans:
    """The spans for the configured traces."""
    if not config.trace.endpoint:
        return NoSpans()
    # Imported late: its packages are an optional extra.
    from proxy.observability.tracing import tracing_of

    return tracing_of(config.trace)


def _counted_disk_cache(config: Config, metrics: Metrics, store: ModerationStore) -> DiskCache:
    """The configured disk cache with its metrics. It stores no blocked entries."""

    disk = disk_cache_of(
        config,
        may_keep=store.may_keep,
        on_evicted=lambda reason, count: metrics.evictions.labels(reason).inc(count),
    )
    kept = disk.statistics
    metrics.gauge("cache_entries", lambda: kept().entries)
    metrics.gauge("cache_bytes", lambda: kept().bytes)
    metrics.gauge("cache_free_bytes", lambda: disk.free_bytes)
    return disk


def _counted_cdn_sender(config: Config, network: Network, metrics: Metrics) -> CdnSender:
    """The CDN sender with its metrics."""
    cdn = cdn_sender_of(config, network, lambda outcome: metrics.cdn_requests.labels(outcome).inc())
    metrics.gauge("cdn_pending", lambda: cdn.pending)
    return cdn


def _policy_of(
    config: Config, networks: tuple[Network, Network], metrics: Metrics
) -> Policy | None:
    if not config.policy.url:
        return None
    count = metrics.policy_answers.labels
    return Policy(config, *networks, on_answer=lambda answer: count(answer).inc())


def _revalidation_of(
    config: Config, parts: Parts, disk: DiskCache, moderator: Moderator, accounts: Accounts
) -> Callable[[], Awaitable[None]]:
    """The task that asks PDSes whether cached blobs still exist, in one process at a time."""
    count = parts.metrics.revalidations.labels
    revalidator = Revalidator(
        age=config.cache.revalidate_days * 86400,
        times=disk,
        resolver=accounts.resolver,
        exists=accounts.blob_fetcher.exists,
        decisions=moderator,
        on_checked=lambda availability: count(availability).inc(),
    )
    leadership = coordination_of(config).leadership("revalidation")
    return partial(as_leader, leadership, revalidator.run)


async def _cached(disk: DiskCache | None, selections: Sequence[Selection]) -> AbstractSet[BlobKey]:
    return await disk.blobs(selections) if disk is not None and selections else frozenset()


async def _is_cached(disk: DiskCache, did: Did) -> bool:
    return await disk.has(Selection(did=did))

"""Builds the parts of a service from the configuration, with their metrics. Runs none of them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING

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
from proxy.cache.object_store import ObjectStore, Operation, Outcome
from proxy.cache.object_writer import ObjectWriter
from proxy.cache.writer import CacheWriter
from proxy.config import Config
from proxy.coordination.build_locks import BuildLocks
from proxy.coordination.cluster.served_name import NAME as SERVED
from proxy.coordination.folder import FolderCoordination
from proxy.coordination.interface import Coordination, Replicas
from proxy.coordination.leader import as_leader
from proxy.egress.dns_txt import TxtRecords
from proxy.egress.fetch_channel import FetchChannels
from proxy.egress.gateway import Gateway, guarded_networks
from proxy.egress.network import Network
from proxy.imaging.workers.pool import PosterMaker, ProcessingPool, Processor
from proxy.model.identifiers import Did, spellings
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.preset_table import PresetTable
from proxy.model.selection import Selection
from proxy.moderation.backups import keep_backed_up
from proxy.moderation.blocks import Blocks
from proxy.moderation.cdn.apis import api_of
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.cdn.sender import CdnSender
from proxy.moderation.configured_store import folder_store_of, moderation_database_of
from proxy.moderation.decision_store import DecisionStore
from proxy.moderation.feeds.label_store import SCHEMA as FEED_SCHEMA
from proxy.moderation.feeds.label_store import FeedStore
from proxy.moderation.feeds.run import run_feeds
from proxy.moderation.first_start import FEEDS
from proxy.moderation.folder_blocks import FolderBlocks
from proxy.moderation.gate import Gate
from proxy.moderation.moderator import PATIENCE_SECONDS, Again, Invalidate, Moderator
from proxy.moderation.revalidate import Revalidator
from proxy.observability.metrics import Metrics
from proxy.observability.spans import NoSpans, Spans
from proxy.posters import Posters
from proxy.service import FetchedBlob, MadeImage, Service, SharedTier
from proxy.shared.current import Current
from proxy.shared.free_memory import keep_trimmed
from proxy.shared.single_flight import SingleFlight
from proxy.shared.sqlite import Database

if TYPE_CHECKING:
    from proxy.moderation.policy import Policy

MEMORY_SECONDS = 3600.0
"""Seconds that a result is served from memory before its file is checked again."""


@dataclass(frozen=True)
class Parts:
    """The parts that need neither a nursery nor the cache writer.

    Attributes:
        networks: the networks for untrusted hosts, and for the operator's own.
        shared: None if no store is configured.
        disk, build_locks: None if the caller supplied the cache.
        policy: None if no policy service is configured.
        keep_lease: the task that keeps the lease of a process of a cluster; None on one machine.
    """

    metrics: Metrics
    spans: Spans
    networks: tuple[Network, Network]
    gateway: Gateway
    cache: Cache
    disk: DiskCache | None
    build_locks: BuildLocks | None
    cache_health: CacheHealth
    store: DecisionStore
    replicas: Replicas
    blocks: Blocks
    keep_lease: Callable[[], Awaitable[None]] | None
    policy: Policy | None
    gate: Gate
    cdn: CdnSender
    shared: SharedTier | None

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
    presets: Current[PresetTable],
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
    followed = _followed_of(config, lambda: parts)
    blocks = followed.blocks
    disk = build_locks = None
    if cache is ...:
        cache = disk = _counted_disk_cache(config, metrics, followed)
        # The time of a miss with a slow host and slow workers. If it were longer, clients would
        # give up; if the result is made twice, that costs only work.
        patience = config.fetch.timeout + config.process.queue_wait
        build_locks = coordination_of(config).build_locks(timeout=patience)
    cache_health = CacheHealth(cache)
    policy = _policy_of(config, networks, metrics)
    cdn = _counted_cdn_sender(config, presets, networks[1], metrics)
    if followed.keep_lease is not None:
        metrics.gauge("lease_held", lambda: float(blocks.problem is None))
    gate = Gate(blocks, policy, on_refused=metrics.blocked.inc)
    metrics.gauge("blocks", lambda: len(blocks))
    metrics.gauge("purges_pending", lambda: blocks.purges_pending)
    metrics.tell_not_ready("blocks", lambda: blocks.problem is not None)
    metrics.tell_not_ready(
        "cache", lambda: cache_health.problem is not None and not cache_health.is_full
    )
    metrics.tell_degraded("cache", lambda: cache_health.is_full)
    parts = Parts(
        metrics=metrics,
        spans=spans_of(config),
        networks=networks,
        gateway=Gateway(config.fetch, *networks, channels=fetch_channels),
        cache=cache,
        disk=disk,
        build_locks=build_locks,
        cache_health=cache_health,
        store=followed.store,
        replicas=followed.replicas,
        blocks=blocks,
        keep_lease=followed.keep_lease,
        policy=policy,
        gate=gate,
        cdn=cdn,
        shared=_shared_tier_of(config, metrics, blocks, gate),
    )
    return parts


def processing_pool_of(config: Config, metrics: Metrics) -> ProcessingPool:
    """Build the configured processing pool, with its metrics."""
    pool = ProcessingPool(
        config,
        on_death=lambda reason: metrics.worker_deaths.labels(reason).inc(),
        on_defect=metrics.image_defects.inc,
        on_decoders=metrics.tell_decoders,
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
        hand_on=parts.shared.writer.offer if parts.shared else lambda key, entry: None,
        on_error=failed,
        on_dropped=parts.metrics.writes_dropped.inc,
    )


def moderator_of(config: Config, parts: Parts, cache_writer: CacheWriter) -> Moderator:
    """Build the moderator, which carries out decisions in this service."""
    return Moderator(
        parts.store,
        parts.replicas,
        remove=cache_writer.purge,
        shared=parts.shared.store if parts.shared else None,
        invalidate=invalidation(config, parts.cdn, parts.disk),
        is_pending=lambda: parts.blocks.purges_pending > 0,
        nudge=parts.blocks.nudge,
        on_decision=lambda action, count: parts.metrics.decisions.labels(action).inc(count),
        make_room=parts.make_room,
        patience=decision_patience(config),
        removes_everywhere=bool(config.cluster.url),
    )


def decision_patience(config: Config) -> float:
    """Seconds in which a decision is in force: a lease that is not renewed ends within them."""
    lease = config.cluster.lease if config.cluster.url else 0.0
    return max(PATIENCE_SECONDS, lease + 2)


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
    return Accounts(
        did_resolver=did_resolver,
        blob_fetcher=PdsFetcher(config, parts.gateway, parts.spans.outgoing),
        resolver=pds_resolver,
        profiles=profiles_of(config, parts.gateway, nursery, did_resolver, pds_resolver),
    )


def profiles_of(
    config: Config,
    gateway: Gateway,
    nursery: trio.Nursery,
    did_resolver: DidResolver,
    pds_resolver: Resolver,
) -> Profiles:
    """Build what finds accounts; ``nursery`` owns running look-ups."""
    lookup = TxtRecords(config.identity.nameserver_addresses).lookup
    handles = HandleResolver(config, gateway, nursery, did_resolver, lookup)
    return Profiles(config, handles, Records(config, gateway, pds_resolver), nursery)


def service_of(
    config: Config,
    presets: Current[PresetTable],
    parts: Parts,
    accounts: Accounts,
    *,
    image_flights: SingleFlight[ImageKey, MadeImage],
    blob_flights: SingleFlight[BlobKey, FetchedBlob],
    fetcher: Fetcher | EllipsisType,
    processor: Processor,
    poster_maker: PosterMaker | None,
    cache_writer: CacheWriter,
    moderator: Moderator,
) -> Service:
    """Build the service from all parts."""
    posters = Posters(config, accounts.resolver, accounts.blob_fetcher, poster_maker, parts.spans)
    return Service(
        config,
        presets,
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
        shared=parts.shared,
        actors=accounts.profiles,
        posters=posters,
        known_hosts=parts.gateway.known_hosts,
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
        "keep_trimmed": keep_trimmed,
        "cdn_sender": parts.cdn.run,
        "keep_finishing": moderator.keep_finishing,
        "keep_checking": parts.cache_health.keep_checking,
        "keep_cleaning": partial(keep_cleaning, parts.cache, parts.cache_health, cleanup_seconds),
    }
    if not config.cluster.url:
        leadership = coordination_of(config).leadership("backup")
        chores["keep_backed_up"] = partial(keep_backed_up, folder_store_of(config).path, leadership)
    if parts.disk is None:
        return chores
    chores["keep_indexed"] = parts.disk.keep_indexed
    chores["keep_measured"] = parts.disk.keep_measured
    has_shared = bool(config.cluster.url or config.store.url)
    chores["feeds"] = partial(
        run_feeds,
        config,
        feed_store_of(config, before_making=parts.blocks.make_store_at_first),
        decisions=moderator,
        cursors=moderator,
        is_cached=_anywhere if has_shared else partial(_is_cached, parts.disk),
        purge_elsewhere=partial(_purge_at_cdn, config, parts.cdn),
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


def coordination_of(config: Config) -> Coordination:
    """Coordination between this process and others that share the configured cache or database."""
    if config.cluster.url:
        # Imported late, as everywhere below: it needs an extra.
        from proxy.moderation.cluster import parts as cluster

        return cluster.coordination_of(config)
    return FolderCoordination(config.cache.path)


async def keep_joined(config: Config, replicas: Replicas) -> None:
    """Keep a process that decides, and serves nothing, among those that are known to live."""
    if config.cluster.url:
        from proxy.coordination.cluster.keeper import keep_entered
        from proxy.coordination.cluster.members import Members

        if isinstance(replicas, Members):
            await keep_entered(replicas)


def feed_store_of(config: Config, *, before_making: Callable[[], None] = lambda: None) -> FeedStore:
    """The store of what followed labels are about, beside the configured store of decisions."""
    if config.cluster.url:
        from proxy.moderation.cluster import parts as cluster

        return FeedStore(cluster.database_of(config, "labels"))
    path = config.cache.path / FEEDS
    return FeedStore(Database(path, FEED_SCHEMA, synchronous="FULL", before_making=before_making))


def cdn_sender_of(
    config: Config,
    presets: Current[PresetTable],
    network: Network,
    on_request: Callable[[str], None] = lambda outcome: None,
) -> CdnSender:
    """Build the sender of purges to the configured CDN, over ``network``."""
    queue = CdnQueue(moderation_database_of(config))
    leadership = coordination_of(config).leadership("cdn")
    return CdnSender(queue, api_of(config, presets), network, leadership, on_request=on_request)


def disk_cache_of(
    config: Config,
    *,
    may_keep: Callable[[ImageKey], bool] = lambda key: True,
    before_making: Callable[[], None] = lambda: None,
    on_evicted: Callable[[str, int], None] = lambda reason, count: None,
) -> DiskCache:
    """The configured disk cache."""
    settings = config.cache
    return DiskCache(
        settings.path,
        max_bytes=settings.max_bytes,
        ttl_seconds=settings.ttl_days * 86400,
        may_keep=may_keep,
        before_making=before_making,
        fsync=settings.fsync,
        on_evicted=on_evicted,
    )


def served_folder(config: Config) -> Path:
    """The absolute path through which a web server on this machine reaches the results."""
    images = disk_cache_of(config).images
    return images.with_name(SERVED) if config.cluster.url else images


def memory_cache_of(config: Config) -> MemoryCache:
    """The configured memory cache."""
    # Time in memory adds to an entry's age on disk, so it is a small part of the TTL.
    return MemoryCache(
        int(config.cache.memory_mb * 1024**2),
        ttl_seconds=min(config.cache.ttl_days * 86400 or math.inf, MEMORY_SECONDS),
    )


def invalidation(config: Config, cdn: CdnSender, disk: DiskCache | None) -> Invalidate | None:
    """The function that queues selections for the CDN's purge; None without a CDN.

    A CDN that is purged by tag knows which copies a selection has. One that is purged by URL has to
    be told which: those of blobs that this cache has of it.
    """
    if not config.cdn.kind:
        return None

    async def queue(copies: Sequence[Selection]) -> Again:
        again = partial(cdn.invalidate, copies)
        await again()
        return again

    if config.cdn.purge == "tags":
        return queue

    async def queue_urls(selections: Sequence[Selection]) -> Again:
        pairs = {BlobKey(each.did, each.cid) for each in selections if each.did and each.cid}
        of_all = [each for each in selections if each.did is None]
        owners = [each for each in selections if each.cid is None]
        # Each CID of the same bytes has URLs of its own.
        blobs = pairs | await _cached(disk, of_all)
        blobs = {BlobKey(blob.did, cid) for blob in blobs for cid in spellings(blob.cid)}
        return await queue([Selection(*blob) for blob in blobs | await _cached(disk, owners)])

    return queue_urls


def spans_of(config: Config) -> Spans:
    """The spans for the configured traces."""
    if not config.trace.endpoint:
        return NoSpans()
    # Imported late: its packages are an optional extra.
    from proxy.observability.tracing import tracing_of

    return tracing_of(config.trace)


@dataclass(frozen=True)
class _Followed:
    store: DecisionStore
    replicas: Replicas
    blocks: Blocks
    may_keep: Callable[[ImageKey], bool]
    keep_lease: Callable[[], Awaitable[None]] | None


def _followed_of(config: Config, parts: Callable[[], Parts]) -> _Followed:
    """What follows decisions: those of the cache folder, or those of the cluster."""
    if not config.cluster.url:
        store, replicas = folder_store_of(config), FolderCoordination(config.cache.path).replicas()
        folder_blocks = FolderBlocks(store, replicas, make_room=lambda: parts().make_room())
        return _Followed(store, replicas, folder_blocks, store.may_keep, None)
    from proxy.moderation.cluster import parts as cluster

    async def remove_here(*selections: Selection) -> int:
        # A CDN that is purged by URL is told of what each machine has.
        invalidate = None
        if config.cdn.purge == "urls":
            invalidate = invalidation(config, parts().cdn, parts().disk)
        if invalidate is None:
            return await parts().cache.purge(*selections)
        invalidate_again = await invalidate(selections)
        removed = await parts().cache.purge(*selections)
        await invalidate_again()
        return removed

    found = cluster.following_of(config, remove_here)
    blocks = found.blocks
    return _Followed(
        found.store,
        found.members,
        blocks,
        # Called when nothing can be purged: what is not known to be blocked then is removed after.
        lambda key: not blocks.is_blocked(key.blob),
        partial(found.keeper.run, blocks.nudge),
    )


def object_store_of(
    config: Config,
    *,
    may_use: Callable[[BlobKey], bool] = lambda blob: True,
    on_request: Callable[[Operation, Outcome], None] = lambda operation, outcome: None,
) -> ObjectStore | None:
    """The configured object store; None without one."""
    if not config.store.url:
        return None
    # Imported late: its package is an optional extra.
    from proxy.cache.object_client import StoredObjects

    return ObjectStore(
        StoredObjects(config.store),
        timeout=config.store.timeout,
        ttl_seconds=config.cache.ttl_days * 86400,
        max_source_bytes=config.fetch.max_source_bytes,
        may_use=may_use,
        on_request=on_request,
    )


def _shared_tier_of(
    config: Config, metrics: Metrics, blocks: Blocks, gate: Gate
) -> SharedTier | None:
    """The configured object store and its writer, with their metrics."""

    def may_use(blob: BlobKey) -> bool:
        return not (blocks.is_purging(blob) or gate.refuses(blob))

    def count(operation: Operation, outcome: Outcome) -> None:
        metrics.store_requests.labels(operation, outcome).inc()

    store = object_store_of(config, may_use=may_use, on_request=count)
    if store is None:
        return None
    writer = ObjectWriter(
        store,
        queue_size=config.cache.write_queue,
        on_dropped=partial(count, "put", "dropped"),
    )
    metrics.tell_degraded("store", lambda: store.is_resting)
    return SharedTier(store, writer, config.store.sources)


def _counted_disk_cache(config: Config, metrics: Metrics, followed: _Followed) -> DiskCache:
    """The configured disk cache with its metrics. It stores no blocked entries."""

    disk = disk_cache_of(
        config,
        may_keep=followed.may_keep,
        before_making=followed.blocks.make_store_at_first,
        on_evicted=lambda reason, count: metrics.evictions.labels(reason).inc(count),
    )
    kept = disk.statistics
    metrics.gauge("cache_entries", lambda: kept().entries)
    metrics.gauge("cache_bytes", lambda: kept().bytes)
    metrics.gauge("cache_free_bytes", lambda: disk.free_bytes)
    return disk


def _counted_cdn_sender(
    config: Config, presets: Current[PresetTable], network: Network, metrics: Metrics
) -> CdnSender:
    """The CDN sender with its metrics."""
    count = metrics.cdn_requests.labels
    cdn = cdn_sender_of(config, presets, network, lambda outcome: count(outcome).inc())
    metrics.gauge("cdn_pending", lambda: cdn.pending)
    return cdn


def _policy_of(
    config: Config, networks: tuple[Network, Network], metrics: Metrics
) -> Policy | None:
    if not config.policy.url:
        return None
    # Here, for few services have one.
    from proxy.moderation.policy import Policy

    count = metrics.policy_answers.labels
    return Policy(config, *networks, on_answer=lambda answer: count(answer).inc())


def _revalidation_of(
    config: Config, parts: Parts, disk: DiskCache, moderator: Moderator, accounts: Accounts
) -> Callable[[], Awaitable[None]]:
    """The task that asks PDSes whether cached blobs still exist, in one process at a time."""
    count = parts.metrics.revalidations.labels
    revalidator = Revalidator(
        age=config.cache.revalidate_days * 86400,
        unconfirmed_age=config.cache.unconfirmed_days * 86400,
        times=disk,
        resolver=accounts.resolver,
        exists=accounts.blob_fetcher.exists,
        timeout=config.fetch.timeout,
        decisions=moderator,
        on_checked=lambda availability: count(availability).inc(),
    )
    leadership = coordination_of(config).leadership("revalidation")
    return partial(as_leader, leadership, revalidator.run)


async def _cached(disk: DiskCache | None, selections: Sequence[Selection]) -> AbstractSet[BlobKey]:
    return await disk.blobs(selections) if disk is not None and selections else frozenset()


async def _anywhere(_did: Did) -> bool:
    """Whether an owner's results are on any machine, or in the store: that is not known here."""
    await trio.lowlevel.checkpoint()
    return True


async def _is_cached(disk: DiskCache, did: Did) -> bool:
    # Not by the index alone: it may have lost a file, or be about to be made.
    return bool(await disk.blobs([Selection(did=did)]))


async def _purge_at_cdn(config: Config, cdn: CdnSender, did: Did) -> None:
    """Purge what a CDN has of an owner of whom nothing is cached here: it keeps copies for longer.

    Not at CloudFront, which charges for each tag: those who are gone are of the whole network.
    """
    if config.cdn.kind in ("cloudflare", "bunny") and config.cdn.purge == "tags":
        await cdn.invalidate([Selection(did=did)])

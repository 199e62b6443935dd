"""The parts of a service, each made from the configuration, with the metrics it tells."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from proxy.accounts.blob_fetcher import PdsFetcher
from proxy.accounts.did_documents import DidResolver, Resolver
from proxy.accounts.handles import HandleResolver
from proxy.accounts.profiles import Profiles
from proxy.accounts.records import Records
from proxy.cache.disk import DiskCache
from proxy.cache.memory import MemoryCache
from proxy.config import Config
from proxy.coordination.leader import Leadership, as_leader
from proxy.coordination.replicas import Replicas
from proxy.egress.dns_txt import TxtRecords
from proxy.egress.gateway import Gateway
from proxy.egress.network import Network
from proxy.imaging.workers.pool import ProcessingPool
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection
from proxy.moderation.blocks import Blocks
from proxy.moderation.cdn.apis import api_of
from proxy.moderation.cdn.queue import SCHEMA as CDN_SCHEMA
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.cdn.sender import CdnSender
from proxy.moderation.interface import Decisions
from proxy.moderation.moderator import Invalidate
from proxy.moderation.policy import Policy
from proxy.moderation.revalidate import Revalidator
from proxy.moderation.store import FILE_NAME, ModerationStore
from proxy.observability.metrics import Metrics
from proxy.observability.spans import NoSpans, Spans
from proxy.shared.sqlite import Database

MEMORY_SECONDS = 3600.0
"""How long a result is served from memory before its file is looked at again."""


def moderation_store_of(config: Config) -> ModerationStore:
    """What is kept of moderation beside the configured cache."""
    return ModerationStore(config.cache.path / FILE_NAME)


def replicas_of(config: Config) -> Replicas:
    """The processes that follow what is decided about the configured cache."""
    return Replicas(config.cache.path / "followers")


def moderation_database_of(config: Config) -> Database:
    """What moderation keeps beside the configured cache."""
    return Database(config.cache.path / FILE_NAME, CDN_SCHEMA, synchronous="FULL")


def cdn_sender_of(
    config: Config, network: Network, on_request: Callable[[str], None] = lambda outcome: None
) -> CdnSender:
    """Who purges the configured CDN, over ``network``."""
    queue = CdnQueue(moderation_database_of(config))
    turn = Leadership(config.cache.path / "turns" / "cdn")
    return CdnSender(config, queue, api_of(config), network, turn, on_request=on_request)


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


def counted_blocks(
    store: ModerationStore,
    replicas: Replicas,
    metrics: Metrics,
    make_room: Callable[[], Awaitable[bool]],
) -> Blocks:
    """What is blocked, with its gauges."""
    blocks = Blocks(store, replicas, make_room=make_room)
    metrics.gauge("blocks", lambda: len(blocks))
    metrics.gauge("purges_pending", lambda: blocks.purges_pending)
    return blocks


def counted_disk_cache(config: Config, metrics: Metrics, store: ModerationStore) -> DiskCache:
    """The configured disk cache, which keeps nothing that is blocked, with its metrics."""
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


def actors_of(
    config: Config,
    gateway: Gateway,
    nursery: trio.Nursery,
    documents: DidResolver,
    resolver: Resolver,
) -> Profiles:
    """Who finds accounts by name, and what their profiles show.

    Args:
        nursery: owns the questions under way.
        documents, resolver: read DID documents, and find PDSes.
    """
    txt = TxtRecords(config.identity.nameserver_addresses)
    handles = HandleResolver(config, gateway, nursery, documents, txt.lookup)
    return Profiles(config, handles, Records(config, gateway, resolver), nursery)


def memory_cache_of(config: Config) -> MemoryCache:
    """The configured hot tier."""
    # An entry's time in memory comes on top of its age on disk, so it is a small part of the TTL.
    return MemoryCache(
        int(config.cache.memory_mb * 1024**2),
        ttl_seconds=min(config.cache.ttl_days * 86400 or math.inf, MEMORY_SECONDS),
    )


def processing_pool_of(config: Config, metrics: Metrics) -> ProcessingPool:
    """The configured processing pool, with its metrics."""
    pool = ProcessingPool(
        config, on_death=lambda reason: metrics.worker_deaths.labels(reason).inc()
    )
    metrics.gauge("process_waiting", lambda: pool.statistics().waiting)
    return pool


def policy_of(
    config: Config,
    networks: tuple[Network, Network],
    decisions: Callable[[], Decisions],
    metrics: Metrics,
) -> Policy | None:
    """The configured policy service; None where there is none.

    Args:
        decisions: carries out what it takes down.
    """
    if not config.policy.url:
        return None

    async def purge(blob: BlobKey) -> int:
        return await decisions().purge(Selection(blob.did, blob.cid), by="policy")

    return Policy(
        config,
        *networks,
        on_taken_down=purge,
        on_answer=lambda answer: metrics.policy_answers.labels(answer).inc(),
    )


def counted_cdn_sender(config: Config, network: Network, metrics: Metrics) -> CdnSender:
    """Who purges the configured CDN, with its metrics."""
    cdn = cdn_sender_of(config, network, lambda outcome: metrics.cdn_requests.labels(outcome).inc())
    metrics.gauge("cdn_pending", lambda: cdn.pending)
    return cdn


def revalidation_of(
    config: Config,
    disk: DiskCache,
    resolver: Resolver,
    pds: PdsFetcher,
    decisions: Decisions,
    metrics: Metrics,
) -> Callable[[], Awaitable[None]] | None:
    """What asks PDSes for what is cached, in one process at a time; None where it is off."""
    if not config.cache.revalidate_days:
        return None
    revalidator = Revalidator(
        age=config.cache.revalidate_days * 86400,
        times=disk,
        resolver=resolver,
        exists=pds.exists,
        decisions=decisions,
        on_checked=lambda finding: metrics.revalidations.labels(finding).inc(),
    )
    return partial(
        as_leader, Leadership(config.cache.path / "turns" / "revalidation"), revalidator.run
    )


def invalidation(config: Config, cdn: CdnSender, disk: DiskCache | None) -> Invalidate | None:
    """What notes for the CDN the blobs that are meant; None where there is no CDN."""
    if not config.cdn.kind:
        return None

    async def invalidate(selections: Sequence[Selection]) -> None:
        pairs = {BlobKey(each.did, each.cid) for each in selections if each.did and each.cid}
        others = [each for each in selections if not (each.did and each.cid)]
        cached = await disk.blobs(others) if disk is not None and others else frozenset()
        await cdn.invalidate([*pairs, *cached])

    return invalidate


def spans_of(config: Config) -> Spans:
    """What the configured traces are made of."""
    if not config.trace.endpoint:
        return NoSpans()
    # Imported late: it is an extra.
    from proxy.observability.tracing import tracing_of

    return tracing_of(config.trace)

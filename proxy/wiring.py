"""What a service is made of, before any of it runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import EllipsisType

from proxy.cache.disk import DiskCache
from proxy.cache.health import CacheHealth
from proxy.cache.interface import Cache
from proxy.cache.writer import CacheWriter
from proxy.config import Config
from proxy.coordination.build_locks import BuildLocks
from proxy.egress.gateway import Gateway, guarded_networks
from proxy.egress.network import Network
from proxy.imaging.workers.pool import ProcessingPool, Processor
from proxy.moderation.blocks import Blocks
from proxy.moderation.cdn.sender import CdnSender
from proxy.moderation.gate import Gate
from proxy.moderation.moderator import Moderator
from proxy.moderation.policy import Policy
from proxy.observability.metrics import Metrics
from proxy.observability.spans import Spans
from proxy.wiring_parts import (
    counted_blocks,
    counted_cdn_sender,
    counted_disk_cache,
    invalidation,
    moderation_store_of,
    policy_of,
    processing_pool_of,
    replicas_of,
    spans_of,
)


@dataclass(frozen=True)
class Assembly:
    """The parts that need no nursery to be made, each under its name.

    Attributes:
        networks: what hosts of strangers, and the directory, are reached over.
        disk, build_locks: None where the cache is the caller's.
        pool: the processor, to be run; None where it is the caller's.
    """

    metrics: Metrics
    spans: Spans
    networks: tuple[Network, Network]
    gateway: Gateway
    cache: Cache
    disk: DiskCache | None
    build_locks: BuildLocks | None
    processor: Processor
    pool: ProcessingPool | None
    blocks: Blocks
    policy: Policy | None
    gate: Gate
    cdn: CdnSender
    cache_health: CacheHealth
    writer: CacheWriter
    moderator: Moderator


def assemble(
    config: Config,
    *,
    cache: Cache | EllipsisType,
    processor: Processor | EllipsisType,
    networks: tuple[Network, Network] | None,
) -> Assembly:
    """Make the parts, with the metrics that they tell. Arguments as for ``open_service``."""
    metrics = Metrics()
    metrics.tell_process()
    store, replicas = moderation_store_of(config), replicas_of(config)
    disk = build_locks = pool = None

    async def make_room() -> bool:
        return disk is not None and await disk.make_room()

    if cache is ...:
        cache = disk = counted_disk_cache(config, metrics, store)
        # As long as a miss may take whose host and workers are slow. Waiting longer makes clients
        # give up; making the result twice costs only work.
        patience = config.fetch.timeout + config.process.queue_wait
        build_locks = BuildLocks(config.cache.path / "flights.lock", timeout=patience)
    if processor is ...:
        processor = pool = processing_pool_of(config, metrics)
    networks = networks or guarded_networks(config.fetch)
    gateway = Gateway(config.fetch, *networks)
    metrics.gauge("fetch_queue_depth", lambda: gateway.statistics().waiting)
    blocks = counted_blocks(store, replicas, metrics, make_room)
    policy = policy_of(config, networks, lambda: moderator, metrics)
    gate = Gate(blocks, policy, on_refused=metrics.blocked.inc)
    cdn = counted_cdn_sender(config, networks[1], metrics)
    cache_health = CacheHealth(cache)
    metrics.tell_not_ready("blocks", lambda: blocks.problem is not None)
    metrics.tell_not_ready("cache", lambda: cache_health.problem is not None)
    writer = CacheWriter(
        cache,
        queue_size=config.cache.write_queue,
        refuses=gate.refuses,
        on_written=cache_health.works,
        on_error=partial(_write_failed, metrics, cache_health),
        on_dropped=metrics.writes_dropped.inc,
    )
    moderator = Moderator(
        store,
        replicas,
        remove=writer.purge,
        invalidate=invalidation(config, cdn, disk),
        is_pending=lambda: blocks.purges_pending > 0,
        nudge=blocks.nudge,
        on_decision=lambda action, count: metrics.decisions.labels(action).inc(count),
        make_room=make_room,
    )
    return Assembly(
        metrics=metrics,
        spans=spans_of(config),
        networks=networks,
        gateway=gateway,
        cache=cache,
        disk=disk,
        build_locks=build_locks,
        processor=processor,
        pool=pool,
        blocks=blocks,
        policy=policy,
        gate=gate,
        cdn=cdn,
        cache_health=cache_health,
        writer=writer,
        moderator=moderator,
    )


def _write_failed(metrics: Metrics, cache_health: CacheHealth, error: Exception) -> None:
    metrics.write_errors.inc()
    if isinstance(error, OSError):
        cache_health.failed(error)

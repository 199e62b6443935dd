"""What a service is made of, before any of it runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import EllipsisType

from proxy.cache.base import Cache
from proxy.cache.claims import Claims
from proxy.cache.disk import DiskCache
from proxy.cache.upkeep import Upkeep
from proxy.cache.writer import CacheWriter
from proxy.config import Config
from proxy.egress.gateway import Gateway, guarded_networks
from proxy.egress.network import Network
from proxy.metrics import Metrics
from proxy.moderation.blocks import Blocks
from proxy.moderation.cdn.sender import CdnSender
from proxy.moderation.moderator import Moderator
from proxy.moderation.permission import Permission
from proxy.moderation.policy import Policy
from proxy.parts import (
    counted_blocks,
    counted_cdn_sender,
    counted_disk_cache,
    followers_of,
    invalidation,
    moderation_store_of,
    policy_of,
    processing_pool_of,
    spans_of,
)
from proxy.process.pool import ProcessingPool, Processor
from proxy.spans import Spans


@dataclass(frozen=True)
class Assembly:
    """The parts that need no nursery to be made, each under its name.

    Attributes:
        networks: what hosts of strangers, and the directory, are reached over.
        disk, claims: None where the cache is the caller's.
        pool: the processor, to be run; None where it is the caller's.
    """

    metrics: Metrics
    spans: Spans
    networks: tuple[Network, Network]
    gateway: Gateway
    cache: Cache
    disk: DiskCache | None
    claims: Claims | None
    processor: Processor
    pool: ProcessingPool | None
    blocks: Blocks
    policy: Policy | None
    permission: Permission
    cdn: CdnSender
    upkeep: Upkeep
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
    store, followers = moderation_store_of(config), followers_of(config)
    disk = claims = pool = None

    async def make_room() -> bool:
        return disk is not None and await disk.make_room()

    if cache is ...:
        cache = disk = counted_disk_cache(config, metrics, store)
        claims = Claims(config.cache.path / "flights.lock")
    if processor is ...:
        processor = pool = processing_pool_of(config, metrics)
    networks = networks or guarded_networks(config)
    gateway = Gateway(config, *networks)
    metrics.gauge("fetch_queue_depth", lambda: gateway.statistics().waiting)
    blocks = counted_blocks(store, followers, metrics, make_room)
    policy = policy_of(config, networks, lambda: moderator, metrics)
    permission = Permission(blocks, policy, on_refused=metrics.blocked.inc)
    cdn = counted_cdn_sender(config, networks[1], metrics)
    upkeep = Upkeep(cache)
    metrics.tell_not_ready("blocks", lambda: blocks.problem is not None)
    metrics.tell_not_ready("cache", lambda: upkeep.problem is not None)
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
        claims=claims,
        processor=processor,
        pool=pool,
        blocks=blocks,
        policy=policy,
        permission=permission,
        cdn=cdn,
        upkeep=upkeep,
        writer=writer,
        moderator=moderator,
    )


def _write_failed(metrics: Metrics, upkeep: Upkeep, error: Exception) -> None:
    metrics.write_errors.inc()
    if isinstance(error, OSError):
        upkeep.failed(error)

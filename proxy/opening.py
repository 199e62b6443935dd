"""One function opens the nurseries, and everything that runs is named there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import EllipsisType

import trio

from proxy.cache.base import Cache, Covering, Selection
from proxy.cache.claims import Claims
from proxy.cache.disk import DiskCache
from proxy.cache.upkeep import Upkeep
from proxy.cache.writer import CacheWriter
from proxy.config import Config
from proxy.egress.gateway import Gateway, guarded_networks
from proxy.egress.network import Network
from proxy.extras import check_extras
from proxy.fetch import Fetcher, PdsFetcher
from proxy.identifiers import Did
from proxy.identity import DidResolver, Resolver
from proxy.metrics import Metrics
from proxy.moderation.blocks import Blocks
from proxy.moderation.feeds.run import run_feeds
from proxy.moderation.moderator import Moderator
from proxy.moderation.permission import Permission
from proxy.parts import (
    actors_of,
    cdn_sender_of,
    counted_blocks,
    counted_cdn_sender,
    counted_disk_cache,
    disk_cache_of,
    followers_of,
    invalidation,
    memory_cache_of,
    moderation_store_of,
    policy_of,
    processing_pool_of,
    revalidation_of,
    spans_of,
)
from proxy.process.pool import Processor
from proxy.service import Service
from proxy.spans import Spans

LAST_EXPORT_SECONDS = 2.0
"""Seconds that spans may take on their way out when everything else has stopped."""


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
        RuntimeError: this is not a Trio task.
        ConfigError: what the configuration needs is not installed.
    """
    if not trio.lowlevel.in_trio_run():
        raise RuntimeError("open_service runs under Trio only; from asyncio ask a server by HTTP")
    parts = {"cache": cache, "fetcher": fetcher, "processor": processor, "resolver": resolver}
    for name, part in parts.items():
        if part is None:
            raise TypeError(f"{name} must not be None")
    check_extras(config)
    metrics = Metrics()
    metrics.tell_process()
    spans = spans_of(config)
    disk = claims = None
    store, followers = moderation_store_of(config), followers_of(config)

    async def make_room() -> bool:
        return disk is not None and await disk.make_room()

    blocks = counted_blocks(store, followers, metrics, make_room)
    if cache is ...:
        cache = disk = counted_disk_cache(config, metrics, store)
        claims = Claims(config.cache.path / "flights.lock")
    pool = None
    if processor is ...:
        processor = pool = processing_pool_of(config, metrics)
    networks = networks or guarded_networks(config)
    gateway = Gateway(config, *networks)
    metrics.gauge("fetch_queue_depth", lambda: gateway.statistics().waiting)
    policy = policy_of(config, networks, lambda: moderator, metrics)
    cdn = counted_cdn_sender(config, networks[1], metrics)
    permission = Permission(blocks, policy, on_refused=metrics.blocked.inc)
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
    failure: Exception | None = None

    # Stops last: the writer, once it has written what it was given, and who follows what is
    # blocked, for it must not write that. Then the cache is closed.
    async with AsyncExitStack() as closed, trio.open_nursery() as outlasting:
        if disk is not None and claims is not None:
            closed.callback(claims.close)
            closed.push_async_callback(disk.aclose)
        closed.push_async_callback(cdn.aclose)
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
                    await nursery.start(disk.keep_measured)
                nursery.start_soon(upkeep.keep_cleaning, config.cache.cleanup_interval_minutes * 60)
                dids = DidResolver(config, gateway, nursery, on_directory=metrics.asked_directory)
                if resolver is ...:
                    resolver = dids
                pds = PdsFetcher(config, gateway, spans.outgoing)
                if fetcher is ...:
                    fetcher = pds
                service = Service(
                    config,
                    blocks=blocks,
                    permission=permission,
                    moderator=moderator,
                    cache=cache,
                    memory=memory_cache_of(config),
                    writer=writer,
                    upkeep=upkeep,
                    resolver=resolver,
                    fetcher=fetcher,
                    processor=processor,
                    claims=claims,
                    actors=actors_of(config, gateway, nursery, dids, resolver),
                    metrics=metrics,
                    spans=spans,
                    nursery=nursery,
                )
                await outlasting.start(_follow, following, blocks, service.forget, writer.begun)
                nursery.start_soon(moderator.keep_finishing)
                if disk is not None:
                    revalidate = revalidation_of(config, disk, resolver, pds, moderator, metrics)
                    if revalidate is not None:
                        nursery.start_soon(revalidate)
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
    store, followers = moderation_store_of(config), followers_of(config)
    disk = disk_cache_of(config)
    cdn = cdn_sender_of(config, guarded_networks(config)[1])
    await disk.with_room(followers.enter)
    try:
        yield Moderator(
            store,
            followers,
            remove=disk.purge,
            invalidate=invalidation(config, cdn, disk),
            make_room=disk.make_room,
        )
    finally:
        # Its unfinished purges, if any, are now for others to finish.
        followers.leave()
        store.close()
        await cdn.aclose()
        await disk.aclose()


async def _is_cached(disk: DiskCache, did: Did) -> bool:
    return await disk.has(Selection(did=did))


def _write_failed(metrics: Metrics, upkeep: Upkeep, error: Exception) -> None:
    metrics.write_errors.inc()
    if isinstance(error, OSError):
        upkeep.failed(error)

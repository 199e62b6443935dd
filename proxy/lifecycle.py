"""One function opens the nurseries, and everything that runs is named there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import EllipsisType

import trio

from proxy.accounts.blob_fetcher import Fetcher, PdsFetcher
from proxy.accounts.did_documents import DidResolver, Resolver
from proxy.cache.disk import DiskCache
from proxy.cache.interface import Cache
from proxy.cache.janitor import keep_cleaning
from proxy.cache.writer import CacheWriter
from proxy.config import Config
from proxy.egress.gateway import guarded_networks
from proxy.egress.network import Network
from proxy.extras import check_extras
from proxy.imaging.workers.pool import Processor
from proxy.model.identifiers import Did
from proxy.model.selection import Covering, Selection
from proxy.moderation.blocks import Blocks
from proxy.moderation.feeds.run import run_feeds
from proxy.moderation.moderator import Moderator
from proxy.observability.spans import Spans
from proxy.service import Service
from proxy.wiring import Assembly, assemble
from proxy.wiring_parts import (
    actors_of,
    cdn_sender_of,
    disk_cache_of,
    invalidation,
    memory_cache_of,
    moderation_store_of,
    replicas_of,
    revalidation_of,
)

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
    given = {"cache": cache, "fetcher": fetcher, "processor": processor, "resolver": resolver}
    for name, part in given.items():
        if part is None:
            raise TypeError(f"{name} must not be None")
    check_extras(config)
    made = assemble(config, cache=cache, processor=processor, networks=networks)
    failure: Exception | None = None

    # Stops last: the writer, once it has written what it was given, and who follows what is
    # blocked, for it must not write that. Then the cache is closed.
    async with AsyncExitStack() as closed, trio.open_nursery() as outlasting:
        if made.disk is not None and made.build_locks is not None:
            closed.callback(made.build_locks.close)
            closed.push_async_callback(made.disk.aclose)
        closed.push_async_callback(made.cdn.aclose)
        writing, following = trio.CancelScope(shield=True), trio.CancelScope(shield=True)
        outlasting.start_soon(_write, writing, made.writer, following, made.spans)
        exporting = trio.CancelScope(shield=True)
        outlasting.start_soon(_within, exporting, made.spans.run)
        try:
            # Stops first, all at once: whatever makes results.
            async with trio.open_nursery() as nursery:
                if made.pool is not None:
                    await nursery.start(made.pool.run)
                if made.policy is not None:
                    await nursery.start(made.policy.run)
                nursery.start_soon(made.gateway.run)
                nursery.start_soon(made.cdn.run)
                nursery.start_soon(made.cache_health.keep_checking)
                every = config.cache.cleanup_interval_minutes * 60
                nursery.start_soon(keep_cleaning, made.cache, made.cache_health, every)
                service, chores = _service_of(config, made, nursery, resolver, fetcher)
                await outlasting.start(
                    _follow, following, made.blocks, service.forget, made.writer.begun
                )
                nursery.start_soon(made.moderator.keep_finishing)
                if made.disk is not None:
                    nursery.start_soon(made.disk.keep_indexed)
                    await nursery.start(made.disk.keep_measured)
                for chore in chores:
                    nursery.start_soon(chore)
                await made.cache_health.check()
                try:
                    yield service
                except Exception as error:
                    # Raised below, outside the nurseries, which would wrap it in groups.
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            made.writer.close()
            writing.deadline = trio.current_time() + config.server.shutdown_timeout
            exporting.deadline = writing.deadline + LAST_EXPORT_SECONDS
    if failure is not None:
        raise failure


def _service_of(
    config: Config,
    made: Assembly,
    nursery: trio.Nursery,
    resolver: Resolver | EllipsisType,
    fetcher: Fetcher | EllipsisType,
) -> tuple[Service, list[Callable[[], Awaitable[None]]]]:
    """The service, whose flights ``nursery`` owns, and what is to run beside it there."""
    dids = DidResolver(config, made.gateway, nursery, on_directory=made.metrics.asked_directory)
    pds = PdsFetcher(config, made.gateway, made.spans.outgoing)
    resolver = dids if resolver is ... else resolver
    service = Service(
        config,
        blocks=made.blocks,
        gate=made.gate,
        moderator=made.moderator,
        cache=made.cache,
        memory=memory_cache_of(config),
        writer=made.writer,
        cache_health=made.cache_health,
        resolver=resolver,
        fetcher=pds if fetcher is ... else fetcher,
        processor=made.processor,
        build_locks=made.build_locks,
        actors=actors_of(config, made.gateway, nursery, dids, resolver),
        metrics=made.metrics,
        spans=made.spans,
        nursery=nursery,
    )
    if made.disk is None:
        return service, []
    feeds = partial(
        run_feeds,
        config,
        decisions=made.moderator,
        cursors=made.moderator,
        is_cached=partial(_is_cached, made.disk),
        resolver=dids,
        gateway=made.gateway,
        networks=made.networks,
        metrics=made.metrics,
    )
    revalidate = revalidation_of(config, made.disk, resolver, pds, made.moderator, made.metrics)
    return service, [feeds] if revalidate is None else [feeds, revalidate]


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
    store, replicas = moderation_store_of(config), replicas_of(config)
    disk = disk_cache_of(config)
    cdn = cdn_sender_of(config, guarded_networks(config.fetch)[1])
    await disk.with_room(replicas.enter)
    try:
        yield Moderator(
            store,
            replicas,
            remove=disk.purge,
            invalidate=invalidation(config, cdn, disk),
            make_room=disk.make_room,
        )
    finally:
        # Its unfinished purges, if any, are now for others to finish.
        replicas.leave()
        store.close()
        await cdn.aclose()
        await disk.aclose()


async def _is_cached(disk: DiskCache, did: Did) -> bool:
    return await disk.has(Selection(did=did))

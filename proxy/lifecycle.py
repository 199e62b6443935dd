"""Task ownership and the order of shutdown: one function opens the nurseries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import EllipsisType

import trio

from proxy.accounts.blob_fetcher import Fetcher
from proxy.accounts.did_documents import Resolver
from proxy.cache.interface import Cache
from proxy.config import Config
from proxy.egress.gateway import fetch_channels_of, guarded_networks
from proxy.egress.network import Network
from proxy.extras import check_extras
from proxy.imaging.workers.pool import Processor
from proxy.model.keys import BlobKey, ImageKey
from proxy.moderation.moderator import Moderator
from proxy.observability.metrics import Metrics
from proxy.service import FetchedBlob, MadeImage, Service
from proxy.shared.single_flight import SingleFlight
from proxy.shared.supervision import outlasting, run_each, supervise
from proxy.wiring import (
    accounts_of,
    cache_writer_of,
    cdn_sender_of,
    chores_of,
    coordination_of,
    disk_cache_of,
    invalidation,
    moderation_store_of,
    moderator_of,
    parts_of,
    processing_pool_of,
    purge_taken_down,
    service_of,
)

LAST_EXPORT_SECONDS = 2.0
"""Seconds to export the remaining spans after everything else has stopped."""


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
    """Run a service inside an ``async with`` block.

    When the block ends or is cancelled, fetches and transforms stop, and requests that still wait
    get ``Busy``. Finished results are then written for at most ``server.shutdown_timeout``
    seconds. While blocks cannot be read, every request ends in ``ModerationUnreadable``.

    Args:
        cache, fetcher, processor, resolver: implementations of the Protocols of those names;
            omitted ones are built from ``config``.
        networks: the networks for untrusted hosts, and for the directory; None: guarded.

    Raises:
        TypeError: one of the four is None.
        RuntimeError: this is not a Trio task.
        ConfigError: a package that the configuration needs is not installed.
    """
    _check(cache=cache, fetcher=fetcher, processor=processor, resolver=resolver)
    check_extras(config)
    metrics = Metrics()
    fetch_channels = fetch_channels_of(config.fetch)
    processing_pool = None
    if processor is ...:
        processor = processing_pool = processing_pool_of(config, metrics)
    parts = parts_of(config, metrics, fetch_channels, cache=cache, networks=networks)
    cache_writer = cache_writer_of(config, parts)
    moderator = moderator_of(config, parts, cache_writer)
    failure: Exception | None = None

    async with (
        # Closes last: the files that everything below uses.
        parts.closed_at_the_end(),
        # Outlives all other tasks, because it exports their spans.
        outlasting(LAST_EXPORT_SECONDS, finish=parts.spans.close) as exporting,
        # Outlives the last write, which must not bring back an entry that is blocked meanwhile.
        outlasting(0) as following,
        # Outlives the requests: their results are still written.
        outlasting(config.server.shutdown_timeout, finish=cache_writer.close) as writing,
    ):
        exporting.start_soon(parts.spans.run, name="span_exporter")
        writing.start_soon(supervise, cache_writer.run, name="cache_writer")
        # Stops first, all together: the tasks that make results.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_channels.run, name="fetch_channels")
            if processing_pool is not None:
                await nursery.start(processing_pool.run, name="processing_pool")
            if parts.policy is not None:
                purge = partial(purge_taken_down, moderator)
                await nursery.start(parts.policy.run, purge, name="policy")
            image_flights: SingleFlight[ImageKey, MadeImage] = SingleFlight(nursery)
            blob_flights: SingleFlight[BlobKey, FetchedBlob] = SingleFlight(nursery)
            accounts = accounts_of(config, parts, nursery, resolver)
            service = service_of(
                config,
                parts,
                accounts,
                image_flights=image_flights,
                blob_flights=blob_flights,
                fetcher=fetcher,
                processor=processor,
                cache_writer=cache_writer,
                moderator=moderator,
            )
            follow = partial(parts.blocks.follow, service.forget, cache_writer.begun)
            await following.start(follow, name="blocks_follower")
            chores = chores_of(config, parts, moderator, accounts)
            nursery.start_soon(run_each, chores, name="chores")
            await parts.cache_health.check()
            try:
                yield service
            except Exception as error:
                # Raised below, outside the nurseries, which would wrap it in exception groups.
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _check(**given: object) -> None:
    if not trio.lowlevel.in_trio_run():
        raise RuntimeError("open_service runs under Trio only; from asyncio ask a server by HTTP")
    for name, part in given.items():
        if part is None:
            raise TypeError(f"{name} must not be None")


@asynccontextmanager
async def open_moderator(config: Config) -> AsyncIterator[Moderator]:
    """Open a moderator without a service, inside an ``async with`` block, as the commands do.

    Raises:
        sqlite3.Error, OSError: the cache folder cannot be used.
    """
    store, replicas = moderation_store_of(config), coordination_of(config).replicas()
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
        # Other processes now finish the unfinished purges, if any.
        replicas.leave()
        store.close()
        await cdn.aclose()
        await disk.aclose()

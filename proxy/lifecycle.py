"""Task ownership and the order of shutdown: one function opens the nurseries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from operator import attrgetter
from types import EllipsisType

import trio

from proxy.accounts.blob_fetcher import Fetcher
from proxy.accounts.did_documents import DidResolver, Resolver
from proxy.accounts.profiles import Profiles
from proxy.cache.interface import Cache
from proxy.config import Config
from proxy.egress.gateway import fetch_channels_of, guarded_networks, standalone_gateway
from proxy.egress.network import Network
from proxy.extras import check_extras
from proxy.imaging.workers.pool import Processor
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.preset_table import PresetTable
from proxy.moderation.configured_store import moderation_store_of
from proxy.moderation.moderator import Moderator
from proxy.observability.metrics import Metrics
from proxy.service import FetchedBlob, MadeImage, Service
from proxy.shared.current import Current
from proxy.shared.single_flight import SingleFlight
from proxy.shared.supervision import outlasting, run_each, supervise
from proxy.wiring import (
    accounts_of,
    cache_writer_of,
    cdn_sender_of,
    chores_of,
    coordination_of,
    decision_patience,
    disk_cache_of,
    invalidation,
    keep_joined,
    moderator_of,
    object_store_of,
    parts_of,
    processing_pool_of,
    profiles_of,
    purge_taken_down,
    service_of,
)

LAST_EXPORT_SECONDS = 2.0
"""Seconds to export the remaining spans after everything else has stopped."""

SHARE_SECONDS = 2.0
"""Seconds for the results that wait for the shared store when everything else has stopped."""


@asynccontextmanager
async def open_service(
    config: Config,
    *,
    cache: Cache | EllipsisType = ...,
    fetcher: Fetcher | EllipsisType = ...,
    processor: Processor | EllipsisType = ...,
    resolver: Resolver | EllipsisType = ...,
    networks: tuple[Network, Network] | None = None,
    presets: Current[PresetTable] | None = None,
) -> AsyncIterator[Service]:
    """Run a service inside an ``async with`` block.

    When the block ends or is cancelled, fetches and transforms stop, and requests that still wait
    get ``Busy``. Finished results are then written for at most ``server.shutdown_timeout``
    seconds. While blocks cannot be read, every request ends in ``ModerationUnreadable``.

    Args:
        cache, fetcher, processor, resolver: implementations of the Protocols of those names;
            omitted ones are built from ``config``.
        networks: the networks for untrusted hosts, and for the directory; None: guarded.
        presets: those of ``config``, which the caller may replace while the service runs; None:
            they stay.

    Raises:
        TypeError: one of the four is None.
        RuntimeError: this is not a Trio task.
        ConfigError: a package that the configuration needs is not installed.
    """
    _check(cache=cache, fetcher=fetcher, processor=processor, resolver=resolver)
    check_extras(config)
    presets = presets or Current(config.preset_table)
    metrics = Metrics()
    fetch_channels = fetch_channels_of(config.fetch)
    processing_pool = None
    if processor is ...:
        processor = processing_pool = processing_pool_of(config, metrics)
    parts = parts_of(config, presets, metrics, fetch_channels, cache=cache, networks=networks)
    cache_writer = cache_writer_of(config, parts)
    moderator = moderator_of(config, parts, cache_writer)
    failure: Exception | None = None

    def close_shared() -> None:
        if parts.shared is not None:
            parts.shared.writer.close()

    async def begun() -> None:
        await cache_writer.begun()
        if parts.shared is not None:
            await parts.shared.writer.begun()

    async with (
        # Closes last: the files that everything below uses.
        parts.closed_at_the_end(),
        # Outlives all other tasks, because it exports their spans.
        outlasting(LAST_EXPORT_SECONDS, finish=parts.spans.close) as exporting,
        # Outlives the last write, which must not bring back an entry that is blocked meanwhile.
        outlasting(0) as following,
        # Outlives the writer of the disk, which hands results on.
        outlasting(SHARE_SECONDS, finish=close_shared) as sharing,
        # Outlives the requests: their results are still written.
        outlasting(config.server.shutdown_timeout, finish=cache_writer.close) as writing,
    ):
        exporting.start_soon(parts.spans.run, name="span_exporter")
        if parts.shared is not None:
            sharing.start_soon(supervise, parts.shared.writer.run, name="store_writer")
        writing.start_soon(supervise, cache_writer.run, name="cache_writer")
        # Stops first, all together: the tasks that make results.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_channels.run, name="fetch_channels")
            if processing_pool is not None:
                await nursery.start(processing_pool.run, name="processing_pool")
            if parts.policy is not None:
                purge = partial(purge_taken_down, moderator)
                await nursery.start(parts.policy.run, purge, name="policy")
            image_flights: SingleFlight[ImageKey, MadeImage] = SingleFlight(
                nursery, attrgetter("blob.tags")
            )
            blob_flights: SingleFlight[BlobKey, FetchedBlob] = SingleFlight(
                nursery, attrgetter("tags")
            )
            accounts = accounts_of(config, parts, nursery, resolver)
            service = service_of(
                config,
                presets,
                parts,
                accounts,
                image_flights=image_flights,
                blob_flights=blob_flights,
                fetcher=fetcher,
                processor=processor,
                poster_maker=processing_pool,
                cache_writer=cache_writer,
                moderator=moderator,
            )
            if parts.keep_lease is not None:
                following.start_soon(parts.keep_lease, name="lease_keeper")
            follow = partial(parts.blocks.follow, service.forget, begun)
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
    cdn = cdn_sender_of(config, Current(config.preset_table), guarded_networks(config.fetch)[1])
    await disk.with_room(replicas.enter)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_joined, config, replicas)
            try:
                yield Moderator(
                    store,
                    replicas,
                    remove=disk.purge,
                    shared=object_store_of(config),
                    invalidate=invalidation(config, cdn, disk),
                    make_room=disk.make_room,
                    patience=decision_patience(config),
                    removes_everywhere=bool(config.cluster.url),
                )
            except Exception as error:
                # Raised below, outside the nursery, which would wrap it in an exception group.
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        # Other processes now finish the unfinished purges, if any.
        replicas.leave()
        store.close()
        await cdn.aclose()
        await disk.aclose()


@asynccontextmanager
async def open_accounts(
    config: Config, networks: tuple[Network, Network] | None = None
) -> AsyncIterator[Profiles]:
    """Find accounts without a service, inside an ``async with`` block, as the commands do.

    Questions that are under way when the block ends are given up.

    Args:
        networks: see ``open_service``.
    """
    gateway = standalone_gateway(config.fetch, *(networks or guarded_networks(config.fetch)))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run, name="gateway")
        documents = DidResolver(config, gateway, nursery)
        try:
            yield profiles_of(config, gateway, nursery, documents, documents)
        except Exception as error:
            # Raised below, outside the nursery, which would wrap it in an exception group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure

"""All feeds that are configured, in one task that says when they end."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from proxy.accounts.did_documents import DidResolver
from proxy.config import Config
from proxy.coordination.interface import Leadership
from proxy.coordination.leader import as_leader
from proxy.egress.endpoint import Origin
from proxy.egress.gateway import Gateway
from proxy.egress.network import Network
from proxy.model.identifiers import Did
from proxy.moderation.feeds.label_enforcer import LabelEnforcer
from proxy.moderation.feeds.label_records import RecordReader
from proxy.moderation.feeds.label_store import FeedStore
from proxy.moderation.interface import Cursors, Decisions
from proxy.observability.metrics import Metrics

FORGET_SECONDS = 1.0
"""How soon a process notices that the document of a DID has changed."""

RESTART_SECONDS = 5.0
"""Pause after the disk failed, or a defect."""

log = structlog.get_logger(__name__)


async def run_feeds(
    config: Config,
    store: FeedStore,
    *,
    decisions: Decisions,
    cursors: Cursors,
    is_cached: Callable[[Did], Awaitable[bool]],
    purge_elsewhere: Callable[[Did], Awaitable[None]],
    resolver: DidResolver,
    gateway: Gateway,
    networks: tuple[Network, Network],
    leadership: Leadership,
    metrics: Metrics,
    clock: Callable[[], float] = time.time,
) -> None:
    """Follow the configured feeds until cancelled; return if there are none.

    Of several processes on one cache folder one follows; another takes over when it ends. Decisions
    that were carried out stay; a message that was under way comes again.

    Args:
        store: keeps what followed labels are about; closed at the end.
        is_cached: whether there are cached results of an owner.
        purge_elsewhere: purges what others may have of an owner of whom nothing is cached here.
        resolver: resolves owners, and forgets the documents that changed.
        networks: the networks for strangers' hosts, and for the operator's own.
        leadership: one process at a time follows.
        clock: seconds since the epoch.
    """
    labels, origin = config.labels, config.accounts.origin
    limiter = trio.CapacityLimiter(1)
    has_labels = bool(labels.subscribe) or await trio.to_thread.run_sync(
        store.exists, limiter=limiter
    )
    if not has_labels and origin is None:
        return
    strangers, own = networks
    enforcer = LabelEnforcer(
        labels,
        store=store,
        decisions=decisions,
        records=RecordReader(config, gateway, resolver),
        metrics=metrics,
        clock=clock,
    )
    metrics.gauge("labels_waiting", lambda: enforcer.waiting)

    async def follow_labeler(did: Did) -> None:
        # Imported late: what it needs is an extra.
        from proxy.moderation.feeds.follower import follow
        from proxy.moderation.feeds.label_feed import LabelerFeed

        settings = f"{labels.scope} {' '.join(sorted(labels.values))}"
        number = await trio.to_thread.run_sync(store.follow, did, settings, limiter=limiter)
        feed = LabelerFeed(
            did,
            f"labels {did} {number}",
            config,
            network=strangers,
            documents=resolver,
            enforcer=enforcer,
            metrics=metrics,
        )
        await follow(feed, cursors, metrics)

    async def follow_accounts(origin: Origin) -> None:
        from proxy.moderation.feeds.account_feed import AccountFeed
        from proxy.moderation.feeds.follower import follow

        feed = AccountFeed(
            config.accounts.kind,
            origin,
            network=own,
            decisions=decisions,
            is_cached=is_cached,
            purge_elsewhere=purge_elsewhere,
            forget=forget,
            metrics=metrics,
        )
        await follow(feed, cursors, metrics)

    async def forget(did: Did) -> None:
        resolver.forget(did)
        await trio.to_thread.run_sync(store.add_forgotten, did, limiter=limiter)

    async def follow_all() -> None:
        async with trio.open_nursery() as one_process:
            if labels.subscribe:
                one_process.start_soon(_steadily, enforcer.run)
            elif has_labels:
                one_process.start_soon(_steadily, enforcer.drop_unwanted)
            for did in dict.fromkeys(labels.subscribe):
                one_process.start_soon(_steadily, partial(follow_labeler, did))
            if origin is not None:
                one_process.start_soon(_steadily, partial(follow_accounts, origin))

    try:
        async with trio.open_nursery() as every_process:
            if origin is not None:
                forgetting = partial(_keep_forgetting, store, resolver, limiter)
                every_process.start_soon(_steadily, forgetting)
            await as_leader(leadership, follow_all)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close, limiter=limiter)


async def _keep_forgetting(
    store: FeedStore, resolver: DidResolver, limiter: trio.CapacityLimiter
) -> None:
    """Forget the documents of which the process that follows says that they changed."""
    last = None
    while True:
        last, dids = await trio.to_thread.run_sync(store.forgotten_since, last, limiter=limiter)
        for did in dids:
            resolver.forget(did)
        await trio.sleep(FORGET_SECONDS)


async def _steadily(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` until it returns; where it fails, run it again after a pause."""
    while True:
        try:
            await work()
        except (sqlite3.Error, OSError) as error:
            log.error("feeds cannot be kept", error=str(error))
        except Exception:
            log.exception("feed crashed; it starts again")
        else:
            return
        await trio.sleep(RESTART_SECONDS)

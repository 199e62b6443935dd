"""Feeds followed from servers in memory, and what they are told by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from proxy.accounts.did_documents import DidResolver
from proxy.config import Config
from proxy.coordination.folder import FolderCoordination
from proxy.egress.gateway import Gateway, standalone_gateway
from proxy.egress.network import Network
from proxy.model.identifiers import Did
from proxy.model.selection import Selection
from proxy.moderation.feeds.run import run_feeds
from proxy.observability.metrics import Metrics
from proxy.wiring import feed_store_of
from tests.fakes.world import World

EPOCH = 1_800_000_000.0
"""What the wall clock shows when Trio's shows 0."""


def wall_clock() -> float:
    """Seconds since the epoch, as the feeds are told."""
    return EPOCH + trio.current_time()


@dataclass
class Told:
    """``Decisions`` and ``Cursors`` in memory; tells what they were told.

    Attributes:
        standing: the blocks that stand, with who asked for them.
        purged: what was purged, without what was blocked.
        purged_elsewhere: owners of whom nothing was cached.
        failures: raised by the next decisions, one each.
    """

    standing: set[tuple[str, Selection]] = field(default_factory=set)
    lifted: list[Selection] = field(default_factory=list)
    purged: list[tuple[Selection, str]] = field(default_factory=list)
    purged_elsewhere: list[Did] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    cursors: dict[str, int] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def blocked(self) -> set[Selection]:
        return {selection for _by, selection in self.standing}

    async def block(self, selection: Selection, *, by: str, reason: str = "") -> int:
        await self._decided()
        self.standing.add((by, selection))
        self.reasons.append(reason)
        return 0

    async def lift(self, selection: Selection, *, by: str, reason: str = "") -> bool:
        await self._decided()
        known = (by, selection) in self.standing
        self.standing.discard((by, selection))
        self.lifted.append(selection)
        return known

    async def purge(self, selection: Selection, *, by: str, reason: str = "") -> int:
        await self._decided()
        self.purged.append((selection, reason))
        return 1

    async def purge_elsewhere(self, did: Did) -> None:
        await self._decided()
        self.purged_elsewhere.append(did)

    def has_purged(self, selection: Selection, reason: str) -> bool:
        return (selection, reason) in self.purged

    async def cursor(self, stream: str) -> int | None:
        await trio.lowlevel.checkpoint()
        return self.cursors.get(stream)

    async def set_cursor(self, stream: str, cursor: int) -> None:
        await trio.lowlevel.checkpoint()
        self.cursors[stream] = cursor
        self._wake()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that a decision or a cursor changes."""
        while not condition():
            await self._changed.wait()

    async def _decided(self) -> None:
        await trio.lowlevel.checkpoint()
        self._wake()
        if self.failures:
            raise self.failures.pop(0)

    def _wake(self) -> None:
        # The tasks that wait look once this step is over.
        self._changed.set()
        self._changed = trio.Event()


@dataclass
class Following:
    """Feeds that are followed."""

    metrics: Metrics
    resolver: DidResolver

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(f"imageproxy_{name}", labels) or 0.0


@asynccontextmanager
async def following(
    world: World,
    told: Told,
    *,
    is_cached: Callable[[Did], bool] = lambda did: True,
    networks: tuple[Network, Network] | None = None,
    is_inner: bool = False,
    **sections: dict[str, Any],
) -> AsyncIterator[Following]:
    """Run the feeds of a configuration for the time of the block.

    Args:
        is_inner: others go on following when the block ends.
    """
    config = world.config(**sections)
    networks = networks or (world.network, world.directory_network)
    async with trio.open_nursery() as nursery:
        gateway = standalone_gateway(config.fetch, *networks)
        nursery.start_soon(gateway.run)
        found = Following(Metrics(), DidResolver(config, gateway, nursery))
        nursery.start_soon(_run, config, told, is_cached, found, gateway, networks)
        yield found
        nursery.cancel_scope.cancel()
    assert is_inner or world.open_wires == 0


async def _run(
    config: Config,
    told: Told,
    is_cached: Callable[[Did], bool],
    found: Following,
    gateway: Gateway,
    networks: tuple[Network, Network],
) -> None:
    async def cached(did: Did) -> bool:
        await trio.lowlevel.checkpoint()
        return is_cached(did)

    await run_feeds(
        config,
        feed_store_of(config),
        decisions=told,
        cursors=told,
        is_cached=cached,
        purge_elsewhere=told.purge_elsewhere,
        resolver=found.resolver,
        gateway=gateway,
        networks=networks,
        leadership=FolderCoordination(config.cache.path).leadership("feeds"),
        metrics=found.metrics,
        clock=wall_clock,
    )

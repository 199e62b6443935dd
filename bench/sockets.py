"""How many sockets a ``Gateway`` keeps open while it GETs from thousands of different hosts."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from bench.pictures import Size
from bench.processes import upstream
from bench.starvation import configuration, network_of_names
from proxy.config import Config
from proxy.egress.endpoint import Origin
from proxy.egress.errors import EgressError
from proxy.egress.gateway import Gateway, fetch_channels_of
from proxy.egress.http_client import MAX_IDLE
from proxy.egress.network import Network

MAX_BYTES = 4096
MAX_SECONDS = 600.0

ASKERS_PER_WORKER = 2
"""GETs at once for each of the gateway's workers, so that none of those is ever idle."""


@dataclass(slots=True)
class Sockets:
    """Sockets of the gateway.

    Attributes:
        bound: how many may be open at once: the idle ones kept, and one for each worker.
        most: how many were.
        left: open when all GETs were answered.
        closed: still open after the gateway was closed.
        seconds: what it all took.
        failed: GETs, by reason.
    """

    bound: int
    most: int = 0
    left: int = 0
    closed: int = 0
    seconds: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def within_bound(self) -> bool:
        """Whether the figure is good."""
        return self.most <= self.bound and self.left <= MAX_IDLE and self.closed == 0


class _Counting:
    """A ``Network`` that notes the most sockets open: their number grows nowhere else."""

    def __init__(self, network: Network, note: Callable[[], None]) -> None:
        self._network = network
        self._note = note

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        stream = await self._network.connect(host, port)
        self._note()
        return stream

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        return await self._network.start_tls(stream, host)


def bound_of(config: Config) -> int:
    """Sockets that a gateway of ``config`` may have open at once."""
    return MAX_IDLE + config.fetch.workers


async def count_sockets(hosts: int, folder: Path, note: Callable[[], None]) -> Sockets:
    """GET once from each of ``hosts`` names, all of them one listener; ``note`` after each."""
    async with upstream(folder, blobs=1, size=Size(16, 16), latency=0) as manifest:
        config = configuration(manifest.port, folder)
        found = Sockets(bound_of(config))
        before = open_sockets()

        def count() -> None:
            found.most = max(found.most, open_sockets() - before)

        gateway = Gateway(
            config.fetch,
            _Counting(network_of_names(), count),
            network_of_names(),
            fetch_channels_of(config.fetch),
        )
        began = trio.current_time()
        with trio.fail_after(MAX_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(gateway.run)
                await _ask_all(gateway, hosts, manifest.port, config, found, note)
                found.left = open_sockets() - before
                nursery.cancel_scope.cancel()
        found.closed = open_sockets() - before
        found.seconds = trio.current_time() - began
    return found


async def _ask_all(
    gateway: Gateway,
    hosts: int,
    port: int,
    config: Config,
    found: Sockets,
    note: Callable[[], None],
) -> None:
    numbers = iter(range(hosts))

    async def ask() -> None:
        for number in numbers:
            origin = Origin("http", f"host{number}.example", port)
            try:
                await gateway.get(origin, "/", max_bytes=MAX_BYTES)
            except EgressError as error:
                found.failed[f"{type(error).__name__}: {error}"] += 1
            note()

    async with trio.open_nursery() as nursery:
        for _ in range(ASKERS_PER_WORKER * config.fetch.workers):
            nursery.start_soon(ask)


def open_sockets() -> int:
    """Sockets that this process has open."""
    count = 0
    # On Linux a link to /proc/self/fd; macOS has it too.
    for name in os.listdir("/dev/fd"):
        try:
            count += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
        except OSError:
            continue  # the listing's own descriptor is closed by now
    return count

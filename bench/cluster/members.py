"""A whole cluster of processes: nodes with relays of their own, PostgreSQL, SeaweedFS, HAProxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from bench.cluster import engines
from bench.cluster.disks import small_disk
from bench.cluster.ground import FRONTS, Node
from bench.cluster.hosts import Cable, Host, open_hosts
from bench.cluster.relay import Relay
from bench.processes import BenchError, Server, started
from bench.upstream import LOOPBACK, Manifest
from proxy.config import Config
from tests.balancers import BALANCERS
from tests.ports import free_port
from tests.postgres import Postgres

TOKEN = "of-the-benchmark"  # noqa: S105
LEASE = 1.0
"""Seconds: the shortest there is, so that outages are longer and shorter than it."""

STORE_TIMEOUT = 0.5

CHANGED_PRESET = {"IMAGE_PROXY_PRESETS__AVATAR_SMALL__QUALITY": "60"}
"""What a second version of the configuration has."""

VERSIONS: tuple[dict[str, str], ...] = ({}, CHANGED_PRESET)

RELEASE = "BENCH_RELEASE"
"""Names the release to ``bench.cluster.release``."""


@dataclass(slots=True)
class Member:
    """A node, and what it reaches the engines by.

    Attributes:
        host: the namespace that it is in, with a small disk of its own, or None.
        version: of its configuration, in ``VERSIONS``.
        release: of the service: steps of the schema more than there are.
    """

    node: Node
    database: Relay
    store: Relay
    host: Host | None = None
    version: int = 0
    release: int = 0

    async def start(self) -> None:
        """Start it with its version and its release, not ready yet."""
        self.node.module = "bench.cluster.release" if self.release else "proxy"
        self.node.environment[RELEASE] = str(self.release)
        for name in CHANGED_PRESET:
            self.node.environment.pop(name, None)
        self.node.environment.update(VERSIONS[self.version])
        await self.node.start()


@dataclass(slots=True)
class Cluster:
    """Everything that runs."""

    members: list[Member]
    postgres: Postgres
    store: engines.SeaweedFs
    front: Server

    async def ready(self) -> None:
        """Wait until every node serves."""
        for member in self.members:
            await member.node.ready()


def node_environment(manifest: Manifest, world: str = LOOPBACK) -> dict[str, str]:
    """What every node of these measurements has.

    Args:
        world: the address at which it reaches the upstream.
    """
    return {
        "IMAGE_PROXY_IDENTITY__PLC_URL": f"http://{world}:{manifest.port}",
        "IMAGE_PROXY_FETCH__ALLOW_HTTP": "true",
        "IMAGE_PROXY_FETCH__ALLOW_PRIVATE_HOSTS": "true",
        "IMAGE_PROXY_PROCESS__QUEUE_WAIT": "60",
        "IMAGE_PROXY_SERVER__ADMIN_TOKEN": TOKEN,
        # Workers would make a start last longer than the fault.
        "IMAGE_PROXY_PROCESS__ISOLATION": "thread",
    }


def cluster_environment(
    database: str, store_port: int, store_host: str = LOOPBACK
) -> dict[str, str]:
    """What makes a node one of a cluster."""
    return {
        "IMAGE_PROXY_CLUSTER__DATABASE": database,
        "IMAGE_PROXY_CLUSTER__LEASE": repr(LEASE),
        **engines.store_environment(store_port, store_host),
        "IMAGE_PROXY_STORE__TIMEOUT": repr(STORE_TIMEOUT),
    }


@asynccontextmanager
async def open_cluster(
    folder: Path,
    manifest: Manifest,
    count: int,
    extra: dict[str, str],
    world: str | None = None,
) -> AsyncIterator[Cluster]:
    """A cluster whose nodes are ready, for the time of the block.

    Args:
        extra: what its nodes' environments have besides.
        world: the address of ``open_world``, for nodes in namespaces and with small disks; None:
            they are processes of this host.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(engines.postgres())
        store = engines.SeaweedFs(folder)
        stack.push_async_callback(store.close)
        await store.start()
        await store.ready()
        hosts: list[Host] = []
        if world is not None:
            hosts = await stack.enter_async_context(open_hosts(world, count))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        members = []
        for number in range(count):
            host = hosts[number] if hosts else None
            member = _member(folder, number, server.port, store.port, host)
            members.append(member)
            node, relays = member.node, [member.database, member.store]
            if host is not None:
                await stack.enter_async_context(small_disk(node.cache))
                relays.append(Relay(node.port, behind=node.host, port=node.port))
            for relay in relays:
                await nursery.start(relay.run)
            node.environment |= {
                **node_environment(manifest, world or LOOPBACK),
                **cluster_environment(
                    server.url("cluster", port=member.database.port, host=member.database.host),
                    member.store.port,
                    member.store.host,
                ),
                **extra,
            }
            stack.push_async_callback(node.close)
        for member in members:
            await member.start()
        for member in members:
            await member.node.ready()
        if not FRONTS["haproxy"].is_here:
            raise BenchError("no haproxy here; on Debian: apt install haproxy")
        port = free_port()
        addresses = [member.node.address for member in members]
        command = BALANCERS["haproxy"](folder, port, Config(), addresses)
        log = folder / "haproxy.log"
        process = await stack.enter_async_context(started(command, log=log))
        front = Server(process, port, log)
        await front.ready()
        yield Cluster(members, server, store, front)


def _member(
    folder: Path, number: int, postgres_port: int, store_port: int, host: Host | None
) -> Member:
    node = Node(f"node{number}", folder, {})
    at_database = at_store = LOOPBACK
    if host is not None:
        node.host, node.prefix = host.there(Cable.WORLD), host.prefix
        at_database, at_store = host.here(Cable.DATABASE), host.here(Cable.STORE)
    return Member(
        node, Relay(postgres_port, host=at_database), Relay(store_port, host=at_store), host
    )

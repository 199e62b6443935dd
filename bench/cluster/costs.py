"""What a cluster costs: a decision, a hit, and a result that another node has made."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from bench.client import Connection, get
from bench.cluster import engines
from bench.cluster.faults import decide
from bench.cluster.ground import Node, Plan
from bench.cluster.members import cluster_environment, node_environment, open_cluster
from bench.instructions import counted_service, counting, tools, total
from bench.processes import BenchError, Server, metrics, until, upstream
from bench.upstream import Manifest, account
from proxy.config import ClusterSection

LEASE = float(ClusterSection.model_fields["lease"].default)
OWN_LEASE = {"IMAGE_PROXY_CLUSTER__LEASE": repr(LEASE)}
PRESET = "avatar_small"

HOT = 8
"""Pictures, and hits of a batch: so few that most batches have no renewal of the lease in them."""

COUNTED_LEASE = "60"
"""Seconds: callgrind makes everything fifty times as slow, but not the clock."""

SETTLE_SECONDS, IDLE_SECONDS = 5.0, 20.0


@dataclass(slots=True)
class Decisions:
    """Seconds of each block, from the call to its answer.

    Attributes:
        healthy: with every node there.
        dead: each right after a node was killed, whose lease still runs.
    """

    healthy: list[float] = field(default_factory=list)
    dead: list[float] = field(default_factory=list)


async def decisions(folder: Path, plan: Plan) -> Decisions:
    """Block pictures that every node has, one at a time."""
    found = Decisions()
    count = plan.decisions + plan.deaths
    async with (
        upstream(folder, blobs=count, size=plan.size, latency=0) as manifest,
        open_cluster(folder, manifest, plan.nodes, OWN_LEASE) as cluster,
    ):
        ports = [member.node.port for member in cluster.members]
        for number in range(plan.decisions):
            await _warm(manifest, ports, number)
            found.healthy.append(await _block(manifest, ports[number % len(ports)], number))
        dying = cluster.members[-1]
        for number in range(plan.decisions, count):
            await _warm(manifest, ports, number)
            await dying.node.kill()
            found.dead.append(await _block(manifest, ports[0], number))
            await dying.start()
            await dying.node.ready()
    return found


async def _warm(manifest: Manifest, ports: list[int], number: int) -> None:
    for port in ports:
        answer = await get(port, _path(manifest, number))
        if answer.status != 200:
            raise BenchError(f"picture {number}: {answer.status}")


async def _block(manifest: Manifest, port: int, number: int) -> float:
    began = trio.current_time()
    selected = (account(number), manifest.cids[number])
    answer = await decide(port, selected, "bench", blocks=True)
    if answer.status != 200:
        raise BenchError(f"a block: {answer.status} {answer.body!r}")
    return trio.current_time() - began


def _path(manifest: Manifest, number: int) -> str:
    return f"/img/{PRESET}/plain/{account(number)}/{manifest.cids[number]}"


@asynccontextmanager
async def _alone(folder: Path, name: str, environment: dict[str, str]) -> AsyncIterator[Node]:
    node = Node(name, folder, environment)
    try:
        await node.start()
        await node.ready()
        yield node
    finally:
        with trio.CancelScope(shield=True):
            await node.close()


@dataclass(slots=True)
class Hits:
    """A hit from memory, with the cluster off and on, and what runs beside it for that time.

    Attributes:
        off, on: instructions of a hit, a value for each batch.
        idle_off, idle_on: CPU seconds a second of a node that nobody asks.
    """

    off: list[float] = field(default_factory=list)
    on: list[float] = field(default_factory=list)
    idle_off: float = 0.0
    idle_on: float = 0.0

    @property
    def ratio(self) -> float:
        """On against off. The least of each counts: chores and the lease only add."""
        return min(self.on) / min(self.off)

    @property
    def ratios(self) -> list[float]:
        """On against off, batch by batch."""
        return [on / off for on, off in zip(self.on, self.off, strict=True)]


async def hits(folder: Path, plan: Plan) -> Hits:
    """Count the instructions of hits of a node of a cluster, and of one without, in turn."""
    found = Hits()
    async with (
        upstream(folder, blobs=HOT, size=plan.size, latency=0) as manifest,
        engines.postgres() as database,
    ):
        on = {
            "IMAGE_PROXY_CLUSTER__DATABASE": database.url("cluster"),
            "IMAGE_PROXY_CLUSTER__LEASE": COUNTED_LEASE,
        }
        await _count_hits(folder, manifest, plan.rounds, on, found)
        found.idle_off, found.idle_on = await _idle(folder, manifest, on | OWN_LEASE)
    return found


async def _count_hits(
    folder: Path, manifest: Manifest, rounds: int, on: dict[str, str], found: Hits
) -> None:
    paths = [_path(manifest, number) for number in range(HOT)]
    with_tools = tools(folder)
    async with AsyncExitStack() as stack:
        counted: list[tuple[Server, Path, Connection]] = []
        for name, extra in (("off", {}), ("on", on)):
            own = folder / name
            await trio.Path(own).mkdir()
            service = counted_service(with_tools, own, manifest.port, extra)
            server, dumps = await stack.enter_async_context(service)
            connection = Connection(server.port)
            stack.callback(connection.close)
            counted.append((server, dumps, connection))
            for path in [*paths, *paths]:
                await _ask(connection, path)
        for number in range(rounds):
            for server, _, connection in counted[:: -1 if number % 2 else 1]:
                async with counting(server):
                    for path in paths:
                        await _ask(connection, path)
        for (_, dumps, _), into in zip(counted, (found.off, found.on), strict=True):
            into += [total(dumps, number + 1) / len(paths) for number in range(rounds)]


async def _idle(folder: Path, manifest: Manifest, on: dict[str, str]) -> tuple[float, float]:
    plain = node_environment(manifest)
    async with (
        _alone(folder, "idle-off", plain) as alone,
        _alone(folder, "idle-on", plain | on) as member,
    ):
        await trio.sleep(SETTLE_SECONDS)
        before = alone.cpu(), member.cpu()
        await trio.sleep(IDLE_SECONDS)
        off, more = (
            (node.cpu() - cpu) / IDLE_SECONDS
            for node, cpu in zip((alone, member), before, strict=True)
        )
    return off, more


async def _ask(connection: Connection, path: str) -> None:
    answer = await connection.get(path)
    if answer.status != 200:
        raise BenchError(f"{path}: {answer.status}")


@dataclass(slots=True)
class Shared:
    """A result from the store against making it again.

    Attributes:
        taken, made: seconds until the answer, of each picture.
        taken_cpu, made_cpu: CPU seconds of a node for one, in the mean.
    """

    taken: list[float] = field(default_factory=list)
    made: list[float] = field(default_factory=list)
    taken_cpu: float = 0.0
    made_cpu: float = 0.0


async def shared(folder: Path, plan: Plan) -> Shared:
    """Have one node make results, then ask one that has the store, and one that has none."""
    found = Shared()
    count = plan.pictures
    async with (
        upstream(folder, blobs=count, size=plan.size, latency=plan.near) as manifest,
        open_cluster(folder, manifest, 1, OWN_LEASE) as cluster,
    ):
        first = cluster.members[0]
        sandboxed = {"IMAGE_PROXY_PROCESS__ISOLATION": "sandbox"}
        plain = node_environment(manifest) | sandboxed
        url = cluster.postgres.url("cluster")
        in_cluster = plain | cluster_environment(url, cluster.store.port) | OWN_LEASE
        in_cluster["IMAGE_PROXY_STORE__TIMEOUT"] = "4"  # of this busy machine
        for number in range(count):
            await get(first.node.port, _path(manifest, number))

        async def has_all() -> bool:
            return await _store_requests(first.node, "put", "ok") >= count

        await until(has_all, "the store to have every result")
        async with (
            _alone(folder, "taker", in_cluster) as taker,
            _alone(folder, "maker", plain) as maker,
        ):
            taker_cpu, maker_cpu = taker.cpu(), maker.cpu()
            for number in range(count):
                for node, seconds in ((taker, found.taken), (maker, found.made)):
                    began = trio.current_time()
                    await get(node.port, _path(manifest, number))
                    seconds.append(trio.current_time() - began)
            found.taken_cpu = (taker.cpu() - taker_cpu) / count
            found.made_cpu = (maker.cpu() - maker_cpu) / count
            if (taken := await _store_requests(taker, "get", "hit")) != count:
                raise BenchError(f"{taken:.0f} of {count} results were taken from the store")
    return found


async def _store_requests(node: Node, operation: str, outcome: str) -> float:
    series = await metrics(node.port, "imageproxy_store_requests_total")
    return sum(
        value
        for labels, value in series.items()
        if f'operation="{operation}"' in labels and f'outcome="{outcome}"' in labels
    )


def ratio(values: list[float], others: list[float]) -> float:
    """That of the medians."""
    return statistics.median(values) / statistics.median(others)

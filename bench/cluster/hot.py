"""A hot picture: one URL under wrk, and the share of each node."""

from __future__ import annotations

from dataclasses import dataclass

from bench.client import get
from bench.cluster.ground import Ground
from bench.wrk import load

FRONTS = ("haproxy, no help", "haproxy", "nginx, no help", "nginx")

CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Hot:
    """What one hot picture did.

    Attributes:
        shares: of the answers, by node, the largest first.
        cpu: CPU seconds a second, by node, in the same order.
        fetches: getBlob calls for it.
        p99: seconds.
        failed: requests.
    """

    front: str
    shares: list[float]
    cpu: list[float]
    fetches: int
    rate: float
    p99: float
    failed: int


async def hot(ground: Ground, front: str, number: int) -> Hot:
    """Load the balancer with one picture, made before."""
    path = ground.picture(number)[0]
    seconds = ground.plan.hot_seconds
    async with ground.front(front) as server:
        await get(server.port, path)
        before = [(await node.answered(), node.cpu()) for node in ground.nodes]
        found = await load(server.port, [path], connections=CONNECTIONS, seconds=seconds)
        after = [(await node.answered(), node.cpu()) for node in ground.nodes]
    used = sorted(
        (
            (answers - answers_before, (cpu - cpu_before) / seconds)
            for (answers_before, cpu_before), (answers, cpu) in zip(before, after, strict=True)
        ),
        reverse=True,
    )
    total = sum(answers for answers, _ in used) or 1
    return Hot(
        front,
        [answers / total for answers, _ in used],
        [cpu for _, cpu in used],
        await ground.fetches([number]),
        found.rate,
        found.p99,
        found.failed.total(),
    )

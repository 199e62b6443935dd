"""How new pictures a second grow with nodes, each with one core: real ones, and simulated ones.

The machine has too few cores for many nodes, and is shared. So real nodes are judged by the CPU
time that the busiest of them took, and the simulation is given what a picture costs one node. What
it says of as many nodes as were real is compared with them.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from bench.cluster.ground import Plan, open_ground

REAL = (1, 2)
SIMULATED = (1, 2, 4)

FRONT = "haproxy"

TRIALS = 200
"""Simulated draws of which picture is whose."""

AT_ONCE = 16
"""Pictures at once for each node, in the simulation of a steady load."""

STEADY_PICTURES = 4000
"""Of that load, for each node."""


@dataclass(frozen=True, slots=True)
class Real:
    """A pass over new pictures.

    Attributes:
        cpu: seconds of each node.
        fetches: getBlob calls per picture.
    """

    pictures: int
    cpu: list[float]
    fetches: float

    @property
    def rate(self) -> float:
        """Pictures a second if each node had a core to itself: the busiest is done last."""
        return self.pictures / max(self.cpu)

    @property
    def cost(self) -> float:
        """CPU seconds of a picture."""
        return sum(self.cpu) / self.pictures


async def measure(folder: Path, plan: Plan, nodes: int) -> Real:
    """Ask for every preset of new pictures at ``nodes`` nodes behind a balancer."""
    pictures = range(plan.pictures)
    async with (
        open_ground(folder, replace(plan, nodes=nodes), len(pictures)) as ground,
        ground.front(FRONT) as server,
    ):
        before = [node.cpu() for node in ground.nodes]
        await ground.pass_over(server.port, pictures, 1)
        cpu = [node.cpu() - used for node, used in zip(ground.nodes, before, strict=True)]
        return Real(len(pictures), cpu, await ground.fetches(pictures) / len(pictures))


def batch_rates(nodes: int, pictures: int, cost: float) -> list[float]:
    """What ``Real.rate`` is for ``TRIALS`` draws of whose each picture is. Pure.

    Args:
        cost: CPU seconds of a picture.
    """
    rates = []
    for trial in range(TRIALS):
        own = random.Random(trial)
        shares = [0] * nodes
        for _ in range(pictures):
            shares[own.randrange(nodes)] += 1
        rates.append(pictures / (max(shares) * cost))
    return rates


def steady_rate(nodes: int, cost: float, latency: float, at_once: int = AT_ONCE) -> float:
    """Pictures a second under a steady load of ``at_once * nodes`` pictures. Pure.

    A picture waits for its PDS, then for the core of its node, in order of arrival; when it is done
    another one begins, of any node.

    Args:
        cost: CPU seconds of a picture.
        latency: seconds for which it waits for others.
    """
    own = random.Random(nodes)
    free_at = [0.0] * nodes
    total = STEADY_PICTURES * nodes
    order = itertools.count()
    # When a picture has come from its PDS, and whose it is.
    fetched = [(latency, next(order), own.randrange(nodes)) for _ in range(at_once * nodes)]
    ended: list[float] = []
    while len(ended) < total:
        now, _, node = heapq.heappop(fetched)
        free_at[node] = max(free_at[node], now) + cost
        ended.append(free_at[node])
        heapq.heappush(fetched, (free_at[node] + latency, next(order), own.randrange(nodes)))
    # The first tenth fills the queues.
    ended.sort()
    first = total // 10
    return (total - first) / (ended[-1] - ended[first])


@dataclass(frozen=True, slots=True)
class Scaling:
    """Real and simulated nodes.

    Attributes:
        real: by the number of nodes.
        batch: simulated ``Real.rate``, median, by the number of nodes.
        steady: simulated, by the number of nodes.
    """

    real: dict[int, Real]
    batch: dict[int, float]
    steady: dict[int, float]


async def scaling(folder: Path, plan: Plan) -> Scaling:
    """Measure ``REAL`` nodes, and simulate ``SIMULATED`` ones with what a picture costs one."""
    real = {}
    for nodes in REAL:
        own = folder / str(nodes)
        await trio.Path(own).mkdir()
        real[nodes] = await measure(own, plan, nodes)
    cost = real[1].cost
    # The directory and the PDS answer one after the other.
    latency = 2 * plan.latency
    return Scaling(
        real,
        {n: statistics.median(batch_rates(n, plan.pictures, cost)) for n in SIMULATED},
        {n: steady_rate(n, cost, latency) for n in SIMULATED},
    )

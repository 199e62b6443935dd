"""A node is killed under load, and comes back: what fails, and what is fetched again."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import trio

from bench.cluster.ground import Ground, Node, Passed

FRONTS = ("haproxy", "nginx")

RETURN_SECONDS = 35.0
"""From the return of a node until it has its whole share again: HAProxy's slow start, and more."""

LOSS_PASSES = 2


@dataclass(frozen=True, slots=True)
class Loss:
    """What a loss and a return cost, per picture.

    Attributes:
        before: getBlob calls until all is warm.
        by_loss: more of them while the node was away.
        by_return: more of them after it was back.
        hits_before, hits_during, hits_after: share of answers from a cache.
        answers: while the node was killed, away, and coming back.
        failed: requests of them, by reason.
    """

    front: str
    before: float
    by_loss: float
    by_return: float
    hits_before: float
    hits_during: float
    hits_after: float
    answers: int
    failed: Counter[str]


async def loss(ground: Ground, front: str, pictures: range) -> Loss:
    """Warm the nodes, kill one under load, start it again."""
    count = len(pictures)
    seeds = itertools.count(1)

    async with ground.front(front) as server:

        async def run_over() -> Passed:
            return await ground.pass_over(server.port, pictures, next(seeds))

        await run_over()
        before = await ground.fetches(pictures)
        warm = await run_over()
        during: list[Passed] = []
        lost = ground.nodes[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_killed_soon, lost)
            during.append(await run_over())
        during += [await run_over() for _ in range(LOSS_PASSES - 1)]
        away = await ground.fetches(pictures)
        await lost.start()
        after: list[Passed] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost.ready)
            after.append(await run_over())
        end = trio.current_time() + RETURN_SECONDS
        while trio.current_time() < end:
            after.append(await run_over())
        back = await ground.fetches(pictures)
    failed = sum((each.failed for each in (warm, *during, *after)), Counter[str]())
    return Loss(
        front,
        before / count,
        (away - before) / count,
        (back - away) / count,
        _hits([warm]),
        _hits(during),
        _hits(after),
        sum(each.states.total() for each in (*during, *after)),
        failed,
    )


async def _killed_soon(node: Node) -> None:
    await trio.sleep(0.3)
    await node.kill()


def _hits(results: list[Passed]) -> float:
    answers = sum(result.states.total() for result in results)
    return sum(result.states["hit"] for result in results) / answers if answers else 0.0

"""In steady state: how often a PDS is asked for a picture whose presets are asked at one time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bench.cluster.ground import Ground

FRONTS = ("haproxy", "nginx", "haproxy, bounded load for all")


@dataclass(frozen=True, slots=True)
class Steady:
    """What a pass over new pictures took.

    Attributes:
        fetches: getBlob calls per picture.
        again: getBlob calls per picture of the same pass repeated.
        rate: new pictures a second.
        failed: requests, by reason.
    """

    front: str
    fetches: float
    again: float
    rate: float
    failed: Counter[str]


async def steady(ground: Ground, front: str, pictures: range) -> Steady:
    """Ask for every preset of new pictures, twice."""
    count = len(pictures)
    async with ground.front(front) as server:
        first = await ground.pass_over(server.port, pictures, 1)
        fetched = await ground.fetches(pictures)
        second = await ground.pass_over(server.port, pictures, 2)
        again = await ground.fetches(pictures) - fetched
    return Steady(
        front,
        fetched / count,
        again / count,
        count / first.seconds,
        first.failed + second.failed,
    )

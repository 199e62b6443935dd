"""What a hit and a miss cost as things grow: the cache, presets, sources, clients, workers.

    python -m bench.growth [cache] [presets] [sources] [clients] [workers]    # if none, all
    python -m bench.growth cache --entries 10000 1000000 10000000
    python -m bench.growth --quick      # two points of each, one round
    python -m bench.growth --write      # the figures into docs/benchmarks.md

Costs are CPU time of all processes of the service: it means the same on a busy machine. The servers
of a curve are up at once and take turns, in another order each round. Hits are from memory, made by
wrk; misses of the cold kind, another blob of another account each time. A curve that should be flat
is judged by its last point over its first, of the same round. Exits with 1 when a request failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import trio
from rich.console import Console
from rich.progress import Progress, TaskID

from bench import documented, plot, report
from bench.cache import Stock, in_memory
from bench.client import closed_loop
from bench.images import PRESET, Images
from bench.pictures import Size
from bench.processes import (
    Server,
    allow_open_files,
    cpu_at_rest,
    proxy,
    run,
    upstream,
)
from bench.wrk import load, wrk_program
from proxy.model.presets import DEFAULT_PRESETS
from proxy.moderation.store import FILE_NAME, ModerationStore

SOURCE = Size(2000, 1500)
HOT = 8
CONNECTIONS = 16
CLIENTS = 4
"""For misses."""

HIT_TIMEOUT = 30
"""Seconds: of 10,000 that ask at once, the last waits long."""

SPARE_FILES = 512
"""Open files that a process needs beside the connections of its clients."""

SOURCES = {
    0.1: Size(400, 250),
    1: Size(1200, 833),
    5: Size(2500, 2000),
    12: Size(4000, 3000),
    50: Size(8000, 6250),
}
"""By megapixels."""

PLOTS = Path("build")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        cache, presets, sources, clients, workers: the points of each curve.
        rounds: of each point.
        misses: of a point in a round.
        seconds: of hits of a point in a round, at least.
    """

    cache: Sequence[int] = (10_000, 100_000, 1_000_000)
    presets: Sequence[int] = (9, 30, 90)
    sources: Sequence[float] = tuple(SOURCES)
    clients: Sequence[int] = (1, 10, 100, 1_000, 10_000)
    workers: Sequence[int] = (1, 2, 4)
    rounds: int = 3
    misses: int = 16
    seconds: int = 2


FULL = Plan()
QUICK = Plan(
    cache=(1_000, 10_000),
    presets=(9, 90),
    sources=(0.1, 1),
    clients=(1, 1_000),
    workers=(1, 2),
    rounds=1,
    misses=8,
    seconds=1,
)


@dataclass(slots=True)
class Point:
    """A point of a curve: a server, and what it cost in each round, in seconds of CPU.

    Attributes:
        value: of what grows.
        connections: that hits come over.
    """

    value: float
    server: Server
    images: Images
    connections: int = CONNECTIONS
    hit: list[float] = field(default_factory=list)
    miss: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Curve:
    """What grows, and the points, the smallest first."""

    name: str
    label: str
    points: list[Point]

    def growth(self, cost: str) -> list[float]:
        """The last point over the first, by round."""
        first, last = (getattr(point, cost) for point in (self.points[0], self.points[-1]))
        return [b / a for a, b in zip(first, last, strict=True)]


class Servers:
    """Starts what a curve needs; all of it ends with ``stack``."""

    def __init__(self, stack: AsyncExitStack, folder: Path, plan: Plan) -> None:
        self._stack = stack
        self._folder = folder
        self._misses = plan.rounds * plan.misses
        self._count = 0

    async def _images(self, size: Size, points: int) -> tuple[int, Images]:
        """A directory and PDS with enough blobs for one server, and their paths."""
        blobs = HOT + CLIENTS + points * self._misses
        manifest = await self._stack.enter_async_context(
            upstream(self._folder, blobs=blobs, size=size, latency=0, bases=1)
        )
        return manifest.port, Images(manifest.cids, HOT, PRESET)

    async def point(
        self,
        value: float,
        *,
        size: Size = SOURCE,
        points: int = 1,
        **extra: str,
    ) -> Point:
        """A server that is ready, and whose hot images are in memory.

        Args:
            points: that are to be measured with it.
        """
        directory, images = await self._images(size, points)
        self._count += 1
        extra.setdefault("IMAGE_PROXY_FETCH__MAX_SOURCE_MB", "64")
        server = await self._stack.enter_async_context(
            proxy(self._folder, f"server-{self._count}", directory, **extra)
        )
        await server.ready()
        cold = [images.cold()[2] for _ in range(CLIENTS)]
        await closed_loop(server.port, iter([*images.hot, *cold]), connections=CLIENTS)
        await closed_loop(server.port, iter(images.hot), connections=1)
        return Point(value, server, images)


async def by_cache(servers: Servers, folder: Path, plan: Plan, bar: Progress) -> list[Point]:
    """Entries that are there already."""
    points = []
    for entries in plan.cache:
        bar.update(TaskID(0), description=f"filling {entries:,}")
        stock = Stock(folder / f"stock-{entries}", entries)
        await trio.to_thread.run_sync(stock.fill, lambda: None)
        # Beside results, a server makes none.
        with closing(ModerationStore(stock.path / FILE_NAME)) as store:
            store.make()
        path = str(stock.path)
        points.append(
            await servers.point(
                entries, IMAGE_PROXY_CACHE__PATH=path, IMAGE_PROXY_CACHE__MAX_GB="1000"
            )
        )
    return points


async def by_presets(servers: Servers, folder: Path, plan: Plan, _bar: Progress) -> list[Point]:
    """Presets in the configuration; those that are added differ by a pixel each."""
    points = []
    for count in plan.presets:
        lines = []
        for number in range(count - len(DEFAULT_PRESETS)):
            box = f"width = {100 + number}\nheight = 100\nfit = 'cover'\nquality = 80\n"
            lines.append(f"[presets.more_{number}]\n{box}")
        for name, preset in DEFAULT_PRESETS.items():
            given = preset.model_dump(include={"width", "height", "fit", "quality"})
            pairs = (f"{key} = {value!r}" for key, value in given.items())
            lines.append(f"[presets.{name}]\n" + "\n".join(pairs) + "\n")
        file = folder / f"presets-{count}.toml"
        file.write_text("\n".join(lines))
        points.append(await servers.point(count, IMAGE_PROXY_CONFIG=str(file)))
    return points


async def by_sources(servers: Servers, _folder: Path, plan: Plan, _bar: Progress) -> list[Point]:
    """Megapixels of the source."""
    return [await servers.point(value, size=SOURCES[value]) for value in plan.sources]


async def by_clients(servers: Servers, _folder: Path, plan: Plan, _bar: Progress) -> list[Point]:
    """Connections that are kept alive, all of them asking. One server for all points."""
    # Near its limit, a service closes idle connections.
    allow_open_files(max(plan.clients) * 3 // 2 + SPARE_FILES)
    first = await servers.point(0, points=len(plan.clients))
    return [Point(count, first.server, first.images, connections=count) for count in plan.clients]


async def by_workers(servers: Servers, _folder: Path, plan: Plan, _bar: Progress) -> list[Point]:
    """Processes of the service."""
    return [
        await servers.point(count, IMAGE_PROXY_SERVER__WORKERS=str(count)) for count in plan.workers
    ]


CURVES = {
    "cache": (by_cache, "entries in the cache"),
    "presets": (by_presets, "presets"),
    "sources": (by_sources, "megapixels of a source"),
    "clients": (by_clients, "kept-alive connections"),
    "workers": (by_workers, "worker processes"),
}


async def measure_point(point: Point, plan: Plan, faults: Counter[str]) -> None:
    """Misses, then hits, once."""
    pid = point.server.process.pid
    paths = [point.images.cold()[2] for _ in range(plan.misses)]
    before = await cpu_at_rest(pid)
    made = await closed_loop(point.server.port, iter(paths), connections=CLIENTS, state="miss")
    point.miss.append((await cpu_at_rest(pid) - before) / plan.misses)
    faults.update(made.errors)
    # So long that opening the connections is no large part of it.
    seconds = plan.seconds + point.connections // 1000
    before = await cpu_at_rest(pid)
    hits = await load(
        point.server.port,
        point.images.hot,
        connections=point.connections,
        seconds=seconds,
        timeout=HIT_TIMEOUT,
    )
    point.hit.append((await cpu_at_rest(pid) - before) / max(hits.answers, 1))
    faults.update(hits.failed)


async def measure(names: Sequence[str], plan: Plan) -> tuple[list[Curve], Counter[str]]:
    """The curves, one after the other."""
    curves = []
    faults: Counter[str] = Counter()
    steps = sum(len(getattr(plan, name)) for name in names) * plan.rounds
    with report.progress(steps) as bar:
        for name in names:
            make, label = CURVES[name]
            place = in_memory(plan.cache) if name == "cache" else None
            with tempfile.TemporaryDirectory(dir=place) as temporary:
                async with AsyncExitStack() as stack:
                    folder = Path(temporary)
                    bar.update(TaskID(0), description=f"{name}: starting")
                    points = await make(Servers(stack, folder, plan), folder, plan, bar)
                    for number in range(plan.rounds):
                        turn = number % len(points)
                        for point in (*points[turn:], *points[:turn]):
                            bar.update(TaskID(0), description=f"{name}: {point.value:,}")
                            wrong: Counter[str] = Counter()
                            await measure_point(point, plan, wrong)
                            faults.update(
                                {f"{name} {point.value}: {why}": n for why, n in wrong.items()}
                            )
                            bar.advance(TaskID(0))
                curves.append(Curve(name, label, points))
    return curves, faults


def rows(curve: Curve) -> list[list[str]]:
    """A hit and a miss, over the points, and the last over the first."""
    found = []
    for title, cost, factor, form in (("hit, CPU us", "hit", 1e6, ".0f"),
                                      ("miss, CPU ms", "miss", 1e3, ".1f")):  # fmt: skip
        spreads = [
            report.spread((value * factor for value in getattr(point, cost)), form)
            for point in curve.points
        ]
        found.append([title, *spreads, report.spread(curve.growth(cost), ".2f")])
    return found


def columns(curve: Curve) -> list[str]:
    """Of ``rows``."""
    return [curve.label, *(f"{point.value:,}" for point in curve.points), "last / first"]


def draw(curve: Curve, file: Path) -> str:
    """A hit and a miss over what grows."""
    figure = plot.figure_of(8, 3.2)
    if figure is None:
        return plot.MISSING
    values = [point.value for point in curve.points]
    panels = (("hit", 1e6, "hit from memory, CPU us"), ("miss", 1e3, "miss, CPU ms"))
    for axes, (cost, factor, title) in zip(figure.subplots(1, 2), panels, strict=True):
        rounds = [[value * factor for value in getattr(point, cost)] for point in curve.points]
        middles = [median(each) for each in rounds]
        below = [middle - min(each) for middle, each in zip(middles, rounds, strict=True)]
        above = [max(each) - middle for middle, each in zip(middles, rounds, strict=True)]
        axes.errorbar(values, middles, yerr=[below, above], marker="o", capsize=4)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(curve.label)
    return plot.save(figure, file)


def show(console: Console, curve: Curve) -> None:
    """A table."""
    table = report.table(f"{curve.label}: {report.SPREAD}", columns(curve))
    for row in rows(curve):
        table.add_row(*row)
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("curves", nargs="*", metavar="CURVE", help=", ".join(CURVES))
    parser.add_argument("--quick", action="store_true", help="two points of each, one round")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}, quick {QUICK.rounds}")
    parser.add_argument(
        "--entries", type=int, nargs="+", help="of the caches; 10 million take 60 GB and an hour"
    )
    parser.add_argument("--write", action="store_true", help="figures and plots into docs/")
    given = parser.parse_args()
    if unknown := set(given.curves) - set(CURVES):
        parser.error(f"no curve {', '.join(sorted(unknown))}")
    return given


async def _main() -> int:
    given = _arguments()
    wrk_program()
    plan = QUICK if given.quick else FULL
    plan = replace(
        plan,
        rounds=given.rounds or plan.rounds,
        cache=tuple(sorted(given.entries or plan.cache)),
    )
    curves, faults = await measure(given.curves or [*CURVES], plan)
    console = report.output()
    report.print_settings(console, {"rounds": plan.rounds, "misses of a point": plan.misses})
    folder = documented.IMAGES if given.write else PLOTS
    for curve in curves:
        show(console, curve)
        if given.write or not given.quick:
            console.print(draw(curve, folder / f"bench-growth-{curve.name}.svg"))
        if given.write:
            table = documented.table(columns(curve), rows(curve))
            figures = f"{report.machine()}; {plan.rounds} rounds.\n\n{table}"
            console.print(documented.write(f"growth {curve.name}", figures))
    return report.verdict(console, [f"{fault} ({n} times)" for fault, n in faults.items()])


if __name__ == "__main__":
    sys.exit(run(_main))

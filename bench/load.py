"""The load benchmark: hits, misses, and storms on one cold image.

Starts an upstream, two proxies (one without its memory tier) and the peer of ``bench.peer``, then
measures all scenarios in turn, several rounds of it, and prints the spread. Exits with 1 when a
request failed, or when a storm took more than one look-up, one getBlob and one transform.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from bench import plot, report
from bench.client import Answer, Connection, Result, closed_loop, storm
from bench.images import PRESET, SOURCE, Images
from bench.peer import write_answers
from bench.pictures import Size
from bench.processes import (
    BenchError,
    Server,
    allow_open_files,
    counts,
    metric,
    peer,
    proxy,
    run,
    until,
    upstream,
)
from bench.upstream import Manifest
from proxy.config import Config
from proxy.shared.machine import cpus_of_this_process

PEER = "hits: peer (bare ASGI)"
MEMORY = "hits: memory"
DISK = "hits: disk"
MISSES = "misses"
HITS = (PEER, MEMORY, DISK)

SPARE_FILES = 256
"""Open files that a process needs beside the connections of a storm."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: of all scenarios.
        seconds: of each scenario of hits.
        connections: of the closed loops.
        hot: different images that hits go to.
        misses: in a round.
        storms: in a round.
        storm_size: requests of one storm.
        latency: of the upstream, seconds an answer.
        size: of the source pictures.
    """

    rounds: int = 5
    seconds: float = 4.0
    connections: int = 16
    hot: int = 32
    misses: int = 150
    storms: int = 4
    storm_size: int = 500
    latency: float = 0.02
    size: Size = SOURCE

    @property
    def blobs(self) -> int:
        """Different blobs that all this takes."""
        return self.hot + self.rounds * (self.misses + self.storms)

    @property
    def steps(self) -> int:
        """Of the progress bar."""
        return 1 + self.rounds * (len(HITS) + 1 + self.storms)


FULL = Plan()
QUICK = Plan(rounds=2, seconds=0.5, hot=8, misses=16, storms=1, storm_size=200)


@dataclass(frozen=True, slots=True)
class Storm:
    """What one storm brought, and what it took."""

    result: Result
    lookups: int
    get_blobs: int
    transforms: int

    @property
    def shared_all(self) -> bool:
        """Whether each kind of work was done once."""
        return self.lookups == self.get_blobs == self.transforms == 1

    @property
    def last_answer(self) -> float:
        """Seconds from the start of the storm."""
        return max(self.result.latencies, default=self.result.seconds)


@dataclass(slots=True)
class Round:
    """One measurement of everything."""

    results: dict[str, Result] = field(default_factory=dict)
    storms: list[Storm] = field(default_factory=list)

    def ratio(self, scenario: str) -> float:
        """Its rate as a share of the peer's; NaN where the peer gave no good answer."""
        peer = self.results[PEER].rate
        return self.results[scenario].rate / peer if peer else math.nan


class Bench:
    """The servers under load, and the measurements."""

    def __init__(self, plan: Plan, manifest: Manifest, servers: Mapping[str, Server]) -> None:
        self._plan = plan
        self._upstream = manifest.port
        self._servers = servers
        self._images = Images(manifest.cids, plan.hot)

    async def warm(self, answers: Path) -> None:
        """Make the hot images hits, on disk where memory is off, and write the peer's answers."""
        for scenario in (MEMORY, DISK):
            warmed = await closed_loop(
                self._port(scenario),
                iter(self._images.hot),
                connections=self._plan.connections,
            )
            if warmed.errors:
                raise BenchError(f"warming {scenario} failed: {dict(warmed.errors)}")
        await until(self._all_on_disk, "the hot images to be on disk")
        write_answers(answers, await self._hot_answers())

    async def round(self, number: int, note: Callable[[str], None]) -> Round:
        """Measure every scenario; ``note`` is told the name of each one done."""
        found = Round()
        # In another order each round, so that none always has the warmest or busiest machine.
        for scenario in (*HITS[number % len(HITS) :], *HITS[: number % len(HITS)]):
            found.results[scenario] = await self._hits(scenario)
            note(scenario)
        found.results[MISSES] = await self._misses()
        note(MISSES)
        for _ in range(self._plan.storms):
            found.storms.append(await self._storm())
            note("storm")
        return found

    def _port(self, scenario: str) -> int:
        return self._servers[scenario].port

    async def _hits(self, scenario: str) -> Result:
        return await closed_loop(
            self._port(scenario),
            itertools.cycle(self._images.hot),
            connections=self._plan.connections,
            seconds=self._plan.seconds,
            state="hit",
        )

    async def _misses(self) -> Result:
        paths = [self._images.cold()[2] for _ in range(self._plan.misses)]
        return await closed_loop(
            self._port(MEMORY),
            iter(paths),
            connections=self._plan.connections,
            state="miss",
        )

    async def _storm(self) -> Storm:
        did, cid, path = self._images.cold()
        before = await self._transforms()
        result = await storm(self._port(MEMORY), [path] * self._plan.storm_size)
        asked = await counts(self._upstream)
        return Storm(
            result,
            lookups=asked.documents.get(did, 0),
            get_blobs=asked.blobs.get(cid, 0),
            transforms=await self._transforms() - before,
        )

    async def _transforms(self) -> int:
        return int(await metric(self._port(MEMORY), "imageproxy_process_duration_seconds_count"))

    async def _all_on_disk(self) -> bool:
        entries = await metric(self._port(DISK), "imageproxy_cache_entries")
        return entries >= self._plan.hot

    async def _hot_answers(self) -> dict[str, Answer]:
        connection = Connection(self._port(MEMORY))
        try:
            return {path: await connection.get(path) for path in self._images.hot}
        finally:
            connection.close()


@asynccontextmanager
async def _bench(plan: Plan, folder: Path) -> AsyncIterator[Bench]:
    """All servers, warm, for the time of the block."""
    async with AsyncExitStack() as stack:
        manifest = await stack.enter_async_context(
            upstream(folder, blobs=plan.blobs, size=plan.size, latency=plan.latency)
        )
        without_memory = {"IMAGE_PROXY_CACHE__MEMORY_MB": "0"}
        servers = {
            MEMORY: await stack.enter_async_context(proxy(folder, "memory", manifest.port)),
            DISK: await stack.enter_async_context(
                proxy(folder, "disk", manifest.port, **without_memory)
            ),
        }
        for server in servers.values():
            await server.ready()
        bench = Bench(plan, manifest, servers)
        answers = folder / "answers.json"
        await bench.warm(answers)
        servers[PEER] = await stack.enter_async_context(peer(folder, answers))
        await servers[PEER].ready()
        yield bench


async def _measure(plan: Plan) -> list[Round]:
    rounds = []
    with report.progress(plan.steps) as bar, tempfile.TemporaryDirectory() as folder:
        async with _bench(plan, Path(folder)) as bench:
            bar.advance(TaskID(0))
            for number in range(plan.rounds):
                note = partial(_note, bar, number + 1)
                rounds.append(await bench.round(number, note))
    return rounds


def _note(bar: Progress, number: int, scenario: str) -> None:
    bar.update(TaskID(0), advance=1, description=f"round {number}: {scenario}")


def _print(console: Console, plan: Plan, rounds: list[Round]) -> None:
    report.print_settings(console, _settings(plan))
    _print_load(console, rounds)
    _print_ratio(console, rounds)
    _print_storms(console, plan, rounds)


def _settings(plan: Plan) -> dict[str, object]:
    config = Config()
    threads = config.process.threads or f"{cpus_of_this_process()} (one per CPU)"
    return {
        "rounds": plan.rounds,
        "load": f"closed loop, {plan.connections} kept-alive connections, all processes on this "
        "machine",
        "hits": f"{plan.seconds:g} s a round over {plan.hot} images",
        "misses": f"{plan.misses} a round, each another blob of another account",
        "sources": f"JPEG, {plan.size}, preset {PRESET}",
        "upstream": f"{plan.latency * 1000:g} ms before each answer",
        "proxy": f"one worker, default configuration: fetch.workers {config.fetch.workers}, "
        f"fetch.per_host {config.fetch.per_host}, process.threads {threads}, "
        f"cache.memory_mb {config.cache.memory_mb:g} (disk: 0); log lines to a file",
    }


def _print_load(console: Console, rounds: list[Round]) -> None:
    columns = ("", "requests/s", "p50 ms", "p99 ms", "client CPU %", "failed")
    table = report.table(f"Load: {report.SPREAD} of the rounds", columns)
    for scenario in (*HITS, MISSES):
        results = [each.results[scenario] for each in rounds]
        table.add_row(
            scenario,
            report.spread((each.rate for each in results), ".0f"),
            report.milliseconds(each.percentile(0.5) for each in results),
            report.milliseconds(each.percentile(0.99) for each in results),
            report.spread((each.client_cpu * 100 for each in results), ".0f"),
            str(sum(each.errors.total() for each in results)),
        )
    console.print(table)


def _print_ratio(console: Console, rounds: list[Round]) -> None:
    for scenario in (MEMORY, DISK):
        ratio = report.spread((each.ratio(scenario) for each in rounds), ".2f")
        console.print(f"{scenario} / {PEER.removeprefix('hits: ')}, requests/s: {ratio}")
    console.print()


def _print_storms(console: Console, plan: Plan, rounds: list[Round]) -> None:
    storms = _storms(rounds)
    title = f"Coalescing: {len(storms)} storms of {plan.storm_size} requests for one cold image"
    table = report.table(title, ("", "an image"))
    table.add_row("look-ups of the account", _largest(each.lookups for each in storms))
    table.add_row("getBlob calls", _largest(each.get_blobs for each in storms))
    table.add_row("transforms", _largest(each.transforms for each in storms))
    table.add_row("ms to the last answer", report.milliseconds(each.last_answer for each in storms))
    for state in ("miss", "coalesced", "hit"):
        table.add_row(
            f"answers: {state}",
            report.spread((each.result.states[state] for each in storms), ".0f"),
        )
    table.add_row("failed", str(sum(each.result.errors.total() for each in storms)))
    console.print(table)


def _largest(numbers: Iterator[int]) -> str:
    """``1`` when all are, else their range."""
    found = sorted(numbers)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def _storms(rounds: list[Round]) -> list[Storm]:
    return [each for one in rounds for each in one.storms]


def faults(rounds: list[Round]) -> list[str]:
    """What must not happen, and did."""
    failed: Counter[str] = Counter()
    for one in rounds:
        for scenario, result in one.results.items():
            failed.update({f"{scenario}: {why}": n for why, n in result.errors.items()})
    for each in _storms(rounds):
        failed.update({f"storm: {why}": n for why, n in each.result.errors.items()})
        if not each.shared_all:
            failed[
                f"storm: {each.lookups} look-ups, {each.get_blobs} getBlob calls and "
                f"{each.transforms} transforms for one image"
            ] += 1
    return [f"{why} ({n} times)" for why, n in failed.items()]


def _arguments() -> tuple[Plan, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version, for CI")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}, quick {QUICK.rounds}")
    parser.add_argument("--connections", type=int, help=f"default {FULL.connections}")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help=f"PNG or SVG by its suffix; default {plot.DEFAULT_FILE}, quick none",
    )
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    plan = replace(
        plan,
        rounds=given.rounds or plan.rounds,
        connections=given.connections or plan.connections,
    )
    return plan, given.plot or (None if given.quick else plot.DEFAULT_FILE)


async def _main() -> int:
    plan, picture = _arguments()
    allow_open_files(plan.storm_size + SPARE_FILES)
    rounds = await _measure(plan)
    console = report.output()
    _print(console, plan, rounds)
    if picture is not None:
        rates = {s: [each.results[s].rate for each in rounds] for s in (*HITS, MISSES)}
        storm_times = [each.last_answer for each in _storms(rounds)]
        console.print(plot.draw(picture, rates, storm_times, plan.storm_size))
    return report.verdict(console, faults(rounds))


if __name__ == "__main__":
    sys.exit(run(_main))

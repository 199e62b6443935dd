"""Hits under wrk: direct, from several workers, and through nginx, each against its peer.

All servers run at once on one warm cache folder; wrk loads them in turn, in another order each
round, and what is compared was measured in the same round. The servers' own CPU time is given too,
which neighbours on the machine disturb less than rates. Exits with 1 when an answer was wrong
or a request failed; times are printed, not judged.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import TaskID

from bench import nginx, plot, report
from bench.client import Answer, Connection, closed_loop, get
from bench.images import SOURCE, Images
from bench.peer import write_answers
from bench.pictures import Size
from bench.processes import (
    BenchError,
    Server,
    cpu_seconds,
    metric,
    peer,
    proxy,
    run,
    until,
    upstream,
)
from bench.wrk import Load, load, wrk_program
from proxy.cache.layout import entry_folder, entry_name
from proxy.config import Config
from proxy.model.formats import Format
from proxy.urls import parse_image_path
from tests.nginx import find_nginx

BARE = "bare ASGI function"
BARE_OURS = "the same on our connections"
MEMORY = "memory"
DISK = "disk"
WORKERS = "memory, 2 workers"
BLOCK = "nginx with our block"
ALONE = "nginx alone"

WORKER_COUNT = 2

PRESET = "embed_thumbnail"
"""720 by 360 pixels: what feeds consist of."""

RATIOS: dict[tuple[str, str], str] = {
    (MEMORY, BARE): "at least 5",
    (MEMORY, BARE_OURS): "",
    (DISK, BARE): "at least 2.5",
    (WORKERS, MEMORY): "at least 1.7",
    (BLOCK, ALONE): "near 1",
}
"""What is compared with what, and the goal."""

WARM_SECONDS = 1

FILL_TRIES = 5
"""How often the images are asked for: on a busy machine some are refused at first."""

PLOT = Path("build/bench-hits.svg")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: of all scenarios.
        seconds: of each scenario in a round.
        connections: kept alive, of wrk.
        hot: different images that hits go to.
        size: of the source pictures.
    """

    rounds: int = 7
    seconds: int = 3
    connections: int = 16
    hot: int = 64
    size: Size = SOURCE


FULL = Plan()
QUICK = replace(FULL, rounds=1, seconds=1, hot=8)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One server under load.

    Attributes:
        paths: of the hot images there, in one order everywhere.
        state: the ``X-Cache`` that it answers with; None: it has none.
    """

    server: Server
    paths: Sequence[str]
    state: str | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One scenario in one round.

    Attributes:
        cpu: seconds of the server's CPU time for each answer; NaN where that cannot be told.
    """

    load: Load
    cpu: float


Round = dict[str, Measured]
"""What each scenario brought."""


@dataclass(frozen=True, slots=True)
class Found:
    """All of it.

    Attributes:
        answer_bytes: of a hit's body, on average.
        left_out: what was not measured, and why.
        faults: what must not happen, and did.
    """

    rounds: list[Round]
    answer_bytes: int
    left_out: list[str]
    faults: list[str]


class Bench:
    """The servers, warm, by the names of their scenarios."""

    def __init__(self, plan: Plan, answers: Sequence[Answer]) -> None:
        self._plan = plan
        self._answers = answers
        self.scenarios: dict[str, Scenario] = {}

    async def warm(self) -> list[str]:
        """Load each server, unmeasured, and look at every answer; the names of wrong ones."""
        wrong = []
        for name, scenario in self.scenarios.items():
            await self._load(scenario, WARM_SECONDS)
            wrong += [f"{name}: {fault}" for fault in await self._faults(scenario)]
        return wrong

    async def round(self, number: int, note: Callable[[str], None]) -> Round:
        """Measure every scenario; ``note`` is told the name of each one done."""
        names = list(self.scenarios)
        start = number % len(names)
        found = {}
        # In another order each round, so that none always has the warmest or busiest machine.
        for name in (*names[start:], *names[:start]):
            found[name] = await self._measure(self.scenarios[name])
            note(name)
        return found

    async def _measure(self, scenario: Scenario) -> Measured:
        pid = scenario.server.process.pid
        before = cpu_seconds(pid)
        found = await self._load(scenario, self._plan.seconds)
        return Measured(found, (cpu_seconds(pid) - before) / max(found.answers, 1))

    async def _load(self, scenario: Scenario, seconds: int) -> Load:
        return await load(
            scenario.server.port,
            scenario.paths,
            connections=self._plan.connections,
            seconds=seconds,
        )

    async def _faults(self, scenario: Scenario) -> list[str]:
        faults = []
        for path, expected in zip(scenario.paths, self._answers, strict=True):
            answer = await get(scenario.server.port, path)
            if answer.status != 200:
                faults.append(f"status {answer.status}")
            elif answer.body != expected.body:
                faults.append("wrong bytes")
            elif answer.headers.get("x-cache") != scenario.state:
                faults.append(f"X-Cache {answer.headers.get('x-cache')}")
        return faults


@asynccontextmanager
async def _bench(plan: Plan, folder: Path) -> AsyncIterator[tuple[Bench, int, list[str]]]:
    """All servers for the time of the block, the bytes of a hit, and what is left out."""
    cache = folder / "cache"
    on_cache = {"IMAGE_PROXY_CACHE__PATH": str(cache)}
    async with AsyncExitStack() as stack:
        manifest = await stack.enter_async_context(
            upstream(folder, blobs=plan.hot, size=plan.size, latency=0)
        )
        hot = Images(manifest.cids, plan.hot, PRESET).hot

        async def start(name: str, **extra: str) -> Server:
            server = await stack.enter_async_context(
                proxy(folder, name, manifest.port, **on_cache, **extra)
            )
            await server.ready()
            return server

        async def start_peer(*extra: str) -> Server:
            server = await stack.enter_async_context(peer(folder, file, *extra))
            await server.ready()
            return server

        memory = await start("memory")
        answers = await _fill(memory, hot)
        file = folder / "answers.json"
        write_answers(file, dict(zip(hot, answers, strict=True)))

        bench = Bench(plan, answers)
        bench.scenarios[BARE] = Scenario(await start_peer(), hot, "hit")
        bench.scenarios[BARE_OURS] = Scenario(await start_peer("--our-connections"), hot, "hit")
        bench.scenarios[MEMORY] = Scenario(memory, hot, "hit")
        disk = await start("disk", IMAGE_PROXY_CACHE__MEMORY_MB="0")
        bench.scenarios[DISK] = Scenario(disk, hot, "hit")
        workers = await start("workers", IMAGE_PROXY_SERVER__WORKERS=str(WORKER_COUNT))
        bench.scenarios[WORKERS] = Scenario(workers, hot, "hit")

        left_out = []
        if find_nginx() is None:
            left_out.append("nginx, which is not installed (on Debian: apt install nginx-light)")
        else:
            block = await nginx.block_of(cache, memory)
            before = await stack.enter_async_context(nginx.with_block(folder / "block", block))
            bench.scenarios[BLOCK] = Scenario(before, hot, "hit")
            alone = await stack.enter_async_context(nginx.alone(folder / "alone", cache / "images"))
            bench.scenarios[ALONE] = Scenario(alone, [_file_of(path) for path in hot], None)
            for scenario in (bench.scenarios[BLOCK], bench.scenarios[ALONE]):
                await _until_it_answers(scenario)
        yield bench, sum(len(each.body) for each in answers) // len(answers), left_out


async def _fill(server: Server, hot: Sequence[str]) -> list[Answer]:
    """Have the hot images made and written; they are hits from then on."""
    for _ in range(FILL_TRIES):
        made = await closed_loop(server.port, iter(hot), connections=2)
        if not made.errors:
            break
    else:
        raise BenchError(f"the images cannot be made: {dict(made.errors)}")

    async def all_written() -> bool:
        return await metric(server.port, "imageproxy_cache_entries") >= len(hot)

    await until(all_written, "the images to be on disk")
    connection = Connection(server.port)
    try:
        return [await connection.get(path) for path in hot]
    finally:
        connection.close()


def _file_of(path: str) -> str:
    """The URL of an image's file at a server of the cache folder."""
    key = parse_image_path(Config().presets, path)
    return f"/{entry_folder(key)}/{entry_name(key, Format.JPEG)}"


async def _until_it_answers(scenario: Scenario) -> None:
    async def answers() -> bool:
        try:
            await get(scenario.server.port, scenario.paths[0])
        except OSError:
            return False
        return True

    await until(answers, f"port {scenario.server.port} to answer")


async def _measure(plan: Plan) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        async with _bench(plan, Path(folder)) as (bench, answer_bytes, left_out):
            steps = 1 + plan.rounds * len(bench.scenarios)
            with report.progress(steps) as bar:

                def note(what: str) -> None:
                    bar.update(TaskID(0), advance=1, description=what)

                faults = await bench.warm()
                note("warm")
                rounds = [await bench.round(number, note) for number in range(plan.rounds)]
    failed: Counter[str] = Counter()
    for each in rounds:
        for name, result in each.items():
            failed.update({f"{name}: {kind}": n for kind, n in result.load.failed.items()})
    faults += [f"{what} ({n} times)" for what, n in failed.items()]
    return Found(rounds, answer_bytes, left_out, faults)


def _ratios(found: Found, of: Callable[[Measured], float]) -> dict[tuple[str, str], list[float]]:
    """A figure over that of the peer, round by round, of what was measured."""
    return {
        (name, other): [of(each[name]) / (of(each[other]) or math.nan) for each in found.rounds]
        for name, other in RATIOS
        if name in found.rounds[0] and other in found.rounds[0]
    }


def _rate(measured: Measured) -> float:
    return measured.load.rate


def _answers_per_cpu_second(measured: Measured) -> float:
    return 1 / (measured.cpu or math.nan)


def _settings(plan: Plan, found: Found) -> dict[str, object]:
    return {
        "rounds": f"{plan.rounds}, each scenario for {plan.seconds} s, the order rotated",
        "load": f"wrk, one thread, {plan.connections} kept-alive connections, on this machine",
        "answers": f"{plan.hot} images, JPEG of {found.answer_bytes} bytes on average, {PRESET}",
        "proxy": "default configuration (disk: cache.memory_mb 0), log lines to a file",
        BARE: "the same bytes and headers under Hypercorn with our settings; no log line",
        "nginx": "one worker process, no access log; alone: try_files on the cache folder",
    }


def _print(console: Console, plan: Plan, found: Found) -> None:
    report.print_settings(console, _settings(plan, found))
    columns = ("", "requests/s", "p50 ms", "p99 ms", "CPU us", "failed")
    table = report.table(f"Hits: {report.SPREAD} of the rounds", columns)
    for name in found.rounds[0]:
        results = [each[name] for each in found.rounds]
        table.add_row(
            name,
            report.spread((each.load.rate for each in results), ".0f"),
            report.milliseconds(each.load.p50 for each in results),
            report.milliseconds(each.load.p99 for each in results),
            report.spread((each.cpu * 1e6 for each in results), ".0f"),
            str(sum(each.load.failed.total() for each in results)),
        )
    console.print(table)
    title = "Over the peer in the same round"
    ratios = report.table(title, ("", "requests/s", "goal", "answers a CPU second"))
    per_cpu = _ratios(found, _answers_per_cpu_second)
    for pair, values in _ratios(found, _rate).items():
        ratios.add_row(
            " / ".join(pair),
            report.spread(values, ".2f"),
            RATIOS[pair],
            report.spread(per_cpu[pair], ".2f"),
        )
    console.print(ratios)
    for what in found.left_out:
        console.print(f"left out: {what}")


def _draw(file: Path, found: Found) -> str:
    rates = {name: [_rate(each[name]) for each in found.rounds] for name in found.rounds[0]}
    through_nginx = {name: rates.pop(name) for name in (BLOCK, ALONE) if name in rates}
    groups = {
        "requests/s": rates,
        "requests/s ": through_nginx,
        "requests/s over the peer's in the same round": {
            " / ".join(pair): values for pair, values in _ratios(found, _rate).items()
        },
    }
    return plot.draw_groups(file, {label: values for label, values in groups.items() if values})


def _arguments() -> tuple[Plan, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m bench.hits", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version, for CI")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}, quick {QUICK.rounds}")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help=f"PNG or SVG by its suffix; default {PLOT}, quick none",
    )
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    plan = replace(plan, rounds=given.rounds or plan.rounds)
    return plan, given.plot or (None if given.quick else PLOT)


async def _main() -> int:
    plan, picture = _arguments()
    wrk_program()
    found = await _measure(plan)
    console = report.output()
    _print(console, plan, found)
    if picture is not None:
        console.print(_draw(picture, found))
    return report.verdict(console, found.faults)


if __name__ == "__main__":
    sys.exit(run(_main))

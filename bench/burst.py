"""A page of pictures of one PDS, all asked for at once, as browsers do: who is refused.

Each round asks a fresh proxy, which knows nothing of the PDS, and then again, when it knows it.
Exits with 1 when a picture was not answered.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import TaskID

from bench import report
from bench.client import Result, storm
from bench.images import PRESET
from bench.pictures import Size
from bench.processes import ROOT, allow_open_files, metrics, proxy, run, upstream
from bench.upstream import account
from proxy.config import Config

UNKNOWN = "the first burst"
KNOWN = "the next"
SPARE_FILES = 256
SOURCE = Size(1280, 960)
QUEUE_WAIT = 30.0
"""Seconds. The wait for a fetch is measured: a machine busy with pixels refuses nobody."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: each of two bursts on a fresh proxy.
        size: pictures of a burst.
        accounts: that have them, all at one PDS.
        latency: of the upstream, seconds an answer.
        source: the size of the pictures.
        checkout: whose proxy is asked.
    """

    rounds: int = 5
    size: int = 200
    latency: float = 0.1
    source: Size = SOURCE
    accounts: int = 20
    checkout: Path = ROOT


FULL = Plan()
QUICK = Plan(rounds=1)


@dataclass(frozen=True, slots=True)
class Round:
    """Two bursts, and the refusals of both by the label of the stage."""

    results: dict[str, Result]
    refused: Counter[str]


async def _measure(plan: Plan) -> list[Round]:
    with report.progress(2 * plan.rounds) as bar, tempfile.TemporaryDirectory() as folder:

        def note(what: str) -> None:
            bar.update(TaskID(0), advance=1, description=what)

        rounds = []
        for number in range(plan.rounds):
            path = Path(folder) / str(number)
            path.mkdir()
            rounds.append(await _round(plan, path, note))
        return rounds


async def _round(plan: Plan, folder: Path, note: Callable[[str], None]) -> Round:
    async with AsyncExitStack() as stack:
        manifest = await stack.enter_async_context(
            upstream(folder, blobs=2 * plan.size, size=plan.source, latency=plan.latency)
        )
        server = await stack.enter_async_context(
            proxy(
                folder,
                "proxy",
                manifest.port,
                plan.checkout,
                IMAGE_PROXY_PROCESS__QUEUE_WAIT=f"{QUEUE_WAIT:g}",
            )
        )
        await server.ready()
        paths = [
            f"/img/{PRESET}/plain/{account(number % plan.accounts)}/{cid}"
            for number, cid in enumerate(manifest.cids)
        ]
        found = {}
        for name, asked in ((UNKNOWN, paths[: plan.size]), (KNOWN, paths[plan.size :])):
            found[name] = await storm(server.port, asked)
            note(name)
        refused = await metrics(server.port, "imageproxy_rejected_total")
        return Round(found, Counter({stage: int(n) for stage, n in refused.items()}))


def _print(console: Console, plan: Plan, rounds: list[Round]) -> None:
    fetch = Config().fetch
    settings = {
        "rounds": f"{plan.rounds}, each on a fresh proxy",
        "load": f"{plan.size} pictures of {plan.accounts} accounts at one PDS, asked for at once",
        "sources": f"JPEG, {plan.source}, preset {PRESET}",
        "upstream": f"{plan.latency * 1000:g} ms before each answer",
        "process": f"queue_wait {QUEUE_WAIT:g} s, so that what is refused waited for a fetch",
        "fetch": f"workers {fetch.workers}, per_host {fetch.per_host}, queue_size "
        f"{fetch.queue_size}, timeout {fetch.timeout:g} s (the defaults)",
    }
    report.print_settings(console, settings)
    table = report.table(
        f"Bursts: {report.SPREAD} of the rounds", ("", "answered", "failed", "ms to the last")
    )
    for name in (UNKNOWN, KNOWN):
        results = [each.results[name] for each in rounds]
        table.add_row(
            name,
            report.spread((len(each.latencies) for each in results), ".0f"),
            report.spread((each.errors.total() for each in results), ".0f"),
            report.milliseconds(max(each.latencies, default=each.seconds) for each in results),
        )
    console.print(table)
    refused = sum((each.refused for each in rounds), Counter[str]())
    console.print(f"refused as busy, of all rounds: {dict(refused)}")


def faults(rounds: list[Round]) -> list[str]:
    """Why pictures were not answered."""
    failed: Counter[str] = Counter()
    for one in rounds:
        for name, result in one.results.items():
            failed.update({f"{name}: {why}": n for why, n in result.errors.items()})
    return [f"{why} ({n} times)" for why, n in failed.items()]


def _arguments() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m bench.burst", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}, quick {QUICK.rounds}")
    parser.add_argument("--size", type=int, help=f"pictures of a burst, default {FULL.size}")
    parser.add_argument("--of", type=Path, default=ROOT, metavar="FOLDER", help="another checkout")
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    return replace(
        plan,
        rounds=given.rounds or plan.rounds,
        size=given.size or plan.size,
        checkout=given.of.resolve(),
    )


async def _main() -> int:
    plan = _arguments()
    allow_open_files(plan.size + SPARE_FILES)
    rounds = await _measure(plan)
    console = report.output()
    _print(console, plan, rounds)
    return report.verdict(console, faults(rounds))


if __name__ == "__main__":
    sys.exit(run(_main))

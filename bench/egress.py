"""The two figures of the way out, over loopback, with host names that only this run knows.

Starvation: the p99 of misses to a healthy PDS while nine of ten requests go to a PDS that accepts
connections and never answers, against what it is without those. Sockets: how many are open at
most while a gateway GETs from thousands of hosts. Exits with 1 when the socket bound is broken, or
when a request to a healthy host failed; times are printed, not judged.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import TaskID

from bench import report
from bench.pictures import Size
from bench.processes import allow_open_files, run
from bench.sockets import Sockets, bound_of, count_sockets
from bench.starvation import PER_HEALTHY, PRESET, Phase, Plan, starvation
from proxy.config import Config
from proxy.egress.http_client import MAX_IDLE

GOAL = 1.5
"""p99 beside the hanging PDS over p99 alone."""

# Small pictures: the way out is measured, and a long transform would hide what it adds.
FULL = Plan(rounds=5, requests=200, rate=20.0, accounts=16, latency=0.02, size=Size(640, 480))
QUICK = replace(FULL, rounds=1, requests=40)

HOSTS = 10_000
QUICK_HOSTS = 400

SPARE_FILES = 1024

Round = tuple[Phase, Phase]
"""Alone, and beside the hanging PDS."""


async def _measure(plan: Plan, hosts: int) -> tuple[list[Round], Sockets]:
    with report.progress(2 * plan.rounds + hosts) as bar, tempfile.TemporaryDirectory() as folder:

        def note(what: str) -> None:
            bar.update(TaskID(0), advance=1, description=what)

        note_host = _noting(note, f"GETs from {hosts} hosts")
        sockets = await count_sockets(hosts, Path(folder), note_host)
        rounds = await _starve(plan, Path(folder), note)
    return rounds, sockets


def _noting(note: Callable[[str], None], what: str) -> Callable[[], None]:
    return lambda: note(what)


async def _starve(plan: Plan, folder: Path, note: Callable[[str], None]) -> list[Round]:
    rounds = []
    async with starvation(plan, folder) as bench:
        for number in range(1, plan.rounds + 1):
            alone = await bench.alone()
            note(f"round {number}: alone")
            beside = await bench.beside_hanging()
            note(f"round {number}: beside a hanging PDS")
            rounds.append((alone, beside))
    return rounds


def _settings(plan: Plan, hosts: int) -> dict[str, object]:
    config = Config()
    fetch = config.fetch
    return {
        "fetch": f"client {fetch.client}, workers {fetch.workers}, per_host {fetch.per_host}, "
        f"queue_size {fetch.queue_size}, timeout {fetch.timeout:g} s (the defaults)",
        "misses": f"open loop, {plan.rate:g} a second to the healthy PDS, {plan.requests} in each "
        f"phase; {plan.rate * PER_HEALTHY:g} a second to the one that hangs",
        "rounds": f"{plan.rounds}, each alone and then beside the hanging PDS, whose share of the "
        "service is full before a measurement begins",
        "sources": f"JPEG, {plan.size}, preset {PRESET}; {plan.accounts} accounts at each PDS",
        "upstream": f"{plan.latency * 1000:g} ms before each answer",
        "hosts": f"{hosts} names, one loopback listener; sockets counted at each connection",
    }


def _print(console: Console, plan: Plan, hosts: int, rounds: list[Round], sockets: Sockets) -> None:
    report.print_settings(console, _settings(plan, hosts))
    _print_starvation(console, rounds)
    _print_sockets(console, hosts, sockets)


def _print_starvation(console: Console, rounds: list[Round]) -> None:
    table = report.table(
        f"Starvation: misses to a healthy PDS, {report.SPREAD}", ("", "p50 ms", "p99 ms", "failed")
    )
    for position, name in enumerate(("alone", "90 % to a hanging PDS")):
        phases = [each[position] for each in rounds]
        table.add_row(
            name,
            report.milliseconds(phase.p50 for phase in phases),
            report.milliseconds(phase.p99 for phase in phases),
            str(sum(phase.failed.total() for phase in phases)),
        )
    table.add_section()
    table.add_row(
        f"ratio (goal: at most {GOAL:g})",
        report.spread((beside.p50 / alone.p50 for alone, beside in rounds), ".2f"),
        report.spread((beside.p99 / alone.p99 for alone, beside in rounds), ".2f"),
        "",
    )
    console.print(table)
    ended = sum((beside.hanging for _, beside in rounds), Counter[str]())
    console.print(f"requests to the hanging PDS that ended within the rounds: {dict(ended)}\n")


def _print_sockets(console: Console, hosts: int, sockets: Sockets) -> None:
    table = report.table(f"Sockets: a GET from each of {hosts} hosts", ("", "sockets", "bound"))
    parts = f"{MAX_IDLE} idle + {sockets.bound - MAX_IDLE} workers"
    table.add_row("open at once, at most", str(sockets.most), f"{sockets.bound} ({parts})")
    table.add_row("open after the last answer", str(sockets.left), str(MAX_IDLE))
    table.add_row("open after closing", str(sockets.closed), "0")
    console.print(table)
    console.print(f"{sockets.seconds:.1f} s, {sockets.failed.total()} failed")


def faults(rounds: list[Round], sockets: Sockets) -> list[str]:
    """What must not happen, and did."""
    failed = sum((phase.failed for each in rounds for phase in each), Counter[str]())
    failed += sockets.failed
    found = [f"{why} ({n} times)" for why, n in failed.most_common(10)]
    if not sockets.within_bound:
        found.append("the socket bound is broken")
    return found


def _arguments() -> tuple[Plan, int]:
    parser = argparse.ArgumentParser(prog="python -m bench.egress", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version, for CI")
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}, quick {QUICK.rounds}")
    parser.add_argument("--hosts", type=int, help=f"default {HOSTS}, quick {QUICK_HOSTS}")
    given = parser.parse_args()
    plan, hosts = (QUICK, QUICK_HOSTS) if given.quick else (FULL, HOSTS)
    return replace(plan, rounds=given.rounds or plan.rounds), given.hosts or hosts


def _log_problems_only() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def _main() -> int:
    plan, hosts = _arguments()
    _log_problems_only()
    # A broken bound must be counted, not end in "too many open files" at once.
    allow_open_files(bound_of(Config()) + SPARE_FILES)
    rounds, sockets = await _measure(plan, hosts)
    console = report.output()
    _print(console, plan, hosts, rounds, sockets)
    return report.verdict(console, faults(rounds, sockets))


if __name__ == "__main__":
    sys.exit(run(_main))

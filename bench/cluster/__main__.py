"""``python -m bench.cluster``: each part in turn, or those named; or faults at random.

Exits with 1 when a picture is fetched twice in steady state, or a request fails; with faults, when
anything wrong is served, or a decision is lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from bench.client import percentile
from bench.cluster import costs, faults, hot, loss, scaling, steady
from bench.cluster.faults_report import show_faults
from bench.cluster.ground import CLIENTS, PRESETS, Plan, open_ground
from bench.cluster.members import LEASE
from bench.pictures import Size
from bench.processes import run
from bench.report import milliseconds, output, print_settings, progress, spread, table

FULL = Plan()
QUICK = replace(FULL, pictures=30, size=Size(400, 300), hot_seconds=4)
QUICK = replace(QUICK, decisions=10, deaths=1, rounds=2)

PARTS = ("steady", "hot", "loss", "decisions", "hits", "shared", "scaling")

QUICK_PARTS = tuple(part for part in PARTS if part not in ("hits", "scaling"))
"""Without those that take minutes."""


async def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a small version, for CI")
    parser.add_argument("--nodes", type=int, help=f"default {FULL.nodes}")
    parser.add_argument("--pictures", type=int, help=f"default {FULL.pictures}")
    parser.add_argument("--store", default="", help="that nodes share: its URL, or seaweedfs")
    parser.add_argument("--faults", type=int, metavar="N", help="N faults in the place of parts")
    parser.add_argument("--long", action="store_true", help="the first fault lasts ten minutes")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of faults and load")
    given = parser.parse_args()
    if given.faults:
        return await _faults(given.faults, given.seed, is_long=given.long)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    plan = QUICK if given.quick else FULL
    plan = replace(
        plan,
        nodes=given.nodes or plan.nodes,
        pictures=given.pictures or plan.pictures,
        store=given.store,
    )
    console = output()
    print_settings(
        console,
        {
            "nodes": f"{plan.nodes}, with {plan.store or 'a disk each'}",
            "pictures": f"{plan.pictures} of {plan.size}, {len(PRESETS)} presets of each",
            "load": f"{plan.at_once} pictures at once, all presets by {CLIENTS} clients each",
            "PDS": f"answers after {plan.latency * 1000:g} ms",
        },
    )
    failures: list[str] = []
    for part in given.parts or (QUICK_PARTS if given.quick else PARTS):
        with tempfile.TemporaryDirectory(prefix="imageproxy-") as folder:
            failures += await _PRINTED[part](Path(folder), plan)
    for failure in failures:
        console.print(f"FAILED {failure}")
    return 1 if failures else 0


async def _faults(count: int, seed: int, *, is_long: bool) -> int:
    console = output()
    print_settings(
        console,
        {
            "nodes": f"{faults.NODES}, PostgreSQL, SeaweedFS, HAProxy; lease {LEASE:g} s",
            "load": f"{faults.CLIENTS} clients, {faults.DECIDERS} moderators",
            "faults": f"{count}, {faults.LEAST:g} to {faults.MOST:g} s each, seed {seed}",
        },
    )
    with tempfile.TemporaryDirectory(prefix="imageproxy-") as folder, progress(count + 1) as bar:

        def note(text: str) -> None:
            bar.update(bar.task_ids[0], description=text, advance=1)

        found = await faults.run_faults(Path(folder), count, seed, note, is_long=is_long)
    show_faults(console, found)
    return 1 if found.wrong else 0


async def _steady(folder: Path, plan: Plan) -> list[str]:
    rows = table(
        "Steady state: getBlob per picture",
        ("balancer", "new pictures", "the same again", "pictures/s", "failed"),
    )
    failures = []
    count = plan.pictures
    async with open_ground(folder, plan, count * len(steady.FRONTS)) as ground:
        for position, front in enumerate(steady.FRONTS):
            pictures = range(position * count, (position + 1) * count)
            found = await steady.steady(ground, front, pictures)
            rows.add_row(
                front,
                f"{found.fetches:.3f}",
                f"{found.again:.3f}",
                f"{found.rate:.1f}",
                _reasons(found.failed),
            )
            if found.failed:
                failures.append(f"{front}: {found.failed.total()} requests in steady state")
            # The last is there to be compared with.
            if front in ("haproxy", "nginx") and (found.fetches != 1 or found.again):
                failures.append(f"{front}: a picture was fetched twice in steady state")
    output().print(rows)
    return failures


async def _hot(folder: Path, plan: Plan) -> list[str]:
    rows = table(
        "A hot picture: one URL",
        (
            "balancer",
            "share of each node",
            "CPUs of each",
            "getBlob",
            "answers/s",
            "p99 ms",
            "failed",
        ),
    )
    failures = []
    async with open_ground(folder, plan, len(hot.FRONTS)) as ground:
        for number, front in enumerate(hot.FRONTS):
            found = await hot.hot(ground, front, number)
            rows.add_row(
                front,
                " ".join(f"{share:.0%}" for share in found.shares),
                " ".join(f"{cpu:.2f}" for cpu in found.cpu),
                str(found.fetches),
                f"{found.rate:.0f}",
                f"{found.p99 * 1000:.1f}",
                str(found.failed),
            )
            if found.failed:
                failures.append(f"{front}: {found.failed} requests for a hot picture")
    output().print(rows)
    return failures


async def _loss(folder: Path, plan: Plan) -> list[str]:
    rows = table(
        "A loss and a return: getBlob per picture",
        (
            "balancer",
            "before",
            "by loss",
            "by return",
            "hits before, during, after",
            "answers",
            "failed",
        ),
    )
    failures = []
    for position, front in enumerate(loss.FRONTS):
        own = folder / str(position)
        own.mkdir()
        async with open_ground(own, plan, plan.pictures) as ground:
            found = await loss.loss(ground, front, range(plan.pictures))
        rows.add_row(
            front,
            f"{found.before:.3f}",
            f"{found.by_loss:.3f}",
            f"{found.by_return:.3f}",
            f"{found.hits_before:.1%} {found.hits_during:.1%} {found.hits_after:.1%}",
            str(found.answers),
            _reasons(found.failed),
        )
        if found.failed:
            failures.append(f"{front}: {found.failed.total()} requests over a loss")
    output().print(rows)
    return failures


async def _decisions(folder: Path, plan: Plan) -> list[str]:
    rows = table(
        f"A block, from the call until it is in force everywhere: {plan.nodes} nodes, lease "
        f"{costs.LEASE:g} s",
        ("", "blocks", "p50 ms", "p99 ms", "goal: p99 ms"),
    )
    found = await costs.decisions(folder, plan)
    for name, seconds, goal in (
        ("every node healthy", found.healthy, 250.0),
        ("a node killed just before", found.dead, (costs.LEASE + 1) * 1000),
    ):
        p50, p99 = (f"{percentile(seconds, share) * 1000:.0f}" for share in (0.5, 0.99))
        rows.add_row(name, str(len(seconds)), p50, p99, f"< {goal:.0f}")
    output().print(rows)
    return []


async def _hits(folder: Path, plan: Plan) -> list[str]:
    rows = table(
        f"A hit from memory with what runs beside it, {plan.rounds} batches of {costs.HOT} in turn",
        ("", "cluster off", "cluster on", "on / off", "goal"),
    )
    found = await costs.hits(folder, plan)
    rows.add_row(
        "thousand instructions, the least batch",
        *(f"{min(each) / 1e3:.1f}" for each in (found.off, found.on)),
        f"{found.ratio:.4f}",
        "<= 1.02",
    )
    rows.add_row(
        "the same, every batch",
        *(spread((each / 1e3 for each in values), ".1f") for values in (found.off, found.on)),
        spread(found.ratios, ".3f"),
        "",
    )
    rows.add_row(
        "ms CPU a second of a node that nobody asks",
        *(f"{each * 1e3:.1f}" for each in (found.idle_off, found.idle_on)),
        "",
        "",
    )
    output().print(rows)
    return []


async def _shared(folder: Path, plan: Plan) -> list[str]:
    rows = table(
        f"A result that another node has made: {plan.size}, a PDS {plan.near * 1000:g} ms away",
        ("", "ms", "CPU ms"),
    )
    found = await costs.shared(folder, plan)
    for name, seconds, cpu in (
        ("taken from the store", found.taken, found.taken_cpu),
        ("made again", found.made, found.made_cpu),
    ):
        rows.add_row(name, milliseconds(seconds), f"{cpu * 1000:.1f}")
    rows.add_row(
        "taken / made",
        f"{costs.ratio(found.taken, found.made):.2f}",
        f"{found.taken_cpu / found.made_cpu:.2f}",
    )
    output().print(rows)
    return []


async def _scaling(folder: Path, plan: Plan) -> list[str]:
    rows = table(
        "New pictures a second, nodes with a core each",
        ("nodes", "real, by CPU time", "the same, simulated", "getBlob", "steady, simulated"),
    )
    found = await scaling.scaling(folder, plan)
    for nodes, rate in found.batch.items():
        real = found.real.get(nodes)
        rows.add_row(
            str(nodes),
            f"{real.rate:.1f}" if real else "",
            f"{rate:.1f}",
            f"{real.fetches:.3f}" if real else "",
            f"{found.steady[nodes]:.1f}",
        )
    output().print(rows)
    output().print(f"a picture costs {found.real[1].cost * 1000:.0f} ms of one node's CPU")
    return []


def _reasons(failed: Counter[str]) -> str:
    return ", ".join(f"{reason}: {number}" for reason, number in failed.items()) or "0"


_PRINTED = {
    "steady": _steady,
    "hot": _hot,
    "loss": _loss,
    "decisions": _decisions,
    "hits": _hits,
    "shared": _shared,
    "scaling": _scaling,
}


if __name__ == "__main__":
    sys.exit(run(_main))

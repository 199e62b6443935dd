"""What a miss costs the main process: CPU time, without that of the image workers.

Each miss is another blob of about 500 KB of one account, so that it is a fetch, a transform in a
worker, a write to disk and an answer. With ``--of FOLDER`` another checkout, with a ``.venv`` of
its own, takes turns with this one: compare those figures, for they are of one time and machine.
With ``--memory`` it tells what the whole service holds after them (PSS), and when it is at rest.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import trio
from rich.console import Console

from bench import report
from bench.client import closed_loop
from bench.images import PRESET
from bench.pictures import Size
from bench.processes import ROOT, BenchError, Server, proxy, pss_bytes, run, until, upstream
from bench.upstream import account
from proxy.cache.layout import IMAGES

SIZE = Size(1500, 1100)
"""About 500 KB."""

CONNECTIONS = 8
WARM = 32
"""Misses before those that count."""

REST_SECONDS = 70
"""After so long the service and its workers have given back what they keep free."""

Found = dict[str, list[float]]
"""Figures by checkout."""


def own_cpu_seconds(pid: int) -> float:
    """CPU time of a process without its children (proc_pid_stat(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


async def _misses(server: Server, images: Path, paths: Iterator[str], count: int) -> float:
    """Seconds of CPU of each of ``count`` misses, until they are on disk."""
    files = _files(images)
    before = own_cpu_seconds(server.process.pid)
    some = (next(paths) for _ in range(count))
    result = await closed_loop(server.port, some, connections=CONNECTIONS, state="miss")
    if result.errors:
        raise BenchError(f"misses failed: {dict(result.errors)}")

    async def written() -> bool:  # the server is not asked: that would be part of its time
        return _files(images) >= files + count

    await until(written, "the results to be on disk")
    return (own_cpu_seconds(server.process.pid) - before) / count


async def _measure(
    checkouts: dict[str, Path], rounds: int, count: int, *, with_memory: bool
) -> tuple[Found, Found]:
    """Seconds of CPU of each round; and bytes after all of them, and at rest, if asked for."""
    found: Found = {name: [] for name in checkouts}
    memory: Found = {name: [] for name in checkouts}
    steps = (rounds + 1) * len(checkouts)
    with report.progress(steps) as bar, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            manifest = await stack.enter_async_context(
                upstream(folder, blobs=WARM + rounds * count, size=SIZE, latency=0.0)
            )
            servers: dict[str, tuple[Server, Path, Iterator[str]]] = {}
            for name, checkout in checkouts.items():
                server = await stack.enter_async_context(
                    proxy(folder, name, manifest.port, checkout)
                )
                await server.ready()
                paths = iter([f"/img/{PRESET}/plain/{account(0)}/{cid}" for cid in manifest.cids])
                servers[name] = server, folder / f"{name}-cache" / IMAGES, paths
                await _misses(*servers[name], WARM)
                bar.advance(bar.task_ids[0])
            for _ in range(rounds):
                for name, served in servers.items():
                    found[name].append(await _misses(*served, count))
                    bar.advance(bar.task_ids[0])
            for seconds in (0, REST_SECONDS) if with_memory else ():
                await trio.sleep(seconds)
                for name, (server, *_) in servers.items():
                    memory[name].append(pss_bytes(server.process.pid))
    return found, memory


def _print(console: Console, found: Found) -> None:
    table = report.table("The main process over misses", ("", "CPU ms a miss"))
    for name, seconds in found.items():
        table.add_row(name, report.milliseconds(seconds))
    console.print(table)
    if len(found) == 2:
        here, there = found.values()
        ratios = [one / other for one, other in zip(here, there, strict=True)]
        console.print(
            f"this / other: {report.spread(ratios, '.2f')}; medians "
            f"{median(here) / median(there):.2f}"
        )


async def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.miss", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version")
    parser.add_argument("--rounds", type=int, help="default 7, quick 2")
    parser.add_argument("--of", type=Path, metavar="FOLDER", help="another checkout to compare")
    parser.add_argument("--memory", action="store_true", help="tell the memory too; a minute more")
    given = parser.parse_args()
    rounds, count = given.rounds or (2 if given.quick else 7), 30 if given.quick else 150
    checkouts = {"this": ROOT} | ({"other": given.of.resolve()} if given.of else {})
    found, memory = await _measure(checkouts, rounds, count, with_memory=given.memory)
    console = report.output()
    _print(console, found)
    if given.memory:
        table = report.table("The service after them, PSS", ("", "MB", "MB at rest"))
        for name, each in memory.items():
            table.add_row(name, *(f"{held / 1e6:.0f}" for held in each))
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(run(_main))

"""Instructions of a fixed hit and a fixed miss, held to the figures in ``instructions.json``.

    python -m bench.instructions            # exits with 1 beyond a tenth over a figure
    python -m bench.instructions --renew    # writes the figures of this Python version anew

Times cannot be compared between machines; these can, nearly. Everything is counted by callgrind,
which runs the program on a CPU of its own: it has no vector instructions beyond AVX2, whatever the
machine has, and no kernel or container can forbid it, as many forbid the counters of ``perf``. What
is left is another libc, codec or interpreter of the same version, which choose their routines by
the CPU (ifuncs); that, and where the garbage collector and chores fall, is what the tenth is for.

A hit is from memory, on a kept-alive connection. A miss is counted in two parts: the main process,
with the fetch, the hash, and the writes, while the image workers run outside of callgrind; and the
pixels, in a process of their own.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import trio
from rich.progress import Progress

from bench import counted, report
from bench.client import Connection
from bench.images import Images
from bench.pictures import Size
from bench.processes import BenchError, Server, run, started, until, upstream
from bench.upstream import LOOPBACK
from proxy.cache.layout import IMAGES
from tests.ports import free_port

FIGURES = Path(__file__).with_suffix(".json")
MARGIN = 1.1

SOURCE = Size(1400, 1050)
"""Of the fetched pictures: about 450 KB."""

BATCHES = 3
"""The least of them counts: chores and the garbage collector only add."""

TRIES = 3
"""A machine that others keep busy takes longer for a batch, and more chores fall into it: what is
over its figure is counted again, and the least counts."""

HITS = 400
MISSES = 10
"""Of a batch."""

WARM = 4
"""Misses before those that count."""

PATIENCE = 300.0
"""Seconds for what callgrind makes fifty times as slow."""

HIT, MISS, PIXELS = "hit from memory", "miss, main process", "miss, pixels, {}"

Counts = dict[str, float]
"""Instructions by what they are for."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What counting needs.

    Attributes:
        valgrind: the program.
        library: of ``counted.c``.
    """

    valgrind: str
    library: Path

    def command(self, dumps: Path, *arguments: str) -> list[str]:
        """``python -m bench.counted`` under callgrind, whose dumps begin with ``dumps``."""
        callgrind = ("--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={dumps}")
        python = (sys.executable, "-m", "bench.counted", str(self.library))
        return [self.valgrind, *callgrind, *python, *arguments]


def tools(folder: Path) -> Tools:
    """Find valgrind, and compile the library into ``folder``.

    Raises:
        BenchError: valgrind or a C compiler is missing.
    """
    valgrind, compiler = shutil.which("valgrind"), shutil.which("cc")
    if valgrind is None or compiler is None:
        raise BenchError("needs valgrind and a C compiler; on Debian: apt install valgrind gcc")
    library = folder / "counted.so"
    source = Path(__file__).with_name("counted.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{source.name} cannot be compiled\n{done.stderr}")
    return Tools(valgrind, library)


def total(dumps: Path, number: int) -> int:
    """Instructions of what was counted, by its number from 1."""
    dump = dumps.with_name(f"{dumps.name}.{number}")
    found = re.search(r"^summary: (\d+)", dump.read_text(), re.MULTILINE)
    if found is None:
        raise BenchError(f"{dump.name} of callgrind has no sum")
    return int(found[1])


async def of_the_service(tools: Tools, folder: Path, bar: Progress) -> Counts:
    """Of a hit, and of a miss in the main process."""
    (task,) = bar.task_ids
    blobs = WARM + BATCHES * MISSES
    async with (
        upstream(folder, blobs=blobs, size=SOURCE, latency=0) as manifest,
        counted_service(tools, folder, manifest.port) as (server, dumps),
    ):
        connection = Connection(server.port)
        paths = Images(manifest.cids, blobs).hot
        for path in paths[:WARM]:
            await _ask(connection, path, "miss")
        await _until_written(folder, WARM)
        for done in range(WARM, blobs, MISSES):
            bar.update(task, advance=1, description=MISS)
            async with counting(server):
                for path in paths[done : done + MISSES]:
                    await _ask(connection, path, "miss")
                await _until_written(folder, done + MISSES)
        for path in paths:
            await _ask(connection, path, "hit")
        for _ in range(BATCHES):
            bar.update(task, advance=1, description=HIT)
            async with counting(server):
                for number in range(HITS):
                    await _ask(connection, paths[number % len(paths)], "hit")
        connection.close()
    misses, hits = (
        min(total(dumps, number) for number in range(first, first + BATCHES))
        for first in (1, 1 + BATCHES)
    )
    return {HIT: hits / HITS, MISS: misses / MISSES}


@asynccontextmanager
async def counted_service(
    tools: Tools, folder: Path, directory_port: int, extra: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[tuple[Server, Path]]:
    """The service under callgrind, ready, and where its dumps are.

    Args:
        extra: what its environment has besides.
    """
    port, dumps, log = free_port(), folder / "service", folder / "service.log"
    environment = {
        "PYTHONHASHSEED": "0",
        "IMAGE_PROXY_SERVER__BIND": f"{LOOPBACK}:{port}",
        "IMAGE_PROXY_IDENTITY__PLC_URL": f"http://{LOOPBACK}:{directory_port}",
        "IMAGE_PROXY_FETCH__ALLOW_HTTP": "true",
        "IMAGE_PROXY_FETCH__ALLOW_PRIVATE_HOSTS": "true",
        "IMAGE_PROXY_FETCH__TIMEOUT": "60",
        "IMAGE_PROXY_CACHE__PATH": str(folder / "cache"),
        **extra,
    }
    command = tools.command(dumps, "serve")
    async with started(
        command, log=log, stdout=subprocess.PIPE, environment=environment
    ) as process:
        server = Server(process, port, log)
        await server.ready(PATIENCE)
        yield server, dumps


@asynccontextmanager
async def counting(server: Server) -> AsyncIterator[None]:
    """What the service does in the block is counted, and dumped."""
    await _signal(server, signal.SIGUSR1, counted.STARTED)
    yield
    await _signal(server, signal.SIGUSR2, counted.STOPPED)


async def _signal(server: Server, number: signal.Signals, expected: bytes) -> None:
    assert server.process.stdout is not None
    server.process.send_signal(number)
    with trio.fail_after(PATIENCE):
        said = await server.process.stdout.receive_some(1)
    if said != expected:
        raise BenchError(f"the counted service said {said!r}, not {expected!r}")


async def _ask(connection: Connection, path: str, state: str) -> None:
    answer = await connection.get(path)
    if (answer.status, answer.headers.get("x-cache")) != (200, state):
        raise BenchError(f"{path}: {answer.status}, {answer.headers.get('x-cache')}, not {state}")


async def _until_written(folder: Path, count: int) -> None:
    """Every result is a file; asking the service for it would be counted."""

    async def is_written() -> bool:
        return sum(each.is_file() for each in (folder / "cache" / IMAGES).rglob("*")) >= count

    await until(is_written, f"{count} results to be written", PATIENCE)


async def of_the_pixels(tools: Tools, folder: Path, bar: Progress) -> Counts:
    """Of the pixels of each job."""
    (task,) = bar.task_ids
    dumps = folder / "pixels"
    command = tools.command(dumps, "pixels", *counted.JOBS)
    environment = {"PYTHONHASHSEED": "0"}
    with trio.fail_after(PATIENCE):
        async with started(command, log=folder / "pixels.log", environment=environment) as process:
            await process.wait()
    if process.returncode:
        raise BenchError((folder / "pixels.log").read_text())
    bar.advance(task)
    return {PIXELS.format(name): total(dumps, at) for at, name in enumerate(counted.JOBS, start=1)}


async def count() -> Counts:
    """All of them, the two programs at once."""
    found: Counts = {}
    with tempfile.TemporaryDirectory() as name, report.progress(2 * BATCHES + 1) as bar:
        folder = Path(name)
        with_tools = tools(folder)

        async def fill(part: Callable[[Tools, Path, Progress], Awaitable[Counts]]) -> None:
            found.update(await part(with_tools, folder, bar))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill, of_the_service)
            nursery.start_soon(fill, of_the_pixels)
    return {name: found[name] for name in (HIT, MISS, *map(PIXELS.format, counted.JOBS))}


def this_python() -> str:
    """What the figures are kept by: instructions differ by the interpreter's version."""
    return f"{'.'.join(platform.python_version_tuple()[:2])} {platform.machine()}"


def over(found: Mapping[str, float], kept: Mapping[str, float]) -> list[str]:
    """What is beyond the margin over the kept figure, or has none."""
    return [name for name, value in found.items() if value > MARGIN * kept.get(name, 0)]


def _arguments(words: Sequence[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--renew", action="store_true", help=f"write {FIGURES.name} anew")
    return bool(parser.parse_args(words).renew)


async def _main() -> int:
    renew = _arguments()
    every: dict[str, Counts] = json.loads(FIGURES.read_text())
    kept = every.get(this_python(), {})
    found = await count()
    for _ in range(TRIES - 1):
        if not kept or not over(found, kept):
            break
        again = await count()
        found = {name: min(value, again[name]) for name, value in found.items()}
    console = report.output()
    table = report.table(f"Instructions, {this_python()}", ("", "thousands", "kept", "ratio"))
    for name, value in found.items():
        known = kept.get(name)
        old = ("", "") if known is None else (f"{known / 1e3:,.0f}", f"{value / known:.3f}")
        table.add_row(name, f"{value / 1e3:,.0f}", *old)
    console.print(table)
    if renew:
        every[this_python()] = {name: round(value) for name, value in found.items()}
        FIGURES.write_text(json.dumps(dict(sorted(every.items())), indent=2) + "\n")
        console.print(f"renewed: {FIGURES.name}")
        return 0
    beyond = over(found, kept)
    for name in beyond:
        why = "more than a tenth over the figure" if name in kept else "no figure"
        console.print(f"FAILED {name}: {why}; a change that is meant: --renew", style="red")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(run(_main))

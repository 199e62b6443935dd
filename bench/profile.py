"""Flame graphs of the service while it answers hits, and while it answers misses.

    ./run profile [--seconds 10]

writes ``build/profile-hit.svg`` and ``build/profile-miss.svg``. py-spy must be allowed to attach:
as root, or where ``kernel.yama.ptrace_scope`` is 0. Pictures are processed in threads here, so
that a miss is in one graph from end to end.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench import report
from tests.processes import SERVE, Client, Server, Upstream, serve, upstream
from tests.prometheus import path, picture

FOLDER = Path("build")

CONNECTIONS = 2
"""For hits: so few that even a short graph asks for more than Hypercorn answers over each."""

CLIENTS = 8
"""Clients that ask for misses at once."""


async def hits(server: Server, internet: Upstream, ends: float) -> None:
    """The same image over connections that stay open until the server has had enough of them."""
    target = path(*internet.add_blob(picture(0)), "avatar_thumbnail")

    async def ask() -> None:
        while trio.current_time() < ends:
            async with Client(server.port) as client:
                while client.is_kept and trio.current_time() < ends:
                    await client.send(target)
                    assert (await client.reply()).status == 200

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(ask)


async def misses(server: Server, internet: Upstream, ends: float) -> None:
    """A new blob each time."""
    numbers = count()

    async def ask() -> None:
        while trio.current_time() < ends:
            blob = internet.add_blob(picture(next(numbers)))
            assert (await server.get(path(*blob, "avatar_small"))).status == 200

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(ask)


Load = Callable[[Server, Upstream, float], Awaitable[None]]


async def record(name: str, load: Load, seconds: float, program: str) -> Path:
    """One graph.

    Raises:
        subprocess.CalledProcessError: py-spy may not attach.
    """
    file = FOLDER / f"profile-{name}.svg"
    with TemporaryDirectory() as cache:
        async with upstream() as internet:
            environment = internet.environment(Path(cache), PROCESS__ISOLATION="thread")
            async with serve(SERVE, environment) as server, trio.open_nursery() as nursery:
                nursery.start_soon(load, server, internet, trio.current_time() + seconds + 1)
                command = [program, "record", "--threads", "--pid", str(server.pid)]
                command += ["--duration", f"{seconds:.0f}", "--output", str(file)]
                await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    return file


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    seconds = parser.parse_args().seconds
    program = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    FOLDER.mkdir(exist_ok=True)
    try:
        with report.progress(2) as bar:
            files = []
            for name, load in (("hit", hits), ("miss", misses)):
                files.append(trio.run(partial(record, name, load, seconds, program)))
                bar.advance(bar.task_ids[0])
    except FileNotFoundError:
        print("profile: py-spy is not installed", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"profile: {error.stderr.decode().strip()}", file=sys.stderr)
        return 1
    for file in files:
        print(f"flame graph: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

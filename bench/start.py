"""What it costs to start a command: those that answer from arguments or a file alone, and a server.

Each command runs in turn with ``python -c pass``, for several rounds, in a new process with a
cache folder of its own; a server until ``/readyz`` answers 200, without its image workers. Prints
the spread of the CPU time, of the time until the first answer, and of their ratios to the empty
program of the same round; exits with 1 when a command failed.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing

from rich.console import Console

from bench import report
from bench.miss import own_cpu_seconds
from bench.pictures import cid_of
from bench.processes import ROOT, START_SECONDS
from bench.upstream import LOOPBACK, account
from proxy.config import Config, load_config
from proxy.model.identifiers import Did
from proxy.model.selection import Selection
from proxy.moderation.configured_store import folder_store_of
from tests.ports import free_port

ROUNDS, QUICK = 15, 5

BLOCKS = 10
"""Blocks that are listed."""

LOOK_SECONDS = 0.002
"""Between two looks whether a server listens."""

EMPTY, SERVE = "python -c pass", "imageproxy serve"


Found = dict[str, list[float]]
"""Seconds of each round, by command."""


def main() -> None:
    """``./run bench start``"""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rounds")
    rounds = QUICK if parser.parse_args().quick else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        environment = {"IMAGE_PROXY_CACHE__PATH": folder, "PATH": os.environ["PATH"]}
        _make_store(load_config(environment=environment))
        commands = {
            EMPTY: ["-c", "pass"],
            **{
                f"imageproxy {' '.join(arguments[:2])}": ["-m", "proxy", *arguments]
                for arguments in (
                    ["--version"],
                    ["url", "avatar", account(0), cid_of(b"a picture")],
                    ["blocks", "list"],
                )
            },
        }
        cpu: Found = {name: [] for name in (*commands, SERVE)}
        wall: Found = {EMPTY: [], SERVE: []}
        with report.progress(rounds) as bar:
            for _ in range(rounds):
                for name, arguments in commands.items():
                    begun = time.perf_counter()
                    cpu[name].append(_cpu_of(arguments, environment))
                    if name == EMPTY:
                        wall[name].append(time.perf_counter() - begun)
                answered, spent = _first_answer(environment)
                wall[SERVE].append(answered)
                cpu[SERVE].append(spent)
                bar.advance(bar.task_ids[0])
    console = report.output()
    report.print_settings(console, {"rounds": rounds})
    _print(console, "CPU", cpu)
    _print(console, "From the start to the first answer", wall)


def _print(console: Console, title: str, found: Found) -> None:
    table = report.table(f"{title}, {report.SPREAD}", ("", "ms", f"over {EMPTY}"))
    for name, seconds in found.items():
        ratios = [each / empty for each, empty in zip(seconds, found[EMPTY], strict=True)]
        table.add_row(name, report.milliseconds(seconds), report.spread(ratios))
    console.print(table)


def _make_store(config: Config) -> None:
    with closing(folder_store_of(config)) as store:
        store.make()
        entries = [(Selection(Did(account(number))), "") for number in range(BLOCKS)]
        store.record("block", entries, by="bench", owner="")


def _first_answer(environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds until a new server has answered, and of its own CPU until then."""
    port = free_port()
    command = [sys.executable, "-m", "proxy", "serve", "--bind", f"{LOOPBACK}:{port}"]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        answer = _answer(process, port)
        answered, spent = time.perf_counter() - begun, own_cpu_seconds(process.pid)
    finally:
        process.terminate()
        process.wait()
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"a server answered {answer!r}")
    return answered, spent


def _answer(process: subprocess.Popen[bytes], port: int) -> bytes:
    """What ``/readyz`` answers as soon as somebody listens."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            with socket.create_connection((LOOPBACK, port), timeout=START_SECONDS) as connection:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: bench\r\n\r\n")
                return connection.recv(4096)
        except ConnectionRefusedError:
            time.sleep(LOOK_SECONDS)
    raise SystemExit("a server does not start")


def _cpu_of(arguments: list[str], environment: dict[str, str]) -> float:
    """Seconds of CPU, user and system, that a Python spends on ``arguments``."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()

"""A load that costs next to nothing: wrk, and what it found. Its own script tells it, in JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from bench.processes import BenchError
from bench.upstream import LOOPBACK

SCRIPT = Path(__file__).with_suffix(".lua")

TIMEOUT = 2
"""As wrk has it."""

SPARE_SECONDS = 30.0
"""What wrk may take beside the time of the load."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a load brought.

    Attributes:
        answers: how many.
        rate: of them a second.
        p50, p99: seconds.
        failed: how many, by kind: ``status`` is 400 or more, the others are of the connection.
    """

    answers: int
    rate: float
    p50: float
    p99: float
    failed: Counter[str]


def wrk_program() -> str:
    """Its path.

    Raises:
        BenchError: it is not installed.
    """
    program = shutil.which("wrk")
    if program is None:
        raise BenchError("no wrk here, which makes the load; on Debian: apt install wrk")
    return program


async def load(
    port: int, paths: Sequence[str], *, connections: int, seconds: int, timeout: int = TIMEOUT
) -> Load:
    """GETs of ``paths`` in turn, one at a time on each of the kept-alive connections.

    Args:
        timeout: seconds, after which a request counts as failed.

    Raises:
        BenchError: wrk is missing, or fails.
        trio.TooSlowError: it does not end.
    """
    command = [
        *(wrk_program(), "--threads", "1", "--connections", str(connections)),
        *("--duration", f"{seconds}s", "--timeout", f"{timeout}s", "--script", str(SCRIPT)),
        *(f"http://{LOOPBACK}:{port}", "--", *paths),
    ]
    with trio.fail_after(seconds + SPARE_SECONDS):
        done = await trio.run_process(
            command, capture_stdout=True, check=False, stderr=subprocess.STDOUT
        )
    said = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise BenchError(f"wrk ended with {done.returncode}\n{said}")
    found = json.loads(said.splitlines()[-1])
    return Load(
        found["requests"],
        found["requests"] / found["seconds"],
        found["p50"],
        found["p99"],
        Counter({kind: count for kind, count in found["failed"].items() if count}),
    )

"""What a server takes: memory, descriptors, threads, tasks, files; and whether that is too much."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from bench.processes import BenchError, children, pss_bytes

PATIENCE = 10.0
"""Seconds for a process to tell how many tasks it has."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a server took at a moment, all of its processes together.

    Attributes:
        memory: bytes, what several processes share counted once.
        tasks: of Trio; nan where nobody asked.
        processes: that serve, and that decode and encode.
    """

    memory: float
    descriptors: float
    threads: float
    tasks: float
    processes: float


LIMITS: Mapping[str, tuple[float, float]] = {
    "memory": (1.25, 40e6),
    "descriptors": (1.0, 24),
    "threads": (1.0, 8),
    "tasks": (1.0, 8),
    "processes": (1.0, 0),
}
"""At the end at most the first times what it was at the start, and the second more."""


def beyond(start: Taken, end: Taken) -> Iterator[str]:
    """What is taken at the end that was not at the start, beyond ``LIMITS``."""
    for name, (factor, more) in LIMITS.items():
        before, after = getattr(start, name), getattr(end, name)
        if not after <= before * factor + more:
            yield f"{name}: {before:,.0f} at the start, {after:,.0f} at the end"


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    return [pid, *(each for child in children(pid) for each in tree(child))]


def taken(pid: int, tasks: float = float("nan")) -> Taken:
    """What a server takes now, but for its tasks. Blocks."""
    pids = tree(pid)
    descriptors = threads = 0
    for each in pids:
        with suppress(OSError):  # it has ended meanwhile
            descriptors += len(os.listdir(f"/proc/{each}/fd"))
            threads += len(os.listdir(f"/proc/{each}/task"))
    return Taken(pss_bytes(pid), descriptors, threads, tasks, len(pids))


async def tasks_of(pids: list[int], folder: Path) -> int:
    """Trio's tasks in these processes, which ``bench.soak.inside`` tells into ``folder``.

    Raises:
        BenchError: a process does not tell.
    """
    total = 0
    for pid in pids:
        file = folder / str(pid)
        file.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR2)
        with trio.move_on_after(PATIENCE):
            while not file.exists():  # noqa: ASYNC110  # it happens in another process
                await trio.sleep(0.02)
        if not file.exists():
            raise BenchError(f"process {pid} does not tell its tasks")
        total += int(file.read_text())
    return total

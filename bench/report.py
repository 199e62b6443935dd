"""What is printed: the machine, the settings, tables with the spread over rounds, progress."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from proxy.shared.machine import cpus_of_this_process

PACKAGES = ("trio", "hypercorn", "h11", "httpcore2", "pillow")

WIDTH = 120
"""Columns where standard output is no terminal, such as the log of a CI run."""


SPREAD = "median (minimum-maximum)"
"""What ``spread`` shows."""


def spread(values: Iterable[float], form: str = ".1f") -> str:
    """See ``SPREAD``."""
    found = sorted(values)
    if not found:
        return "none"
    low, middle, high = (format(value, form) for value in (found[0], median(found), found[-1]))
    return f"{middle} ({low}-{high})"


def milliseconds(seconds: Iterable[float]) -> str:
    """The spread in ms."""
    return spread(value * 1000 for value in seconds)


def output() -> Console:
    """Standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def verdict(console: Console, faults: Collection[object]) -> int:
    """Print what was wrong, a line each; the exit code of the command."""
    for fault in faults:
        console.print(f"FAILED {fault}", style="red", markup=False)
    return 1 if faults else 0


def machine() -> str:
    """The machine and the interpreter, in a line."""
    cpus = f"{cpus_of_this_process()} CPUs, {platform.system()} {platform.machine()}"
    return f"{cpus}, {platform.python_implementation()} {platform.python_version()}"


def print_settings(console: Console, settings: Mapping[str, object]) -> None:
    """The machine and ``settings``, one line each."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    cpus = f"{os.cpu_count()}, of which this process may use {cpus_of_this_process()}"
    machine = {
        "CPUs": cpus,
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}; {packages}",
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in {**machine, **settings}.items():
        grid.add_row(name, str(value))
    console.print(grid)
    console.print()


def table(title: str, columns: Iterable[str]) -> Table:
    """An empty table; all columns but the first are numbers."""
    found = Table(title=title, title_justify="left", min_width=len(title))
    for position, name in enumerate(columns):
        found.add_column(name, justify="right" if position else "left", no_wrap=True)
    return found


@contextmanager
def progress(total: int) -> Iterator[Progress]:
    """A bar of ``total`` steps on standard error; its first task is to be advanced."""
    bar = Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with bar:
        bar.add_task("start", total=total)
        yield bar

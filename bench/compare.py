"""Two checkouts side by side: the figures of their benchmarks, those of this one over the other's.

    ./run bench compare FOLDER [load] [hits] [isolation] [--pairs 5] [--quick]

FOLDER is another checkout with a virtual environment of its own in ``.venv`` (``./run lint`` there
makes one). Each checkout runs its own benchmarks with its own interpreter, in pairs of one run
each; which one goes first alternates. The figures are read from the tables that the benchmarks
print, so any earlier commit can be compared. A ratio above 1 means that this checkout is better.

Exits with 1 when a request failed, or when a median of the pairs' ratios is below 0.97. With
``--quick`` ratios are not judged: the runs are too short.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import trio
from rich.console import Console

from bench import report
from bench.processes import ROOT, BenchError, inherited, run

LEAST = 0.97
"""Below this ratio a figure is worse."""

PAIRS = 5

BENCHES: Mapping[str, Sequence[str]] = {
    "load": ("--rounds", "1", "--plot", "load.svg"),
    "hits": ("--rounds", "1", "--plot", "hits.svg"),
    "isolation": ("--rounds", "2"),
}
"""The benchmarks, with the options of a full run. Many short runs beat a long one: what is compared
was then measured within a minute or two."""

HIGHER_IS_BETTER = {
    "requests/s": True,
    "CPU us": False,
    "thread": True,
    "sandbox": True,
    "an image": False,  # milliseconds to the last answer of a storm
}
"""The columns that are compared."""

IGNORED = re.compile(r" / |^answers: ")
"""Rows of ratios within one run, and of counts."""

CONTROL = re.compile(r"bare|the same on our connections|nginx alone")
"""Rows of what is not the proxy: they tell how steady the machine was, and are not judged."""

LAUNCH = """
import runpy, sys
from bench import report
spread = report.spread
report.spread = lambda values, form="": spread(values, ".6g")
report.WIDTH = 1000
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Runs a benchmark of either checkout with more digits than a reader wants."""

_SPREAD = re.compile(r"([0-9.e+-]+) \(")


@dataclass(slots=True)
class Figure:
    """One figure of both checkouts, by pair.

    Attributes:
        title: the column that it stands in.
    """

    title: str
    base: list[float] = field(default_factory=list)
    here: list[float] = field(default_factory=list)

    def over(self, here: float, base: float) -> float:
        """A ratio that is above 1 where this checkout is better."""
        better, worse = (here, base) if HIGHER_IS_BETTER[self.title] else (base, here)
        return better / worse if worse else math.nan

    @property
    def ratio(self) -> float:
        """The median over the pairs.

        A machine that is shared changes its speed from minute to minute. The runs of a pair are
        neighbours, so that this changes their ratio less than the ratio of the medians.
        """
        return median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        """Of each pair."""
        return [self.over(*pair) for pair in zip(self.here, self.base, strict=True)]


def figures_of(printed: str) -> Iterator[tuple[str, str, float]]:
    """Row, column and median of each figure in the tables that a benchmark printed."""
    titles: list[str] = []
    for line in printed.splitlines():
        if line.startswith("┃"):
            titles = [cell.strip() for cell in line.split("┃")[1:-1]]
        elif line.startswith("│"):
            row, *cells = (cell.strip() for cell in line.split("│")[1:-1])
            for title, cell in zip(titles[1:], cells, strict=True):
                found = _SPREAD.match(cell)
                if found and title in HIGHER_IS_BETTER and not IGNORED.search(row):
                    yield row, title, float(found[1])


async def _run(checkout: Path, bench: str, options: Sequence[str]) -> str:
    """What one run prints.

    Raises:
        BenchError: it has no figures.
    """
    python = checkout / ".venv" / "bin" / "python"
    if not python.exists():
        raise BenchError(f"{checkout} has no virtual environment: run ./run lint there")
    done = await trio.run_process(
        [str(python), "-c", LAUNCH, f"bench.{bench}", *options],
        cwd=checkout,
        env=inherited(),
        check=False,
        capture_stdout=True,
        capture_stderr=True,
    )
    printed = done.stdout.decode()
    if not any(figures_of(printed)):
        raise BenchError(f"bench {bench} in {checkout}:\n{done.stderr.decode()[-2000:]}")
    return printed


@dataclass(slots=True)
class Comparison:
    """What all runs brought.

    Attributes:
        figures: by benchmark and row, with the column.
        faults: what a benchmark found that must not happen.
    """

    figures: dict[tuple[str, str], Figure] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, bench: str, base: str, here: str) -> None:
        """Take in what both checkouts printed; a figure that one of them lacks is left out."""
        of_base = {(row, title): value for row, title, value in figures_of(base)}
        for row, title, value in figures_of(here):
            if (row, title) in of_base:
                figure = self.figures.setdefault((bench, f"{row}, {title}"), Figure(title))
                figure.base.append(of_base[row, title])
                figure.here.append(value)
        for name, printed in (("base", base), ("here", here)):
            faults = (line for line in printed.splitlines() if line.startswith("FAILED"))
            self.faults += [f"{bench}, {name}: {line.strip()}" for line in faults]


async def _compare(
    base: Path, benches: Sequence[str], pairs: int, quick: bool, note: Callable[[str], None]
) -> Comparison:
    found = Comparison()
    with tempfile.TemporaryDirectory() as scratch:
        for pair in range(pairs):
            for bench in benches:
                options = ["--quick"] if quick else [_in(scratch, each) for each in BENCHES[bench]]
                printed = {}
                # Each goes first as often as second: machines slow down as they warm up.
                for checkout in (base, ROOT) if pair % 2 == 0 else (ROOT, base):
                    name = "here" if checkout is ROOT else "base"
                    note(f"pair {pair + 1}: {bench}, {name}")
                    printed[name] = await _run(checkout, bench, options)
                found.add(bench, **printed)
    return found


def _in(folder: str, option: str) -> str:
    return str(Path(folder, option)) if option.endswith(".svg") else option


def _print(console: Console, base: Path, pairs: int, found: Comparison) -> None:
    settings = {"base": base, "here": ROOT, "pairs": f"{pairs} of one run each, in turn"}
    report.print_settings(console, settings)
    columns = ("", "base", "here", "here / base (of the pairs)")
    table = report.table("Medians; a ratio above 1 is better here", columns)
    for (bench, name), figure in found.figures.items():
        table.add_row(
            f"{bench}: {name}{' (control)' if CONTROL.search(name) else ''}",
            f"{median(figure.base):.4g}",
            f"{median(figure.here):.4g}",
            report.spread(figure.ratios, ".3f"),
        )
    console.print(table)


def _worse(found: Comparison) -> list[str]:
    return [
        f"{bench}: {name} is {figure.ratio:.3f} of the base"
        for (bench, name), figure in found.figures.items()
        if figure.ratio < LEAST and not CONTROL.search(name)
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("base", type=Path, metavar="FOLDER", help="the other checkout")
    parser.add_argument("benches", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--pairs", type=int, help=f"default {PAIRS}, quick 1")
    parser.add_argument("--quick", action="store_true", help="short runs, no verdict")
    given = parser.parse_args()
    if unknown := set(given.benches) - set(BENCHES):
        parser.error(f"there is no {', '.join(sorted(unknown))} to compare")
    return given


async def _main() -> int:
    given = _arguments()
    base, benches = given.base.resolve(), given.benches or list(BENCHES)
    pairs = given.pairs or (1 if given.quick else PAIRS)
    with report.progress(2 * pairs * len(benches)) as bar:
        (task,) = bar.task_ids
        started = False

        def note(what: str) -> None:
            nonlocal started
            bar.update(task, advance=int(started), description=what)
            started = True

        found = await _compare(base, benches, pairs, given.quick, note)
        bar.advance(task)
    console = report.output()
    _print(console, base, pairs, found)
    worse = [] if given.quick else _worse(found)
    return report.verdict(console, [*found.faults, *worse])


if __name__ == "__main__":
    sys.exit(run(_main))

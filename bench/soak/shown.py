"""The tables and the plot of a day."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import plot, report
from bench.soak.day import Found
from bench.soak.watch import LIMITS

KINDS = ("200 hit", "200 miss", "200 coalesced", "304", "404", "422, 400", "502, 504", "503")


def kind(what: str) -> str:
    """The kind of an answer, as it is drawn."""
    return next((each for each in KINDS if what in each.split(", ")), "no answer")


def show(console: Console, found: Found) -> None:
    """What happened, what was answered, and what was taken at the start and at the end."""
    events = report.table(f"{found.seconds:.0f} s", ["", "times"])
    for name, times in found.events.items():
        events.add_row(name, str(times))
    console.print(events)
    answers = report.table("Answers", ["", "number"])
    for what, count in sorted(found.counted.totals().items()):
        answers.add_row(what, f"{count:,}")
    console.print(answers)
    assert found.start is not None
    assert found.end is not None
    columns = ["", "start", "end", "most", "allowed at the end"]
    rows = report.table("Taken by all processes, without requests at start and end", columns)
    for name, (factor, more) in LIMITS.items():
        unit, form = (1e6, ".1f") if name == "memory" else (1, ".0f")
        start, end = (getattr(each, name) for each in (found.start, found.end))
        most = max(getattr(look.taken, name) for look in found.looks)
        values = (start, end, most, start * factor + more)
        label = "memory (PSS), MB" if name == "memory" else name
        shown = ["" if value != value else format(value / unit, form) for value in values]
        rows.add_row(label, *shown)
    console.print(rows)
    recovered = report.spread(found.recovered)
    console.print(f"new accounts found again after the directory is back, s: {recovered}")
    console.print(
        f"bodies compared {found.counted.compared:,}; decisions {found.counted.decided}, failed"
        f" {found.counted.undecided}; lines of the log {found.lines:,}"
    )
    for count, line in found.errors.values():
        console.print(f"error in the log, {count} times: {line}", markup=False)
    console.print(f"wrong: {len(found.wrong)}")


def draw(found: Found, file: Path) -> str:
    """Answers, memory, descriptors and the cache over the day, with what was broken when."""
    figure = plot.figure_of(11, 10)
    if figure is None:
        return plot.MISSING
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 2, 2))
    _draw_answers(axes[0], found)
    at = [look.at for look in found.looks]
    axes[1].plot(at, [look.taken.memory / 1e6 for look in found.looks])
    axes[1].set_ylabel("memory (PSS), MB")
    for name in ("descriptors", "threads", "processes"):
        axes[2].plot(at, [getattr(look.taken, name) for look in found.looks], label=name)
    axes[2].set_ylabel("number")
    axes[2].legend(loc="upper left", fontsize="small")
    axes[3].plot(at, [look.size / 1e6 for look in found.looks])
    axes[3].set_ylabel("cache, MB")
    for each in axes[1:]:
        each.set_ylim(bottom=0)
    for each in axes:
        _shade(each, found, is_named=each is axes[0])
    axes[-1].set_xlabel("s")
    return plot.save(figure, file)


def _draw_answers(axes: Any, found: Found) -> None:
    last = max(second for second, _ in found.counted.answers)
    series: dict[str, Counter[int]] = {}
    for (second, what), count in found.counted.answers.items():
        series.setdefault(kind(what), Counter())[second] += count
    names = [name for name in (*KINDS, "no answer") if name in series]
    values = [[series[name][second] for second in range(last)] for name in names]
    axes.stackplot(range(last), values, labels=names, step="post")
    axes.set_ylabel("answers/s")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names), fontsize="small")


def _shade(axes: Any, found: Found, *, is_named: bool) -> None:
    for trouble in found.troubles:
        since, until = (each - found.began for each in (trouble.since, trouble.until))
        axes.axvspan(since, until, alpha=0.12, color="black", linewidth=0)
    for at, name in found.marks:
        axes.axvline(at, color="black", linewidth=0.5)
        if is_named:
            top = axes.get_ylim()[1]
            axes.text(at, top, name, rotation=90, va="top", ha="right", fontsize="x-small")

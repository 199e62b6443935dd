"""The tables of a fault run."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from bench import report
from bench.client import percentile
from bench.cluster.faults import Found


def show_faults(console: Console, found: Found) -> None:
    """Print them, and everything wrong."""
    rows = report.table(
        f"{sum(len(kind.recovery) for kind in found.kinds.values())} faults in "
        f"{found.seconds:.0f} s",
        (
            "fault",
            "times",
            "requests",
            "200",
            "404",
            "503",
            "no answer",
            "others",
            "ready again, s",
        ),
    )
    total: Counter[str] = Counter()
    for name, kind in sorted(found.kinds.items()):
        total += kind.answers
        recovery = report.spread(kind.recovery, ".1f") if kind.recovery else ""
        rows.add_row(name, str(len(kind.recovery)), *_numbers(kind.answers), recovery)
    rows.add_row("all", "", *_numbers(total), "")
    console.print(rows)
    for name, seconds in (("without a fault", found.healthy), ("during one", found.faulty)):
        if seconds:
            p50, p99 = (percentile(seconds, share) * 1000 for share in (0.5, 0.99))
            console.print(
                f"blocks answered {name}: {len(seconds)}, p50 {p50:.0f} ms, p99 {p99:.0f} ms"
            )
    console.print(
        f"decisions answered {found.decided}, failed {found.failed}; "
        f"bodies compared {found.checked}; requests for what was blocked, refused {found.refused}"
    )
    store: Counter[str] = Counter()
    for series in found.store.values():
        store.update({labels: int(value) for labels, value in series.items()})
    for labels, number in sorted(store.items()):
        console.print(f"requests to the store: {labels}: {number}", highlight=False)
    console.print(f"wrong: {len(found.wrong)}")
    for text in found.wrong:
        console.print(f"FAILED {text}", highlight=False)


def _numbers(answers: Counter[str]) -> list[str]:
    named = ("200", "404", "503", "no answer")
    others = answers.total() - sum(answers[name] for name in named)
    return [f"{answers.total()}", *(f"{answers[name]}" for name in named), str(others)]

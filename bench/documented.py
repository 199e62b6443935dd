"""Figures in ``docs/benchmarks.md`` that a command writes, between two comments of its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.processes import ROOT, BenchError

DOCUMENT = ROOT / "docs/benchmarks.md"
IMAGES = ROOT / "docs/img"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are numbers."""
    head = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join(head + ["| " + " | ".join(row) + " |" for row in rows])


def replaced(text: str, name: str, figures: str) -> str:
    """``text`` with ``figures`` between the comments of ``name``.

    Raises:
        BenchError: the comments are not there.
    """
    first, last = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = text.partition(first)
    _, ends, after = rest.partition(last)
    if not found or not ends:
        raise BenchError(f"no place for the figures of {name}")
    return f"{before}{first}\n{figures.strip()}\n\n{last}{after}"


def write(name: str, figures: str, document: Path = DOCUMENT) -> str:
    """Write the figures of ``name`` anew; a line that says so."""
    document.write_text(replaced(document.read_text(), name, figures))
    return f"written: {document.name}"

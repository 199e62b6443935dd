"""``python -m tests.corpus [FOLDER]``: see ``tests.corpus``; 1 if there is a difference."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import trio
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from tests.corpus import cases as files
from tests.corpus.generated import generated
from tests.corpus.judge import Difference, Kind
from tests.corpus.report import page, summary
from tests.corpus.reviewed import REVIEWED, Entry, unreviewed
from tests.corpus.run import run
from tests.page import NoBrowser
from tests.processes import ROOT

PRINTED = 400
"""Lines about differences on standard output."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run corpus",
        description="Files through the service, and the answers held to Chromium and libvips.",
    )
    parser.add_argument("folder", type=Path, nargs="?", help="default: the corpus that is made")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of the names of files")
    parser.add_argument("--page", type=Path, default=ROOT / "build/corpus.html")
    options = parser.parse_args()
    everything = list(generated() if options.folder is None else files.of_folder(options.folder))
    cases = [case for case in everything if fnmatchcase(case.name, options.only)]
    if not cases:
        parser.error("there are no files")
    entries: tuple[Entry, ...] = REVIEWED if options.folder is None else ()
    try:
        with Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
            task = bar.add_task("", total=len(cases))
            found = trio.run(run, cases, lambda: bar.advance(task))
    except* NoBrowser as error:
        sys.exit(str(error.exceptions[0]))
    left, idle = unreviewed(found.differences, entries)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page(found, left, cases), encoding="utf-8")
    print(*summary(found), sep="\n")
    for lines in list(told(left))[:PRINTED]:
        print(lines)
    idle = idle if len(cases) == len(everything) else []
    for entry in idle:
        print(f"reviewed, but there is none: {entry.cases} {entry.questions}: {entry.why}")
    print(f"{len(found.differences) - len(left)} reviewed, {len(left)} to look at: {options.page}")
    return 1 if left or idle else 0


def told(differences: Sequence[Difference]) -> Iterator[str]:
    """A line for what is wrong with a file in one way, the worst of it first."""
    of_files: dict[tuple[str, Kind], list[Difference]] = {}
    for each in differences:
        of_files.setdefault((each.case, each.kind), []).append(each)
    for (case, kind), alike in of_files.items():
        more = f" and {len(alike) - 1} more" if alike[1:] else ""
        yield f"{case}: {kind}: {alike[0].text} ({alike[0].question}{more})"


if __name__ == "__main__":
    sys.exit(main())

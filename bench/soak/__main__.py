"""``python -m bench.soak``: a day in the life of a server, in ten minutes.

nginx with our block stands before two workers, the AT Protocol's own directory and PDS behind
them, and PDSes that fail in ten ways. While clients ask, most of them for what everybody asks for,
and a moderator blocks and lifts: the log is moved and truncated, a preset changes by SIGHUP, a
worker is killed, the directory goes away, the disk fills, the clock is wrong by 40 days.

Every body is compared with what a server alone in peace gives, every status with what was broken
at the time. At the end memory, descriptors, threads, tasks and files have to be as at the start.
Exits with 1 when anything is not. As root the disk is filled too, and with libfaketime the clock
moved; without, the output says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench import report
from bench.processes import run
from bench.soak.day import EVENTS, FULL, QUICK, Plan, run_day
from bench.soak.shown import draw, show

PLOT = Path("build/bench-soak.svg")
MOST_SHOWN = 30


async def _main(plan: Plan, seed: int, folder: Path | None, picture: Path) -> int:
    console = report.output()
    report.print_settings(console, {"seed": seed, "pictures": plan.pictures})
    steps = 4 + plan.cycles * len(EVENTS)
    with tempfile.TemporaryDirectory(dir=folder) as name, report.progress(steps) as bar:

        def note(text: str) -> None:
            bar.update(bar.task_ids[0], description=text)
            bar.advance(bar.task_ids[0])

        found = await run_day(Path(name), plan, seed, note)
        bar.stop()
    show(console, found)
    console.print(draw(found, picture))
    if len(found.wrong) > MOST_SHOWN:
        console.print(f"the first {MOST_SHOWN} of {len(found.wrong)}:")
    return report.verdict(console, found.wrong[:MOST_SHOWN])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a minute")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of load and events")
    parser.add_argument("--folder", type=Path, help="where it all is made")
    parser.add_argument("--plot", type=Path, default=PLOT, help=f"default {PLOT}")
    given = parser.parse_args()
    chosen = QUICK if given.quick else FULL
    sys.exit(run(partial(_main, chosen, given.seed, given.folder, given.plot)))

"""What it costs to start a command: CPU of those that answer from arguments or a file alone.

Each command runs in turn with ``python -c pass``, for several rounds, in a new process with a
cache folder of its own. Prints the spread of the CPU time and of its ratio to the empty program
of the same round; exits with 1 when a command failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from bench import report
from bench.pictures import cid_of
from bench.upstream import account
from proxy.config import Config, load_config
from proxy.model.identifiers import Did
from proxy.model.selection import Selection
from proxy.moderation.configured_store import folder_store_of

ROUNDS, QUICK = 15, 5

BLOCKS = 10
"""Blocks that are listed."""

EMPTY = "python -c pass"


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
        found: dict[str, list[float]] = {name: [] for name in commands}
        with report.progress(rounds) as bar:
            for _ in range(rounds):
                for name, arguments in commands.items():
                    found[name].append(_cpu_of(arguments, environment))
                bar.advance(bar.task_ids[0])
    console = report.output()
    report.print_settings(console, {"rounds": rounds})
    table = report.table(f"CPU, {report.SPREAD}", ("", "ms", f"over {EMPTY}"))
    for name, seconds in found.items():
        ratios = [each / empty for each, empty in zip(seconds, found[EMPTY], strict=True)]
        table.add_row(name, report.milliseconds(seconds), report.spread(ratios))
    console.print(table)


def _make_store(config: Config) -> None:
    with closing(folder_store_of(config)) as store:
        store.make()
        entries = [(Selection(Did(account(number))), "") for number in range(BLOCKS)]
        store.record("block", entries, by="bench", owner="")


def _cpu_of(arguments: list[str], environment: dict[str, str]) -> float:
    """Seconds of CPU, user and system, that a Python spends on ``arguments``."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()

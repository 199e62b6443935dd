"""A small process that takes the name of the served files away when its parent cannot.

Its parent may be stopped, or its event loop may hang, while its lease ends. Run as a script, with
the standard library alone: ``watcher.py MARK NAME``. It ends when its standard input does, as it
does with its parent, for whatever reason.

Its parent's mark has the end of its lease: eight bytes, nanoseconds of the clock of
``lease.boot_clock``, which the processes of a machine share.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

TICK_SECONDS = 0.05
"""How often it looks."""

READY = b"r"
"""What it writes to its standard output when it watches."""


def main(mark: str, name: str) -> None:
    """Watch until the end of the standard input; take the name away then, too."""
    # Whoever stops a service signals all its processes; this one ends after its parent.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, READY)
    while True:
        ended, _, _ = select.select([0], [], [], TICK_SECONDS)
        if ended or not _runs(mark):
            with suppress(FileNotFoundError):
                os.unlink(name)
        if ended:
            return


def _runs(mark: str) -> bool:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    try:
        with open(mark, "rb") as file:
            deadline = int.from_bytes(file.read(8), "big")
    except OSError:
        return False
    return time.clock_gettime_ns(clock) < deadline


if __name__ == "__main__":
    main(*sys.argv[1:3])

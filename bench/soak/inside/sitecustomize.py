"""Imported by every Python process of the soaked server, before its own code.

A process answers SIGUSR2 by writing how many tasks it has into a file of its own in the folder that
``SOAK_TASKS`` names; 0 where no Trio runs.
"""

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType


def _tell(_number: int, _frame: FrameType | None) -> None:
    trio = sys.modules.get("trio")
    try:
        living = trio.lowlevel.current_statistics().tasks_living if trio else 0
    except RuntimeError:  # no run in this process
        living = 0
    file = Path(os.environ["SOAK_TASKS"]) / str(os.getpid())
    unfinished = file.with_suffix(".new")
    unfinished.write_text(f"{living}")
    unfinished.rename(file)


class _Time(ctypes.Structure):
    """struct timespec."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


# By its name: what libfaketime puts before it is not found so.
_libc = ctypes.CDLL("libc.so.6", use_errno=True)
_clock_gettime = time.clock_gettime


def _sleep(seconds: float) -> None:
    select.select((), (), (), seconds)


def _real_for_processes(clock: int) -> float:
    """``time.clock_gettime``; of CPU time, whose clocks have negative numbers, the real one."""
    if clock >= 0:
        return _clock_gettime(clock)
    found = _Time()
    if _libc.clock_gettime(ctypes.c_int(clock), ctypes.byref(found)):
        raise OSError(ctypes.get_errno(), "clock_gettime")
    return float(found.seconds + found.nanoseconds / 1e9)


if "SOAK_TASKS" in os.environ:
    signal.signal(signal.SIGUSR2, _tell)
if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    # libfaketime 0.9.10 lets clock_nanosleep fail with EINVAL for an absolute time.
    time.sleep = _sleep  # type: ignore[assignment]
    # It moves the clocks of other processes' CPU time too: a job that is under way at that moment
    # would have used up all of its own.
    time.clock_gettime = _real_for_processes

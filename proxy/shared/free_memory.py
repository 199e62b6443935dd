"""Returns to the system what the C library keeps of freed memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

TRIM_SECONDS = 60.0
"""Seconds between two times. Pages that are returned are filled anew when they are needed: after so
long that costs nothing that could be measured."""


def trimmer() -> Callable[[], object]:
    """Return a function that returns the free memory of this process to the system."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # only glibc has it
        return lambda: None
    return lambda: trim(0)


async def keep_trimmed() -> None:
    """Return free memory to the system now and then, until cancelled.

    Sources of some megabytes, and the buffers that they pass, leave holes that the C library keeps.
    """
    import trio  # here, for image workers have no use for it

    trim = trimmer()
    while True:
        await trio.sleep(TRIM_SECONDS)
        await trio.to_thread.run_sync(trim)

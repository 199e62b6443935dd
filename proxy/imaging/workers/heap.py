"""glibc's heap, told to keep what a picture leaves for the next one.

A picture's buffers of 4 to 20 MB are by default returned to the system each time, and every page
of the next picture is then faulted in and zeroed: up to a third of a large picture's CPU time.
"""

from __future__ import annotations

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

LARGEST_KEPT = 32 << 20
"""Larger buffers are mapped, and unmapped when freed; glibc allows no more than this."""

KEPT = 64 << 20
"""Free bytes at the end of a heap beyond which they go back to the system."""


def keep_freed_memory() -> bool:
    """Raise both thresholds for this process; it keeps up to ``KEPT`` bytes more when idle.

    Returns:
        False where the C library has no such setting (musl, macOS).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, KEPT)
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT) and kept)

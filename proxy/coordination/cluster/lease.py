"""How long a process may trust that nothing is decided without it. See docs/cluster.md.

The database counts a lease from when it renews it, by its own clock. A process counts it from
before it asked, by a clock of its machine that is never set, and ends it a little earlier. So what
the database takes for ended has ended there before. No two clocks are compared.
"""

from __future__ import annotations

import time

FILES_SHARE = 0.8
"""The share in which a web server may open files: a watcher needs time to see the end."""

SHARE = 0.9
"""The share of a lease that its holder counts on. The rest is for clocks that run slow, and for
what is taken away when the lease ends."""

_BOOT = getattr(time, "CLOCK_BOOTTIME", None)


def boot_clock() -> float:
    """Seconds since the machine's start, those in which it slept among them (Linux)."""
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


class Lease:
    """The lease of this process, as it counts it itself. Any thread may ask.

    Args:
        seconds: for how long the database grants it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline = 0.0

    @property
    def deadline(self) -> float:
        """When it ends, by ``boot_clock``; 0: there is none."""
        return self._deadline

    @property
    def files_deadline(self) -> float:
        """When a web server beside this process may open no more files, by ``boot_clock``; 0: it
        may open none."""
        return max(self._deadline - (SHARE - FILES_SHARE) * self.seconds, 0.0)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return boot_clock() < self._deadline

    def granted(self, asked_at: float) -> None:
        """Count it from ``asked_at``, a moment of ``boot_clock`` before the database was asked."""
        self._deadline = max(self._deadline, asked_at + self.seconds * SHARE)

    def end(self) -> None:
        """Count on it no more."""
        self._deadline = 0.0

"""Computes the wait before a stream that ended is tried again. Pure; takes time and chance."""

from __future__ import annotations

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 300.0

STEADY_SECONDS = 60.0
"""A connection that lasted this long was a good one: the next wait is the shortest again."""


class Backoff:
    """Waits that double from one short connection to the next."""

    def __init__(self) -> None:
        self._failures = 0

    def after(self, lasted: float, chance: float, at_least: float = 0.0) -> float:
        """Seconds until the next try, from half of the current wait to all of it.

        Args:
            lasted: seconds that the last connection was open; 0 where there was none.
            chance: 0 to 1; spreads those that lost the same server at the same moment.
            at_least: seconds that the server asked for.
        """
        if lasted >= STEADY_SECONDS:
            self._failures = 0
        wait = min(FIRST_SECONDS * 2.0 ** min(self._failures, 30), LONGEST_SECONDS)
        self._failures += 1
        return max(wait * (0.5 + chance / 2), at_least)

"""Compares stored times with the clock of this machine, which may have been ahead when they were
stored.

Pure.
"""

from __future__ import annotations

import math

TOLERANCE = 60.0
"""Seconds that a stored time may be ahead of the clock: clocks are set by small steps, and file
systems of other machines have clocks of their own."""


def horizon(now: float) -> float:
    """The latest time that can have been stored by now: a later one is of a wrong clock."""
    return now + TOLERANCE


def age_of(stored: float, now: float) -> float:
    """How many seconds ago a time was stored.

    Infinite for a time from the future: how old that is cannot be told, so it counts as due.
    """
    return math.inf if stored > horizon(now) else max(now - stored, 0.0)

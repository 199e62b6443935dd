"""Estimates when a fetch that has to wait has its answer, by what those before it took. Pure."""

from __future__ import annotations

WEIGHT = 1 / 8
"""Of a new fetch in the average of its host (that of a round trip in RFC 6298, section 2)."""

RECENT_SECONDS = 300.0
"""An average that no fetch was added to for so long says nothing any more."""


class Pace:
    """The seconds for which fetches of a host held a consumer: a moving average."""

    __slots__ = ("_at", "_average")

    def __init__(self) -> None:
        self._average: float | None = None
        self._at = 0.0

    def add(self, seconds: float, now: float) -> None:
        """Note a fetch that held a consumer for ``seconds``, and ended ``now``."""
        before = self.seconds(now)
        self._average = seconds if before is None else before + WEIGHT * (seconds - before)
        self._at = now

    def seconds(self, now: float) -> float | None:
        """The average; None if no fetch ended in the last ``RECENT_SECONDS``."""
        return self._average if now - self._at <= RECENT_SECONDS else None


def seconds_to_answer(each: float, ahead: int, at_once: int) -> float:
    """Seconds until a fetch has its answer, if it waits for nothing but fetches of its own host.

    Args:
        each: seconds for which a fetch of the host holds a consumer.
        ahead: fetches of the host that run, or go before it.
        at_once: how many of them run at once. They end one after the other.
    """
    to_end = max(ahead + 1 - at_once, 0)
    return each * (to_end / at_once + 1)


def comes_too_late(each: float, ahead: int, at_once: int, timeout: float) -> bool:
    """Whether fetches of its own host leave one no time to be answered within ``timeout`` seconds.

    Not if there are fewer than run at once: how long it takes by itself is not known beforehand.
    """
    return ahead >= at_once and seconds_to_answer(each, ahead, at_once) > timeout

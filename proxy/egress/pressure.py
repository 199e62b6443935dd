"""How much a fetch must bring while others wait for its consumer. Pure."""

from __future__ import annotations

from proxy.egress.guarded_get import MIN_BYTES_PER_SECOND

RATES = (4 * MIN_BYTES_PER_SECOND, 8 * MIN_BYTES_PER_SECOND)
"""Bytes a second, where one fetch waits and where the lane is full. A home connection of
1 Mbit/s brings twice the latter to each of eight fetches."""

WINDOWS = (3.0, 2.0)
"""Seconds over which the rate is measured, likewise. They include the way to the first byte: name,
connection, TLS and the server's own time; a healthy server far away needs one."""


def least_rate(fullness: float) -> float:
    """Bytes a second that a fetch must bring.

    Args:
        fullness: how much of the lane is taken, from 0 to 1.
    """
    return RATES[0] + (RATES[1] - RATES[0]) * fullness


def window(fullness: float) -> float:
    """Seconds after which a fetch is judged, and judged again."""
    return WINDOWS[0] + (WINDOWS[1] - WINDOWS[0]) * fullness


class Progress:
    """What a fetch brought, over windows of time.

    Attributes:
        began: the time when the fetch began.
        received: bytes of the body so far.
    """

    __slots__ = ("_received_before", "_since", "began", "received")

    def __init__(self, now: float) -> None:
        self.began = self._since = now
        self.received = self._received_before = 0

    def add(self, size: int) -> None:
        """Note ``size`` bytes more."""
        self.received += size

    def lag(self, now: float, fullness: float) -> float | None:
        """The bytes a second of a fetch that is too slow; None if it is not, or not yet.

        What was fast once is measured again from now on: bytes of a good beginning do not count
        for a trickle that follows.
        """
        elapsed = now - self._since
        if elapsed < window(fullness):
            return None
        rate = (self.received - self._received_before) / elapsed
        if rate < least_rate(fullness):
            return rate
        self._since, self._received_before = now, self.received
        return None

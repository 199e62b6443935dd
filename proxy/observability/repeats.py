"""Decides which of many lines that say the same is written. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SECONDS = 60.0
"""Seconds from one line of a key to the next."""

MOST = 256
"""Keys that have a line of their own. Strangers choose the hosts; those beyond share one line."""


@dataclass(slots=True)
class _Told:
    until: float
    left_out: int = 0


class Repeats:
    """Lets one line of each key pass in ``seconds``; the next has the number that were left out."""

    def __init__(self, seconds: float = SECONDS, most: int = MOST) -> None:
        self._seconds = seconds
        self._most = most
        # In the order in which their next lines may be written.
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self._others = _Told(0.0)

    def admit(self, key: str, now: float) -> int | None:
        """Return how many lines were left out before this one, or None: this one is, too.

        Args:
            now: seconds of a clock that only goes forward.
        """
        told = self._told.get(key)
        if told is None:
            self._make_room(now)
            if len(self._told) < self._most:
                self._told[key] = _Told(now + self._seconds)
                return 0
            told = self._others
        if now < told.until:
            told.left_out += 1
            return None
        left_out, told.left_out = told.left_out, 0
        told.until = now + self._seconds
        if told is not self._others:
            self._told.move_to_end(key)
        return left_out

    def write(
        self,
        key: str,
        now: float,
        line: Callable[..., Any],
        hidden: Callable[..., Any],
        event: str,
        **fields: Any,
    ) -> None:
        """Write ``event`` by ``line``, with what was left out, or by ``hidden``.

        Args:
            line, hidden: methods of a logger: for what is admitted, and for what is left out.
        """
        left_out = self.admit(key, now)
        if left_out:
            fields["left_out"] = left_out
        (hidden if left_out is None else line)(event, **fields)

    def _make_room(self, now: float) -> None:
        """Where there is no room, forget keys whose next line may be written.

        What was left out of them is told with the next line of those that share one.
        """
        while len(self._told) >= self._most:
            key, told = next(iter(self._told.items()))
            if told.until > now:
                return
            del self._told[key]
            self._others.left_out += told.left_out

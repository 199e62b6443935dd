"""Bounds how many connections of clients are open at once. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

MAX_CONNECTIONS = 2048
"""Open connections of clients of one process."""


class Closable(Protocol):
    """A connection."""

    def close_soon(self) -> None:
        """End the connection. Does not wait."""
        ...


class OpenConnections:
    """The open connections of a process.

    Beyond ``limit`` the one that was idle for the longest time is closed. A connection is busy from
    the end of a request's head to the end of its answer, and idle otherwise.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._busy: set[Closable] = set()
        # Idle for the longest time first.
        self._idle: OrderedDict[Closable, None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many there are, without those that ``close_soon`` was called for."""
        return len(self._busy) + len(self._idle)

    def add(self, connection: Closable) -> None:
        """Add a new connection, which is idle. It is closed itself if all others are busy."""
        self._idle[connection] = None
        if len(self) > self.limit:
            longest = next(iter(self._idle))
            self.remove(longest)
            longest.close_soon()

    def mark(self, connection: Closable, *, is_idle: bool) -> None:
        """Note that ``connection`` is idle from now on, or busy."""
        if is_idle and connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = None
        elif not is_idle and connection in self._idle:
            del self._idle[connection]
            self._busy.add(connection)

    def remove(self, connection: Closable) -> None:
        """Forget a connection that has ended, or ends soon."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)


CONNECTIONS = OpenConnections(MAX_CONNECTIONS)
"""Those of this process: Hypercorn makes its connections without telling them of one another."""

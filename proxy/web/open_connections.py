"""Bounds how many connections of clients are open at once, and their streams. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

MAX_CONNECTIONS = 2048
"""Open connections of clients of one process."""


MAX_STREAMS = 2048
"""Requests over HTTP/2 that a process answers at once. Each takes 17 KiB, and a client sends only
14 bytes for it; the same client may have 100 of them on each of its connections."""

STREAMS_OF_EACH = 2
"""Requests over HTTP/2 that each connection may have, also when there are ``MAX_STREAMS``."""


class Closable(Protocol):
    """A connection."""

    def close_soon(self) -> None:
        """End the connection. Does not wait."""
        ...


class OpenConnections:
    """The open connections of a process.

    A connection is busy from the end of a request's head to the end of its answer, and idle
    otherwise. Beyond ``limit`` the one that was idle for the longest time is closed. If only an
    eighth of all are idle, the busy one whose last request is the oldest is closed instead:
    otherwise clients that wait for a slow server, or that take their answers slowly, could have all
    connections, and each new one would be closed before its first request.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._most_busy = limit - max(limit // 8, 1)
        # The oldest request first.
        self._busy: OrderedDict[Closable, None] = OrderedDict()
        # Idle for the longest time first.
        self._idle: OrderedDict[Closable, None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many there are, without those that ``close_soon`` was called for."""
        return len(self._busy) + len(self._idle)

    def add(self, connection: Closable) -> None:
        """Add a new connection, which is idle, and close another one if there are too many."""
        self._idle[connection] = None
        if len(self) > self.limit:
            others = self._busy if len(self._busy) > self._most_busy else self._idle
            longest = next(iter(others))
            self.remove(longest)
            longest.close_soon()

    def mark(self, connection: Closable, *, is_idle: bool) -> None:
        """Note that ``connection`` is idle from now on, or that a request has begun."""
        if is_idle and connection in self._busy:
            del self._busy[connection]
            self._idle[connection] = None
        elif not is_idle and connection in self._idle:
            del self._idle[connection]
            self._busy[connection] = None
        elif not is_idle and connection in self._busy:
            self._busy.move_to_end(connection)

    def used(self, connection: Closable) -> None:
        """Note that an idle connection was busy for a moment: it is idle from now on."""
        if connection in self._idle:
            self._idle.move_to_end(connection)

    def remove(self, connection: Closable) -> None:
        """Forget a connection that has ended, or ends soon."""
        self._busy.pop(connection, None)
        self._idle.pop(connection, None)


CONNECTIONS = OpenConnections(MAX_CONNECTIONS)
"""Those of this process: Hypercorn makes its connections without telling them of one another."""


class OpenStreams:
    """Counts the open streams of all connections of a process.

    Attributes:
        count: how many there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    def allows(self, own: int) -> bool:
        """Whether a connection that has ``own`` streams may have one more."""
        return self.count < self.limit or own < STREAMS_OF_EACH


STREAMS = OpenStreams(MAX_STREAMS)
"""Those of this process."""

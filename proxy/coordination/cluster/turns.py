"""Chooses the process of a cluster that does a chore: the one that holds an advisory lock.

The lock belongs to a connection. When its process ends, or is cut off for some seconds, the server
ends the connection and frees the lock, and another process takes over. The first may not know
yet: for that moment both do the chore, which must bear it.
"""

from __future__ import annotations

import zlib
from contextlib import suppress

from proxy.shared.postgres import PostgresConnection, PostgresDatabase, PostgresError


class ClusterLeadership:
    """See ``interface.Leadership``. Opens a connection of its own, and holds it while it leads."""

    can_be_lost = True

    def __init__(self, database: PostgresDatabase, chore: str) -> None:
        self._database = database
        # Any number will do; other chores have others.
        self._number = zlib.crc32(chore.encode()) & 0x7FFFFFFF
        self._connection: PostgresConnection | None = None

    def take(self) -> bool:
        """See ``Leadership``."""
        if self.holds():
            return True
        connection = self._database.connect()
        try:
            (taken,) = connection.execute(
                "SELECT pg_try_advisory_lock(?::int, hashtext(current_schema()))", (self._number,)
            ).fetchone()
        except BaseException:
            connection.close()
            raise
        if taken:
            self._connection = connection
        else:
            connection.close()
        return bool(taken)

    def holds(self) -> bool:
        """See ``Leadership``. Asks the server: without an answer it does not hold."""
        if self._connection is not None:
            with suppress(PostgresError):
                self._connection.execute("SELECT 1")
                return True
            self.give_up()
        return False

    def give_up(self) -> None:
        """See ``Leadership``."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

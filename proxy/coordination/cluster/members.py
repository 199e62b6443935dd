"""The processes of a cluster: a row each, with what it has in force and until when it is asked.

A decision waits for every process whose lease runs. A process whose lease has ended serves nothing.
"""

from __future__ import annotations

import errno
import secrets
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from proxy.coordination.cluster.lease import Lease, boot_clock
from proxy.coordination.cluster.served_name import ServedName
from proxy.coordination.replicas import SERVES_NOTHING
from proxy.shared.postgres import PostgresDatabase

KEPT_SECONDS = 3600.0
"""How long the row of a process that ended without a word is kept, for people to see."""


class LeaseLost(OSError):
    """The lease ended before it was renewed: others may have decided without this process."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "the lease of this process has ended")


class Members:
    """This process among those of the cluster; implements ``interface.Replicas``.

    Any thread may call its methods, each of which may raise ``OSError``.

    Args:
        name: the name of the served files of this node, of which this process takes part in
            deciding whether it is there; None: this process never serves, as a command does not.

    Attributes:
        token: the name of this process.
        lease: its lease.
        has_left: whether it left: its lease is not renewed any more.
    """

    def __init__(
        self, database: PostgresDatabase, folder: Path, lease: Lease, name: ServedName | None
    ) -> None:
        self.token = secrets.token_hex(8)
        self.lease = lease
        self._database = database
        self._node = f"{socket.gethostname()}:{folder}"
        self._name = name
        self.has_left = False
        self._guard = threading.Lock()
        self._is_serving = False

    def enter(self) -> None:
        """Join with a new lease, serving nothing yet."""
        self.has_left = False
        self.lease.end()
        with self._guard:
            self._is_serving = False
            if self._name is not None:
                self._name.enter()
        asked_at = boot_clock()
        with self._database.reading() as rows:
            rows.execute(
                "DELETE FROM members WHERE expires < clock_timestamp() - make_interval(secs => ?)",
                (KEPT_SECONDS,),
            )
            rows.execute(
                "INSERT INTO members (token, node, version, expires)"
                " VALUES (?, ?, ?, clock_timestamp() + make_interval(secs => ?))"
                " ON CONFLICT (token) DO UPDATE"
                " SET version = excluded.version, expires = excluded.expires",
                (self.token, self._node, SERVES_NOTHING, self.lease.seconds),
            )
        self.lease.granted(asked_at)

    def renew(self) -> None:
        """Renew the lease.

        Raises:
            LeaseLost: it had ended, by the clock of the database or this process's own, before the
                answer came: until the commit others see the end that it had.
        """
        if not self.lease.runs():
            self._lose()
        asked_at = boot_clock()
        with self._database.reading() as rows:
            renewed = rows.execute(
                "UPDATE members SET expires = clock_timestamp() + make_interval(secs => ?)"
                " WHERE token = ? AND expires > clock_timestamp()",
                (self.lease.seconds, self.token),
            ).rowcount
        if not renewed or not self.lease.runs():
            self._lose()
        self.lease.granted(asked_at)
        with self._guard:
            if self._is_serving:
                self._extend()

    def serve(self) -> None:
        """Say that this process serves: everything decided is in force here."""
        with self._guard:
            self._is_serving = True
            self._extend()

    def note(self, version: int) -> None:
        """Note that ``version`` is in force here. From now on others wait for this process.

        Raises:
            LeaseLost: there is no lease.
        """
        if version == SERVES_NOTHING:
            self._stop_serving()
            if not self.lease.runs():  # nobody waits for this process, or not for long
                return
        with self._database.reading() as rows:
            changed = rows.execute(
                "UPDATE members SET version = ? WHERE token = ?", (version, self.token)
            ).rowcount
        if not changed:
            self._lose()

    def leave(self) -> None:
        """Leave the cluster. Idempotent. Without the database others wait for the lease's end."""
        self.has_left = True
        self.lease.end()
        with self._guard:
            self._is_serving = False
            if self._name is not None:
                self._name.leave()
        with suppress(OSError), self._database.reading() as rows:
            rows.execute("DELETE FROM members WHERE token = ?", (self.token,))
        self._database.close()

    def living(self) -> frozenset[str]:
        """The tokens of all processes whose lease runs."""
        return self._tokens("expires > clock_timestamp()")

    def serving(self) -> int:
        """The number of other processes with a lease that have a version in force."""
        return len(
            self._tokens(
                "expires > clock_timestamp() AND version < ? AND token <> ?",
                SERVES_NOTHING,
                self.token,
            )
        )

    def late(self, version: int) -> frozenset[str]:
        """The tokens of the processes with a lease that have not noted ``version``."""
        return self._tokens("expires > clock_timestamp() AND version < ?", version)

    def _tokens(self, condition: str, *values: int | str) -> frozenset[str]:
        with self._database.reading() as rows:
            found = rows.execute(f"SELECT token FROM members WHERE {condition}", values)  # noqa: S608
            return frozenset(token for (token,) in found)

    def _extend(self) -> None:
        if self._name is not None:
            with suppress(OSError):  # without the name requests are passed on
                self._name.extend(self.lease.files_deadline)

    def _stop_serving(self) -> None:
        with self._guard:
            self._is_serving = False
            if self._name is not None:
                self._name.withdraw()

    def _lose(self) -> NoReturn:
        self.lease.end()
        with suppress(OSError):
            self._stop_serving()
        raise LeaseLost

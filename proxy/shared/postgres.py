"""Connections to PostgreSQL. Every wait has an end, so that a connection that was cut is noticed.

The only module that knows the errors of psycopg: outside, each is a ``PostgresError``.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from proxy.shared.sql import Rows, Statements

CONNECT_SECONDS = 2
"""How long a connection may take to open; libpq's least."""

_LATEST = 5.0
"""Seconds in which the server ends the transaction of a client that went silent over it: decisions
of others wait for it."""


class PostgresError(OSError):
    """The database cannot be read or written. Its text is the first line of what psycopg says."""

    def __init__(self, error: psycopg.Error | str) -> None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        super().__init__(errno.EIO, f"PostgreSQL: {lines[0]}")


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which every wait for the server has an end."""

    patience: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for ``gen``, at most ``patience`` seconds."""
        return super().wait(gen, interval, self.patience if timeout is None else timeout)


class PostgresConnection:
    """One connection; implements ``Statements``. Each statement outside a transaction commits.

    Every method may raise ``PostgresError``. Blocks; one thread at a time.
    """

    def __init__(self, connection: _Connection, generation: int) -> None:
        self._connection = connection
        self.generation = generation

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows:
        """See ``Statements``."""
        with _told():
            return self._connection.execute(_in_dialect(sql), parameters or None)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> None:
        """See ``Statements``."""
        with _told(), self._connection.cursor() as cursor:
            cursor.executemany(_in_dialect(sql), parameters)

    def notified(self) -> bool:
        """Take the notifications that have come; whether there were any."""
        with _told():
            return bool(list(self._connection.notifies(timeout=0)))

    def fileno(self) -> int:
        """The descriptor of the socket, which is readable when a notification has come."""
        with _told():
            return self._connection.fileno()

    @property
    def is_usable(self) -> bool:
        """Whether it is open, and in no transaction."""
        connection = self._connection
        return (
            not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE
        )

    def close(self) -> None:
        """Close it, without a wait. Idempotent."""
        with suppress(psycopg.Error):
            self._connection.close()


class PostgresDatabase:
    """A database of which this process uses several connections; implements ``SqlDatabase``.

    Args:
        url: ``postgresql://…``.
        lock: the number of the advisory lock that its writers hold, one at a time.
        patience: seconds that a statement may take.
        prepare: makes the tables; called with the first connection, and again until it succeeds.
    """

    def __init__(
        self,
        url: str,
        *,
        lock: int,
        patience: float,
        prepare: Callable[[Statements], None] = lambda connection: None,
    ) -> None:
        self._url = url
        self._lock = lock
        self._patience = patience
        self._prepare = prepare
        self._preparing = threading.Lock()
        self._is_prepared = False
        self._guard = threading.Lock()
        self._idle: list[PostgresConnection] = []
        self._generation = 0

    @contextmanager
    def reading(self) -> Iterator[PostgresConnection]:
        """See ``SqlDatabase``. A statement that changes something is committed by itself here."""
        connection = self._taken()
        try:
            yield connection
        except PostgresError:
            self._drop(connection)
            raise
        except BaseException:
            self._put_back(connection)
            raise
        self._put_back(connection)

    @contextmanager
    def snapshot(self) -> Iterator[PostgresConnection]:
        """See ``SqlDatabase``."""
        with self.reading() as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                yield connection
            finally:
                with suppress(PostgresError):
                    connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[PostgresConnection]:
        """See ``SqlDatabase``. Where the commit gets no answer, it may have taken place."""
        with self.reading() as connection:
            connection.execute("BEGIN")
            try:
                # So numbers that grow with each row grow with each commit, too.
                connection.execute("SELECT pg_advisory_xact_lock(?)", (self._lock,))
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(PostgresError):
                    connection.execute("ROLLBACK")
                raise

    def exists(self) -> bool:
        """See ``SqlDatabase``: its tables are made before anything is asked of it."""
        return True

    def connect(self) -> PostgresConnection:
        """Open a connection for the caller alone, who closes it."""
        connection = self._open()
        try:
            self._make_ready(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """See ``SqlDatabase``."""
        with self._guard:
            self._generation += 1
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _taken(self) -> PostgresConnection:
        with self._guard:
            if self._idle:
                return self._idle.pop()
        return self.connect()

    def _put_back(self, connection: PostgresConnection) -> None:
        with self._guard:
            if connection.is_usable and connection.generation == self._generation:
                self._idle.append(connection)
                return
        connection.close()

    def _drop(self, connection: PostgresConnection) -> None:
        """Close a connection that failed, and with it the others: it may be the server."""
        connection.close()
        self.close()

    def _open(self) -> PostgresConnection:
        milliseconds = int(self._patience * 1000)
        # The server notices a client that was cut off, and frees its locks.
        settings = {
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": int(_LATEST * 1000),
            "tcp_keepalives_idle": 2,
            "tcp_keepalives_interval": 1,
            "tcp_keepalives_count": 3,
        }
        with _told():
            given = conninfo_to_dict(self._url)
            options = " ".join(f"-c {name}={value}" for name, value in settings.items())
            connection = _Connection.connect(
                self._url,
                autocommit=True,
                connect_timeout=given.get("connect_timeout", CONNECT_SECONDS),
                # Another encoding has not all characters, and SQL_ASCII has bytes in their place.
                client_encoding="utf8",
                application_name=given.get("application_name", "imageproxy"),
                # A standby may not know yet what has been decided.
                target_session_attrs=given.get("target_session_attrs") or "read-write",
                options=f"{given.get('options') or ''} {options}",
                tcp_user_timeout=milliseconds,
                keepalives_idle=2,
                keepalives_interval=1,
                keepalives_count=3,
            )
        # Longer than the server's own limit, whose error leaves the connection of use.
        connection.patience = self._patience + 0.5
        return PostgresConnection(connection, self._generation)

    def _make_ready(self, connection: PostgresConnection) -> None:
        if not self._is_prepared:
            with self._preparing:
                if not self._is_prepared:
                    self._prepare(connection)
                    self._is_prepared = True


def place_of(url: str) -> str:
    """The database of a URL, without user and password, for people."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        return "PostgreSQL"
    host = given.get("host") or given.get("hostaddr") or "localhost"
    return f"postgresql://{host}:{given.get('port') or 5432}/{given.get('dbname') or ''}"


@cache
def _in_dialect(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise PostgresError(error) from error

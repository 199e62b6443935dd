"""A real PostgreSQL on loopback, for tests; its programs are Debian's ``postgresql``."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.ports import free_port
from tests.required import skip_unless_required

PATIENCE = 60.0
"""Seconds for it to start; it takes one or two on an idle machine."""

OWNER = "owner"
"""The user that the server is made with."""


_NUMBERS = itertools.count()


class PostgresUnavailable(Exception):
    """PostgreSQL's programs are not installed, or it did not start."""


class Postgres:
    """A server of its own, in a folder of its own.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, folder: Path) -> None:
        self._programs = programs()
        self._folder = folder
        # As root it refuses to run; Debian's package brings a user for it.
        self._user = "postgres" if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def make(self) -> None:
        """Make the files of the server."""
        if self._user is not None:
            os.chown(self._folder, pwd.getpwnam(self._user).pw_uid, -1)
        make = [self._programs / "initdb", "-D", self._data, "-A", "trust", "-U", OWNER]
        made = subprocess.run(
            [*map(str, make), "--no-sync"], capture_output=True, user=self._user, cwd="/"
        )
        if made.returncode:
            raise PostgresUnavailable(f"initdb: {made.stderr.decode()[-500:]}")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        for setting in (
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self._folder}",
            "fsync=off",
            "max_connections=300",
        ):
            command += ["-c", setting]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
            cwd="/",
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        raise PostgresUnavailable("PostgreSQL did not start")

    def kill(self) -> None:
        """End the server and all its connections at once, as a crash does."""
        self._end(signal.SIGKILL if self._user is None else signal.SIGQUIT)

    def stop(self) -> None:
        """End the server and its connections."""
        self._end(signal.SIGINT)

    def url(
        self,
        database: str,
        *,
        user: str = OWNER,
        port: int | None = None,
        host: str = "127.0.0.1",
    ) -> str:
        """How to connect, perhaps over a relay at ``host`` and ``port``."""
        return f"postgresql://{user}@{host}:{port or self.port}/{database}"

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements, each in a transaction of its own."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def new_database(self) -> str:
        """Make a database; its URL."""
        name = f"test_{next(_NUMBERS)}"
        self.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        return self.url(name)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None


def programs() -> Path:
    """The folder of the server's programs.

    Raises:
        PostgresUnavailable: there is none.
    """
    # Debian keeps them out of the path, a folder for each version.
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = shutil.which("initdb")
    if path:
        found.append(Path(path))
    if not found:
        raise PostgresUnavailable("PostgreSQL's initdb is not installed")
    return found[-1].parent


@contextmanager
def run_postgres() -> Iterator[Postgres]:
    """A server while the block runs; skips the test where there is none to be had."""
    with tempfile.TemporaryDirectory(prefix="imageproxy-postgres-") as folder:
        try:
            server = Postgres(Path(folder))
        except PostgresUnavailable as error:
            skip_unless_required(str(error))
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()

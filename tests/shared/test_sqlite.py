"""SQLite shared by threads and processes: whole transactions, one writer, no lost change."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from proxy.shared import sqlite
from proxy.shared.sqlite import Database
from tests.open_files import RememberedConnection

SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (value INTEGER NOT NULL)"

COUNT = """
import sys
from pathlib import Path
from proxy.shared.sqlite import Database
database = Database(Path(sys.argv[1]), %r, synchronous="NORMAL")
for _ in range(100):
    with database.writing() as connection:
        (highest,) = connection.execute("SELECT coalesce(max(value), 0) FROM numbers").fetchone()
        connection.execute("INSERT INTO numbers VALUES (?)", (highest + 1,))
"""


OpenDatabase = Callable[[Path], Database]


@pytest.fixture
def database() -> Iterator[OpenDatabase]:
    """Opens a folder's file as another process would; it is closed at the end of the test."""
    with ExitStack() as opened:

        def open_in(folder: Path) -> Database:
            path = folder / "sub" / "file.sqlite3"
            return opened.enter_context(closing(Database(path, SCHEMA, synchronous="NORMAL")))

        yield open_in


def values(found: Database) -> list[int]:
    with found.reading() as connection:
        rows = connection.execute("SELECT value FROM numbers ORDER BY value")
        return [value for (value,) in rows]


def test_processes_that_make_the_file_at_once_lose_no_change(
    tmp_path: Path, database: OpenDatabase
) -> None:
    """Catches reading before the lock is had (deferred transactions), and a race at creation."""
    path = tmp_path / "sub" / "file.sqlite3"
    command = [sys.executable, "-c", COUNT % SCHEMA, str(path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, b"")
    assert values(database(tmp_path)) == list(range(1, 401))


def test_threads_of_one_process_write_one_after_the_other(
    tmp_path: Path, database: OpenDatabase
) -> None:
    """Catches one connection that two threads write on at once."""
    shared = database(tmp_path)

    def count() -> None:
        for _ in range(50):
            with shared.writing() as connection:
                row = connection.execute("SELECT coalesce(max(value), 0) FROM numbers").fetchone()
                connection.execute("INSERT INTO numbers VALUES (?)", (row[0] + 1,))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values(shared) == list(range(1, 201))


def test_an_exception_takes_all_of_its_transaction_back(
    tmp_path: Path, database: OpenDatabase
) -> None:
    """Catches autocommit: half of a change would stay."""
    shared = database(tmp_path)

    def half_of_it() -> None:
        with shared.writing() as connection:
            connection.execute("INSERT INTO numbers VALUES (1)")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        half_of_it()
    assert values(shared) == []
    with shared.writing() as connection:
        connection.execute("INSERT INTO numbers VALUES (2)")
    assert values(shared) == [2]


def test_a_reader_sees_no_half_of_a_write_and_does_not_wait_for_it(
    tmp_path: Path, database: OpenDatabase
) -> None:
    """Catches the rollback journal, under which a reader waits for the writer, or fails."""
    shared = database(tmp_path)
    with shared.writing() as connection:
        connection.execute("INSERT INTO numbers VALUES (1)")
        assert values(shared) == []
    assert values(shared) == [1]


def test_every_connection_waits_for_other_processes_as_long_as_it_says(
    tmp_path: Path, database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches sqlite3's own five seconds, and a write that gives up at once or waits for ever."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.25)
    shared, other = database(tmp_path), database(tmp_path)
    with shared.reading() as reader, shared.writing() as writer:
        for connection in (reader, writer):
            assert connection.execute("PRAGMA busy_timeout").fetchone() == (250,)
        began = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="locked"), other.writing():
            pass
        assert time.monotonic() - began > 0.2


def test_after_an_error_a_file_that_was_replaced_is_opened_anew(
    tmp_path: Path, database: OpenDatabase
) -> None:
    """Catches a connection that is kept although its file is no database any more."""
    shared = database(tmp_path)
    with shared.writing() as connection:
        connection.execute("INSERT INTO numbers VALUES (1)")
    shared.close()
    shared.path.write_bytes(b"no database" * 1000)
    with pytest.raises(sqlite3.DatabaseError), shared.writing():
        pass
    for file in shared.path.parent.iterdir():
        file.unlink()
    with shared.writing() as connection:
        connection.execute("INSERT INTO numbers VALUES (3)")
    assert values(shared) == [3]


def test_a_file_that_is_removed_while_it_is_used_is_made_anew_without_its_old_log(
    tmp_path: Path,
    database: OpenDatabase,
) -> None:
    """Catches connections to a file that nobody else sees, and a log played into another file."""
    shared = database(tmp_path)
    with shared.reading():  # held, so that the log is not folded into the file when it closes
        with shared.writing() as connection:
            connection.execute("INSERT INTO numbers VALUES (1)")
        shared.path.unlink()
        assert values(shared) == []
        with shared.writing() as connection:
            connection.execute("INSERT INTO numbers VALUES (2)")
    assert values(shared) == [2]
    assert values(database(tmp_path)) == [2]


@pytest.mark.parametrize("damage_at", [0, 4096])
def test_a_damaged_file_is_replaced_where_it_is_disposable_and_there_alone(
    tmp_path: Path, damage_at: int
) -> None:
    """Catches a service that never gets over a damaged index, and one that drops its blocks."""
    for disposable in (False, True):
        path = tmp_path / f"{disposable}.sqlite3"
        with closing(Database(path, SCHEMA, synchronous="NORMAL", disposable=disposable)) as shared:
            with shared.writing() as connection:
                connection.executemany(
                    "INSERT INTO numbers VALUES (?)", [(n,) for n in range(5000)]
                )
            shared.close()
            with shared.path.open("r+b") as file:
                file.seek(damage_at)
                file.write(b"damage" * 1000)
            with pytest.raises(sqlite3.DatabaseError):
                values(shared)
            if disposable:
                assert values(shared) == []
            else:
                with pytest.raises(sqlite3.DatabaseError):
                    values(shared)


def test_a_damaged_file_that_another_process_replaced_is_left(tmp_path: Path) -> None:
    """Catches removing by name what was found damaged under that name before."""
    path = tmp_path / "file.sqlite3"
    late = Database(path, SCHEMA, synchronous="NORMAL", disposable=True)
    other = Database(path, SCHEMA, synchronous="NORMAL")
    assert values(late) == []

    def find_damage_late() -> None:
        with late.reading():
            path.unlink()
            with closing(other), other.writing() as connection:
                connection.execute("INSERT INTO numbers VALUES (7)")
            damage = sqlite3.DatabaseError("malformed")
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage

    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        find_damage_late()
    assert values(late) == [7]
    late.close()


def test_a_close_ends_also_the_connection_that_another_thread_reads_from(
    tmp_path: Path, database: OpenDatabase, connections: list[RememberedConnection]
) -> None:
    """Catches a connection that is put back after its owner has closed all, and stays open."""
    shared = database(tmp_path)
    with shared.reading() as connection:
        shared.close()
        assert connection.execute("SELECT count(*) FROM numbers").fetchone() == (0,)
    assert [each.is_closed for each in connections] == [True]
    assert values(shared) == [], "what is used next opens anew"

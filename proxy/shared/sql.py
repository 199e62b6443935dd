"""The interface of the databases that stores are in: SQLite files, and PostgreSQL.

The statements of a store are the same for both: ``?`` for parameters, and what both understand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Rows(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int:
        """The number of rows that the statement changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, a tuple; None: there is none."""
        ...

    def fetchall(self) -> list[Any]:
        """The rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """The rows that are left."""
        ...


class Statements(Protocol):
    """Runs statements. ``sqlite3.Connection`` is one."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Rows:
        """Run a statement."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> object:
        """Run a statement with each of ``parameters``."""
        ...


class SqlDatabase(Protocol):
    """A database. Blocks; several threads may use it.

    Its methods, and statements within their blocks, raise ``sqlite3.Error`` or ``OSError`` where
    the database cannot be read or written.
    """

    def reading(self) -> AbstractContextManager[Statements]:
        """For statements that change nothing, each of which sees the last commit."""
        ...

    def snapshot(self) -> AbstractContextManager[Statements]:
        """For statements that change nothing, all of which see the same commit."""
        ...

    def writing(self) -> AbstractContextManager[Statements]:
        """A transaction, committed at the end of the block; one at a time of all processes.

        An exception within the block rolls back all its changes.
        """
        ...

    def exists(self) -> bool:
        """Whether it is there already, where it can be made by its first use."""
        ...

    def close(self) -> None:
        """Close every connection. The next use opens one again."""
        ...


def placeholders(values: Sequence[object]) -> str:
    """The list of a condition ``IN (...)`` with a parameter for each value."""
    return ", ".join("?" * len(values))

"""What this process has open: descriptors, and connections to SQLite files."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest


def descriptors() -> dict[int, str]:
    """The open descriptors, each with what it is of where the system tells that."""
    folder = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    found = {}
    for name in os.listdir(folder):
        try:
            found[int(name)] = os.readlink(folder / name)
        except FileNotFoundError:  # that of the listing itself
            continue
        except OSError:  # macOS has no links there
            found[int(name)] = ""
    return found


class RememberedConnection(sqlite3.Connection):
    """Knows whether it was closed; other threads than its own may ask.

    Attributes:
        is_closed: ``close`` was called, and has returned.
    """

    is_closed = False

    def close(self) -> None:
        super().close()
        self.is_closed = True


def remember_connections(monkeypatch: pytest.MonkeyPatch) -> list[RememberedConnection]:
    """Every SQLite connection that this process opens from now on."""
    connect, opened = sqlite3.connect, list[RememberedConnection]()

    def remembering(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, factory=RememberedConnection, **options)
        opened.append(connection)
        return connection

    monkeypatch.setattr(sqlite3, "connect", remembering)
    return opened

"""What the log says of connections that clients make fail again and again."""

from __future__ import annotations

from typing import Any

import pytest

import proxy.web.failed_connections
from proxy.web.failed_connections import MAX_ERROR, FailedConnections
from tests.logs import logged_by


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def told(lines: list[Any], level: str = "warning") -> list[tuple[str, int]]:
    """The error of each line, and how many were left out before it."""
    assert {each["event"] for each in lines} <= {"connection failed"}
    return [
        (each["error"], each.get("left_out", 0)) for each in lines if each["log_level"] == level
    ]


def test_each_reason_has_one_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a log that one client fills by ending thousands of connections."""
    clock = Clock()
    failed = FailedConnections(clock)
    with logged_by(proxy.web.failed_connections, monkeypatch) as lines:
        for _ in range(3):
            failed.tell("too slow")
        failed.tell("a flood")
        assert told(lines) == [("too slow", 0), ("a flood", 0)]
        assert told(lines, "debug") == [("too slow", 0)] * 2
        clock.now += 61
        failed.tell("too slow")
        assert told(lines)[2:] == [("too slow", 2)]


def test_exceptions_of_the_same_classes_are_one_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a key with what a client sent, of which there is no end, and a second defect that
    the first one hides."""
    failed = FailedConnections(Clock())
    with logged_by(proxy.web.failed_connections, monkeypatch) as lines:
        for number in range(3):
            inner = ExceptionGroup("of its protocol", [ValueError(f"{number}" * 1000)])
            failed.tell_all(ExceptionGroup("of a connection", [inner]))
        failed.tell_all(ExceptionGroup("of a connection", [KeyError("x"), ValueError("0")]))
        first, second = told(lines)
        assert "ValueError('000" in first[0]
        assert len(first[0]) == MAX_ERROR
        assert second[0] == "(KeyError('x'), ValueError('0'))"

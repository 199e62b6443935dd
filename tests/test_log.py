"""Log lines: JSON for machines, one a line, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from proxy.log import configure_logging


class Lines:
    """What is logged from here on, to a standard error of the test's own."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._capture.readouterr().err.splitlines()]


@contextmanager
def logging(capture: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    before = structlog.get_config()
    configure_logging()
    try:
        yield Lines(capture)
    finally:
        structlog.configure(**before)


def test_a_line_has_its_level_its_time_in_utc_and_what_it_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    began = datetime.now(UTC)
    with logging(capsys) as lines:
        structlog.get_logger().warning("what happened", number=1, text="é\n")
        (line,) = lines.read()
    at = datetime.fromisoformat(line.pop("timestamp"))
    assert at.tzinfo is not None
    assert timedelta(0) <= at - began < timedelta(seconds=60)
    assert line == {"event": "what happened", "level": "warning", "number": 1, "text": "é\n"}


@pytest.mark.parametrize(
    "value",
    ["\udcff", {"\udcff": 1}, Path("a"), b"\xff", 2**70, {1: 2}, object(), ValueError("no"), 1e400],
    ids=repr,
)
def test_no_value_whatever_keeps_a_line_from_being_written(
    value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a log line that raises where it is written, such as for a name that is no UTF-8."""
    with logging(capsys) as lines:
        structlog.get_logger().info("first", value=value)
        structlog.get_logger().info("second")
        first, second = lines.read()
    assert (first["event"], second["event"]) == ("first", "second")
    assert datetime.fromisoformat(first["timestamp"]) <= datetime.fromisoformat(second["timestamp"])


def test_an_exception_is_a_traceback_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with logging(capsys) as lines:
        try:
            raise ValueError("the reason")
        except ValueError:
            structlog.get_logger().exception("it failed")
        (line,) = lines.read()
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: the reason")

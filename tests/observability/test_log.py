"""Log lines: JSON for machines, one a line, whatever is in it."""

from __future__ import annotations

import errno
import json
import logging as stdlib
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from proxy.config import LogSection
from proxy.observability import request_id
from proxy.observability.log import ACCEPT, ACCEPT_SECONDS, configure_logging, server_log
from tests.fakes.world import tiny_jpeg
from tests.processes import SERVE, serve, upstream
from tests.shared.test_printable import CONTROLS


class Lines:
    """What is logged from here on, to a standard error of the test's own."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._capture.readouterr().err.splitlines()]


@contextmanager
def logging(
    capture: pytest.CaptureFixture[str],
    settings: LogSection = LogSection(),  # noqa: B008
) -> Iterator[Lines]:
    before = structlog.get_config()
    configure_logging(settings)
    try:
        yield Lines(capture)
    finally:
        structlog.configure(**before)


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_line_that_cannot_be_written_is_dropped(
    format: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a service that ends with whatever read its log, or when the disk of it is full."""
    reader, writer = os.pipe()
    os.close(reader)
    broken = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", broken)
    with logging(capsys, LogSection.model_validate({"format": format, "level": "debug"})):
        line = structlog.get_logger()
        for write in (line.debug, line.info, line.warning, line.error, line.critical):
            write("event")
        line.exception("event", exc_info=ValueError("of the test"))
        server_log().warning("event")
    with suppress(BrokenPipeError):
        broken.close()


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


def written_to(monkeypatch: pytest.MonkeyPatch, format: str, *, on_a_terminal: bool) -> str:
    """A line of a request, as standard error gets it."""
    stream = StringIO()
    stream.isatty = lambda: on_a_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    before = structlog.get_config()
    try:
        configure_logging(LogSection.model_validate({"format": format}))
        token = request_id.current.set("the-id")
        structlog.get_logger().info("what happened")
        request_id.current.reset(token)
    finally:
        structlog.configure(**before)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("format", "on_a_terminal", "is_json"),
    [
        ("auto", False, True),
        ("auto", True, False),
        ("json", True, True),
        ("console", False, False),
    ],
)
def test_the_form_is_as_configured_whatever_standard_error_is(
    format: str, on_a_terminal: bool, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches colours in a journal, and JSON for somebody who asked for words."""
    text = written_to(monkeypatch, format, on_a_terminal=on_a_terminal)
    assert "what happened" in text
    assert "the-id" in text
    assert text.startswith("{") is is_json


@pytest.mark.parametrize("format", ["console", "json"])
@pytest.mark.parametrize("text", CONTROLS, ids=ascii)
def test_no_value_brings_a_terminal_a_character_that_it_acts_on(
    text: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a path of a request that moves the cursor, or writes a line of its own."""
    stream = StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    before = structlog.get_config()
    try:
        configure_logging(LogSection.model_validate({"format": format}))
        log = structlog.get_logger()
        log.info("request", path=text, error=ValueError(text), number=1)
        try:
            raise ValueError(text)
        except ValueError:
            log.exception(text)
    finally:
        structlog.configure(**before)
    lines = stream.getvalue().split("\n")
    assert all(line.isprintable() for line in lines)
    if format == "json":
        assert [json.loads(line)["event"] for line in lines if line] == ["request", text]
    else:
        assert "number=" in lines[0], "the request is one line"


@pytest.mark.parametrize(
    ("on_a_terminal", "no_color", "is_coloured"),
    [(True, "", True), (True, "1", False), (False, "", False)],
)
def test_colours_are_for_terminals_whose_owner_wants_them(
    on_a_terminal: bool, no_color: str, is_coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches escapes of a terminal in a file."""
    monkeypatch.setenv("NO_COLOR", no_color)
    text = written_to(monkeypatch, "console", on_a_terminal=on_a_terminal)
    assert ("\x1b[" in text) is is_coloured


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_lines_below_the_level_are_not_written(
    level: str, written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with logging(capsys, LogSection.model_validate({"level": level})) as lines:
        for each in ("debug", "info", "warning", "error"):
            getattr(structlog.get_logger(), each)(each)
        assert [line["event"] for line in lines.read()] == written


def test_hypercorns_lines_are_as_ours_with_their_traceback_within(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches a journal in which every tenth line is no JSON."""
    with logging(capsys) as lines:
        server_log().info("Running on %s", "somewhere")
        try:
            raise ValueError("the reason")
        except ValueError:
            server_log().exception("Error in %s", "an application")
        running, failed = lines.read()
    assert (running["event"], running["level"]) == ("Running on somewhere", "info")
    assert running["pid"] == os.getpid()
    assert failed["event"] == "Error in an application"
    assert failed["exception"].endswith("ValueError: the reason")


def test_whatever_a_library_logs_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a library that writes in its own form, and one whose mistake ends a request."""
    with logging(capsys) as lines:
        library = stdlib.getLogger("a.library")
        library.warning("it %s", "warns")
        library.log(35, "between two levels")
        library.log(99, "beyond them")
        server_log().error("arguments %s %s", "too few")
        library.info("not asked for")
        found = lines.read()
    assert [(line["event"], line["level"]) for line in found] == [
        ("it warns", "warning"),
        ("between two levels", "warning"),
        ("beyond them", "critical"),
        ("arguments %s %s", "error"),
    ]
    assert {line["logger"] for line in found} == {"a.library", server_log().name}


class NoDescriptors(trio.abc.Listener[trio.abc.Stream]):
    """Accepts nothing, as at the limit of open files."""

    async def accept(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_connections_that_cannot_be_accepted_are_one_line_a_minute(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a journal that fills the disk while descriptors are missing, and tracebacks in it."""

    async def serve_nobody(_stream: trio.abc.Stream) -> None:
        raise AssertionError

    with logging(capsys) as lines:
        with trio.move_on_after(5):
            await trio.serve_listeners(serve_nobody, [NoDescriptors()])
        (first,) = lines.read()
        later = stdlib.makeLogRecord({"name": ACCEPT, "levelno": stdlib.ERROR, "msg": "again"})
        later.created += ACCEPT_SECONDS
        stdlib.getLogger(ACCEPT).handle(later)
        (second,) = lines.read()
    assert first["event"].startswith("accept returned EMFILE (Too many open files)")
    assert (first["level"], "exception" in first, "left_out" in first) == ("error", False, False)
    assert second["event"] == "again"
    assert second["left_out"] > 10


@pytest.mark.slow
async def test_several_workers_name_themselves_on_each_line(tmp_path: Path) -> None:
    """Catches requests whose process nobody can tell."""
    async with upstream() as internet:
        environment = internet.environment(tmp_path, PROCESS__ISOLATION="thread")
        async with serve([*SERVE, "--workers", "2"], environment, workers=2) as server:
            await server.get("/img/nosuch")
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
            written = [json.loads(line) for line in server.lines]
    assert all("pid" in line for line in written)
    (request,) = (line for line in written if line["event"] == "request")
    assert request["pid"] in server.workers
    assert sum(line["event"] == "service stopped" for line in written) == 2


@pytest.mark.slow
async def test_a_server_tells_its_version_what_is_risky_and_its_end(tmp_path: Path) -> None:
    """Catches a log that does not say which release a line is of."""
    async with upstream() as internet:
        environment = internet.environment(tmp_path, PROCESS__ISOLATION="thread")
        async with serve(SERVE, environment) as server:
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
            written = [json.loads(line) for line in server.lines]
    started = next(line for line in written if line["event"] == "service started")
    risky = next(line for line in written if "private networks" in line["event"])
    assert started["version"] == version("atproto-imageproxy")
    assert started["python"] == platform.python_version()
    assert (risky["level"], risky["key"]) == ("warning", "fetch.allow_private_hosts")
    assert written[-1]["event"] == "service stopped"
    assert "pid" not in started, "of one process it says nothing"


@pytest.mark.slow
async def test_every_line_of_a_server_is_json_and_each_request_has_one_with_its_id(
    tmp_path: Path,
) -> None:
    """Catches lines that cannot be followed through several services, and secrets in them."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        path = f"/img/avatar_thumbnail/plain/{did}/{cid}"
        environment = internet.environment(tmp_path, PROCESS__ISOLATION="thread")
        async with serve(SERVE, environment) as server:
            named = ("X-Request-Id", "from-the-front")
            reply = await server.get(
                f"{path}?token=s3cret", named, ("Authorization", "Bearer s3cret")
            )
            assert reply.status == 200
            assert "x-request-id" not in reply.headers
            await server.get(path, ("X-Request-Id", "two words"))
            await server.get(path.replace("avatar_thumbnail", "nosuch"))
            await server.get(f"/blob/{did}/{cid}", ("X-Request-Id", "another"))
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
            written = [json.loads(line) for line in server.lines]
        assert "s3cret" not in server.text
    miss, hit, wrong, blob = (line for line in written if line["event"] == "request")
    assert miss["request_id"] == "from-the-front"
    assert miss["timings"].keys() == {"resolve", "fetch", "queue", "process"}
    assert (miss["cache"], hit["cache"]) == ("miss", "hit")
    assert "timings" not in hit
    assert hit["request_id"] not in ("two words", miss["request_id"])
    assert wrong["error"] == "InvalidPreset"
    assert wrong["cause"]
    assert "exception" not in wrong, "tracebacks are for our own defects"
    assert blob["request_id"] == "another"
    assert all({"level", "timestamp", "event"} <= line.keys() for line in written)

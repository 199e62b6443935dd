"""Configures logging to standard error: readable on a terminal, JSON elsewhere.

Lines written during a request have its ``request_id``. Lines that libraries write with
``logging`` are handled the same way.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from io import StringIO
from typing import Any, TextIO

import orjson
import structlog

from proxy.config import LogSection
from proxy.observability import request_id
from proxy.observability.repeats import Repeats
from proxy.observability.spans import trace_id
from proxy.shared.printable import printable

SERVER = "hypercorn.error"
"""The name of Hypercorn's logger for everything except its access log."""


ACCEPT = "trio.serve_listeners"
"""The name of Trio's logger for connections that it could not accept."""

ACCEPT_SECONDS = 60.0
"""Seconds between these lines: without free descriptors, Trio logs ten lines a second."""


def configure_logging(
    settings: LogSection = LogSection(),  # noqa: B008 (it is frozen)
    *,
    names_process: bool = False,
) -> None:
    """Set up structlog for this process, and route ``logging`` through it.

    Call it before the first log line.

    Args:
        names_process: add a ``pid`` to every line, because there are several processes.
    """
    on_terminal = sys.stderr.isatty()
    readable = settings.format == "console" or (settings.format == "auto" and on_terminal)
    console = structlog.dev.ConsoleRenderer(
        # https://no-color.org: set, and not empty.
        colors=on_terminal and not os.environ.get("NO_COLOR"),
        # Plain tracebacks: the default ones show local variables, which may contain tokens.
        exception_formatter=_plain_traceback,
    )
    add_context = _context_adder(os.getpid() if names_process else None)
    structlog.configure(
        processors=(
            [
                add_context,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _make_printable,
                console,
            ]
            if readable
            else [add_context, structlog.processors.format_exc_info, _as_json]
        ),
        wrapper_class=type("Lines", (structlog.make_filtering_bound_logger(settings.level),), {}),
        logger_factory=lambda *_: _Lines(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = _ToStructlog()
    server, root = logging.getLogger(SERVER), logging.getLogger()
    server.handlers = [handler]
    server.propagate = False
    server.setLevel(logging.INFO)
    # With a handler here, Quart does not create its own, which would start a thread.
    root.handlers = [each for each in root.handlers if not isinstance(each, _ToStructlog)]
    root.addHandler(handler)
    logging.getLogger(ACCEPT).filters = [_Seldom(ACCEPT_SECONDS)]


def set_level(level: str) -> None:
    """Write lines of ``level`` and above from now on.

    Loggers keep the class that they were made with, so the class gets another base.
    """
    lines = structlog.get_config()["wrapper_class"]
    lines.__bases__ = (structlog.make_filtering_bound_logger(level),)


def server_log() -> logging.Logger:
    """The logger for Hypercorn, so that its lines look like all others; pickled by its name."""
    return logging.getLogger(SERVER)


class _Lines(structlog.WriteLogger):
    """Drops a line that cannot be written: a full disk or a reader that ended stops no service."""

    def msg(self, message: str) -> None:
        """Write a line."""
        with suppress(OSError):
            super().msg(message)

    debug = info = warning = error = critical = msg


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a line of a library."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # the arguments do not match the format
            message = str(record.msg)
        more: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        if left_out := getattr(record, "left_out", 0):
            more["left_out"] = left_out
        # structlog knows only the standard levels.
        level = max(record.levelno // 10 * 10, logging.DEBUG)
        line = structlog.get_logger(record.name)
        line.log(
            min(level, logging.CRITICAL), message, pid=record.process, logger=record.name, **more
        )


class _Seldom(logging.Filter):
    """Passes one line per ``seconds``, without its traceback, which is always the same.

    The next line that passes gives the number that were ``left_out``.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._repeats = Repeats(seconds)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line passes."""
        left_out = self._repeats.admit(record.name, record.created)
        if left_out is None:
            return False
        record.exc_info = None
        record.left_out = left_out
        return True


def _context_adder(
    pid: int | None,
) -> Callable[[object, str, structlog.typing.EventDict], structlog.typing.EventDict]:
    """Return a processor that adds the request's name and trace, and ``pid`` if given."""

    def add(
        _logger: object, _level: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if (name := request_id.current.get()) is not None:
            event["request_id"] = name
        if (trace := trace_id.get()) is not None:
            event["trace_id"] = trace
        if pid is not None:
            event.setdefault("pid", pid)
        return event

    return add


def _make_printable(
    _logger: object, _level: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape what a terminal acts on, for example in a path. ``repr`` escapes other values."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = printable(value)
    return event


def _plain_traceback(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """Write a traceback as ``plain_traceback`` does; its message may be a stranger's text."""
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(printable(text.getvalue(), keep="\n\t"))


def _as_json(_logger: object, level: str, event: structlog.typing.EventDict) -> str:
    """Return one line; values that JSON cannot express are written with ``repr``.

    Level and time are added here, which costs less than structlog's processors for them. This
    matters because every hit logs a line.
    """
    event["level"] = level
    event["timestamp"] = datetime.now(UTC)
    try:
        line = orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z).decode()
        # JSON requires escapes below U+0020 alone; terminals act on some characters above it.
        if line.isprintable():
            return line
        return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line)
    except orjson.JSONEncodeError:  # a lone surrogate, which file names may contain
        event["timestamp"] = event["timestamp"].isoformat()
        return json.dumps(event, default=repr)

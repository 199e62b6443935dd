"""Where log lines go: standard error, readable on a terminal, JSON elsewhere.

Lines that are written while a request is worked for have its ``request_id``. What libraries say by
``logging`` takes the same way.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

from proxy.config import LogSection
from proxy.observability import request_id

SERVER = "hypercorn.error"
"""What Hypercorn calls the logger of all that is not its access log."""


ACCEPT = "trio.serve_listeners"
"""What Trio calls the logger of connections that it could not accept."""

ACCEPT_SECONDS = 60.0
"""How often these are told: without free descriptors Trio has a line ten times a second."""


def configure_logging(
    settings: LogSection = LogSection(),  # noqa: B008 (it is frozen)
    *,
    names_process: bool = False,
) -> None:
    """Set structlog up for this process, and have what uses ``logging`` take the same way.

    Call it before the first line.

    Args:
        names_process: every line has a ``pid``, for there are several processes.
    """
    on_terminal = sys.stderr.isatty()
    readable = settings.format == "console" or (settings.format == "auto" and on_terminal)
    console = structlog.dev.ConsoleRenderer(
        # https://no-color.org: set, and not empty.
        colors=on_terminal and not os.environ.get("NO_COLOR"),
        # Plain tracebacks: the default ones show local variables, tokens among them.
        exception_formatter=structlog.dev.plain_traceback,
    )
    add_context = _context_adder(os.getpid() if names_process else None)
    structlog.configure(
        processors=(
            [
                add_context,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                console,
            ]
            if readable
            else [add_context, structlog.processors.format_exc_info, _as_json]
        ),
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = _ToStructlog()
    server, root = logging.getLogger(SERVER), logging.getLogger()
    server.handlers = [handler]
    server.propagate = False
    server.setLevel(logging.INFO)
    # With a handler here, Quart makes none of its own, with a thread of its own.
    root.handlers = [each for each in root.handlers if not isinstance(each, _ToStructlog)]
    root.addHandler(handler)
    logging.getLogger(ACCEPT).filters = [_Seldom(ACCEPT_SECONDS)]


def server_log() -> logging.Logger:
    """What Hypercorn is to log to, so that its lines are as all others; pickled by its name."""
    return logging.getLogger(SERVER)


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a line of a library's."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # its arguments do not fit
            message = str(record.msg)
        more: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        if left_out := getattr(record, "left_out", 0):
            more["left_out"] = left_out
        # structlog knows the standard levels alone.
        level = max(record.levelno // 10 * 10, logging.DEBUG)
        line = structlog.get_logger(record.name)
        line.log(
            min(level, logging.CRITICAL), message, pid=record.process, logger=record.name, **more
        )


class _Seldom(logging.Filter):
    """Passes one line in so many seconds, without its traceback, which is always the same.

    The next one says how many were ``left_out``.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._next = 0.0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it passes."""
        if record.created < self._next:
            self._left_out += 1
            return False
        record.exc_info = None
        record.left_out, self._left_out = self._left_out, 0
        self._next = record.created + self._seconds
        return True


def _context_adder(
    pid: int | None,
) -> Callable[[object, str, structlog.typing.EventDict], structlog.typing.EventDict]:
    """What adds the request, and the process where ``pid`` is one."""

    def add(
        _logger: object, _level: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if (name := request_id.current.get()) is not None:
            event["request_id"] = name
        if pid is not None:
            event.setdefault("pid", pid)
        return event

    return add


def _as_json(_logger: object, level: str, event: structlog.typing.EventDict) -> str:
    """One line; what is no JSON in it is written as ``repr`` has it.

    Level and time are added here, which costs less than structlog's processors for them: it is
    a part of every hit.
    """
    event["level"] = level
    event["timestamp"] = datetime.now(UTC)
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z).decode()
    except orjson.JSONEncodeError:  # half a surrogate pair, such as file names may have
        event["timestamp"] = event["timestamp"].isoformat()
        return json.dumps(event, default=repr)

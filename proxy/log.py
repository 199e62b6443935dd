"""Where log lines go: standard error, readable on a terminal, JSON elsewhere.

Lines that are written while a request is worked for have its ``request_id``.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

import orjson
import structlog

from proxy import request_id
from proxy.config import LogSection

SERVER = "hypercorn.error"
"""What Hypercorn calls the logger of all that is not its access log."""


def configure_logging(settings: LogSection = LogSection()) -> None:  # noqa: B008 (it is frozen)
    """Set structlog up for this process, and have Hypercorn's lines take the same way.

    Call it before the first line.
    """
    readable = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    # Plain tracebacks: the default ones show local variables, tokens among them.
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=(
            [
                _add_request_id,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                console,
            ]
            if readable
            else [structlog.processors.format_exc_info, _as_json]
        ),
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    server = logging.getLogger(SERVER)
    server.handlers = [_ToStructlog()]
    server.propagate = False
    server.setLevel(logging.INFO)


def server_log() -> logging.Logger:
    """What Hypercorn is to log to, so that its lines are as all others; pickled by its name."""
    return logging.getLogger(SERVER)


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a line of Hypercorn's."""
        more = {"exc_info": record.exc_info} if record.exc_info else {}
        line = structlog.get_logger(record.name)
        line.log(record.levelno, record.getMessage(), pid=record.process, **more)


def _add_request_id(
    _logger: object, _level: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if (name := request_id.current.get()) is not None:
        event["request_id"] = name
    return event


def _as_json(_logger: object, level: str, event: structlog.typing.EventDict) -> str:
    """One line; what is no JSON in it is written as ``repr`` has it.

    Level and time are added here, which costs less than structlog's processors for them: it is
    a part of every hit.
    """
    _add_request_id(_logger, level, event)
    event["level"] = level
    event["timestamp"] = datetime.now(UTC)
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z).decode()
    except orjson.JSONEncodeError:  # half a surrogate pair, such as file names may have
        event["timestamp"] = event["timestamp"].isoformat()
        return json.dumps(event, default=repr)

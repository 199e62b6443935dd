"""Where log lines go: standard error, readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

import orjson
import structlog


def configure_logging(level: int = logging.INFO) -> None:
    """Set structlog up for this process, for lines of ``level`` and above.

    Call it before the first line.
    """
    terminal = sys.stderr.isatty()
    # Plain tracebacks: the default ones show local variables, tokens among them.
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=(
            [
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                console,
            ]
            if terminal
            else [structlog.processors.format_exc_info, _as_json]
        ),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


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

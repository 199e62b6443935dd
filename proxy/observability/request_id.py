"""The request ID for the log: the caller's, or a new one."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar

current: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The ID of the request that the current task serves, or for which it was started."""

_SANE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,64}")
"""Accepts UUIDs, ULIDs, hexadecimal, base64: these cannot break a line, or fill a log."""


_OWN = secrets.token_hex(4)
_numbers = itertools.count()


def of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the value of ``X-Request-Id``, if it is given once and valid; else a new ID."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _SANE.fullmatch(given[0]):
        return given[0].decode("ascii")
    # A counter costs less than a random number, and every hit needs an ID.
    return f"{_OWN}{next(_numbers):08x}"

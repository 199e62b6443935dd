"""The name of a request in the log: its caller's, or one of ours."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar

current: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that the task at hand works for, or was begun for."""

_SANE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,64}")
"""UUIDs, ULIDs, hexadecimal, base64: what cannot break a line, or fill a log."""


_OWN = secrets.token_hex(4)
_numbers = itertools.count()


def of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """That of ``X-Request-Id``, if it is given once and sane; else a new one."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _SANE.fullmatch(given[0]):
        return given[0].decode("ascii")
    # A counter costs less than chance, and this is a part of every hit.
    return f"{_OWN}{next(_numbers):08x}"

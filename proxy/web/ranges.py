"""Answers with one range of bytes (RFC 9110, section 14). Pure, total."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from proxy.web.responses import HttpResponse, range_not_satisfiable

_BYTES = re.compile(r"bytes=[ \t,]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t,]*", re.IGNORECASE)
"""One range; a list of several, and what is none, may be ignored (section 14.2)."""

_DIGITS = 18
"""Digits of a number that are read: more than any length has."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A ``Range`` field, and the ``If-Range`` beside it, if there is one."""

    range: str
    condition: str | None = None


def wanted(method: str, headers: Iterable[tuple[bytes, bytes]]) -> Wanted | None:
    """Return what a request asks for; None: all of it. A range is defined for GET alone."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in (b"range", b"if-range"):
            # Repeated fields form a list, which is no range, or no entity tag.
            before = f"{found[name]}, " if name in found else ""
            found[name] = before + value.decode("latin-1")
    if method != "GET" or b"range" not in found:
        return None
    return Wanted(found[b"range"], found.get(b"if-range"))


def in_range(answer: HttpResponse, asked: Wanted) -> HttpResponse:
    """Return 206 with the part of a 200 that is wanted, 416, or the answer as it is.

    ``If-Range`` must be the strong entity tag itself (section 13.1.5). There are no dates.
    """
    found = _BYTES.fullmatch(asked.range)
    if found is None or answer.status != 200:
        return answer
    if asked.condition is not None and asked.condition.strip(" \t") != dict(answer.headers)["ETag"]:
        return answer
    length = len(answer.body)
    first, last, suffix = found.groups()
    if suffix is not None:
        start, end = max(length - _number(suffix), 0), length
    else:
        start, end = _number(first), _number(last) + 1 if last else length
        if end <= start and last:
            return answer
    if start >= length:
        return range_not_satisfiable(length)
    end = min(end, length)
    content_range = ("Content-Range", f"bytes {start}-{end - 1}/{length}")
    return replace(
        answer, status=206, headers=(*answer.headers, content_range), body=answer.body[start:end]
    )


def _number(digits: str) -> int:
    return int(digits.lstrip("0")[:_DIGITS] or "0")

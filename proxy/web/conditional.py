"""Evaluates ``If-None-Match`` (RFC 9110, section 13.1.2). Pure, total."""

from __future__ import annotations

import re

# Section 8.8.3: etagc is any visible character except the quote, or obs-text.
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_SEPARATOR = re.compile(r"[ \t,]*")


def is_any(header: str) -> bool:
    """Whether ``header`` is ``*``, which matches every existing representation."""
    return header.strip(" \t") == "*"


def none_match(header: str, etag: str) -> bool:
    """Whether the request should go on: no tag of ``header`` names ``etag``.

    The comparison is weak, as the section requires. ``*`` names every tag, of what exists. A header
    that is not a list of entity tags is ignored from its first mistake on.
    """
    if is_any(header):
        return False
    at = _end_of(_SEPARATOR, header, 0)
    while tag := _ENTITY_TAG.match(header, at):
        if tag[1] == etag:
            return False
        after = _end_of(_SEPARATOR, header, tag.end())
        if "," not in header[tag.end() : after]:
            break
        at = after
    return True


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at

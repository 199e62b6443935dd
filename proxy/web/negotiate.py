"""Which format a client gets that asks for none: ``Accept``, by RFC 9110, section 12.5.1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from proxy.model.formats import Format
from proxy.model.presets import Preset
from proxy.web.responses import HttpResponse, PendingResponse, varying

REMEMBERED = 256
"""Headers whose choice is kept; browsers in use send a few dozen."""

MAX_HEADER = 4096
"""Characters looked at; browsers send about a hundred."""


def choose(accept: str | None, formats: Sequence[Format]) -> Format | None:
    """The format of ``formats`` that ``accept`` prefers, or None: as the source has it. Total.

    One counts only where it is named: ``*/*`` is what clients send that know nothing of it. The
    highest quality wins; among equal ones the first of ``formats`` does. A JPEG that is preferred
    to all of them is what the source's format mostly gives.
    """
    if not accept or len(accept) > MAX_HEADER:
        return None
    return _choose(accept, tuple(formats))


@lru_cache(REMEMBERED)
def _choose(accept: str, formats: tuple[Format, ...]) -> Format | None:
    accepted = parse_accept_header(accept, MIMEAccept)
    named: dict[str, float] = {}
    for kind, quality in accepted:
        named[kind.lower()] = max(quality, named.get(kind.lower(), 0.0))
    best = max(formats, key=lambda each: named.get(each.content_type, 0.0), default=None)
    if best is None:
        return None
    quality = named.get(best.content_type, 0.0)
    return best if quality > 0 and quality >= accepted.quality("image/jpeg") else None


def accept_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The value of ``Accept``; of repeated ones, their list (RFC 9110, section 5.3)."""
    values = [value.decode("latin-1") for name, value in headers if name == b"accept"]
    return ", ".join(values) if values else None


def is_negotiable(presets: Mapping[str, Preset], path: str) -> bool:
    """Whether the answer for ``path`` depends on ``Accept``, where formats are negotiated. Total.

    Not where the URL names a format, nor where the preset is ``animated``: what that serves
    depends on whether the source moves, which is known once it was fetched.
    """
    match path.split("/"):
        case ["", "img", name, "plain", _did, blob]:
            preset = presets.get(name)
            return preset is not None and not preset.animated and "@" not in blob
        case _:
            return False


def as_negotiated(answer: HttpResponse | PendingResponse) -> HttpResponse | PendingResponse:
    """``answer`` as one that depends on ``Accept``."""
    if isinstance(answer, HttpResponse):
        return varying(answer)

    async def later() -> HttpResponse:
        return varying(await answer())

    return later

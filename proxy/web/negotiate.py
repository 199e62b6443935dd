"""Chooses a format by ``Accept`` (RFC 9110, section 12.5.1) if the URL names none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from proxy.model.formats import Format
from proxy.model.presets import Preset
from proxy.web.responses import HttpResponse, PendingResponse, varying

REMEMBERED = 256
"""Headers whose choice is cached; current browsers send a few dozen."""

MAX_HEADER = 4096
"""Characters; a longer header is ignored. Browsers send about a hundred."""


def choose(accept: str | None, formats: Sequence[Format]) -> Format | None:
    """Return the format that ``accept`` prefers, or None: the source's format. Total.

    A format counts only if it is named: clients that do not support it also send ``*/*``. The
    highest quality wins; among equals, the first of ``formats`` wins. If JPEG is preferred to all
    of them, the result is None: the source's format is mostly JPEG.
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
    """Return the value of ``Accept``; join repeated fields to a list (RFC 9110, section 5.3)."""
    values = [value.decode("latin-1") for name, value in headers if name == b"accept"]
    return ", ".join(values) if values else None


def is_negotiable(presets: Mapping[str, Preset], path: str) -> bool:
    """Whether the answer for ``path`` depends on ``Accept``, if formats are negotiated. Total.

    False if the URL names a format, or if the preset is ``animated``: its result depends on
    whether the source is animated, which is known only after the fetch.
    """
    match path.split("/"):
        case ["", "img", name, "plain", _did, blob]:
            preset = presets.get(name)
            return preset is not None and not preset.animated and "@" not in blob
        case _:
            return False


def as_negotiated(answer: HttpResponse | PendingResponse) -> HttpResponse | PendingResponse:
    """Mark ``answer`` as dependent on ``Accept``."""
    if isinstance(answer, HttpResponse):
        return varying(answer)

    async def later() -> HttpResponse:
        return varying(await answer())

    return later

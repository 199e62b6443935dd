"""Tells from the first bytes whether a file can have several frames. Pure."""

from __future__ import annotations

from proxy.imaging.containers.webp import VP8X_ANIMATION
from proxy.model.formats import Format

_PNG_HEAD = 1 << 20
"""Bytes in which ``acTL`` must begin: it stands before the pixels, perhaps behind a profile."""


def may_move(format_: Format, source: bytes) -> bool:
    """Whether ``source`` can have frames; quick and total for any bytes."""
    match format_:
        case Format.GIF:
            return True
        case Format.WEBP:
            return source[12:16] == b"VP8X" and any(
                flags & VP8X_ANIMATION for flags in source[20:21]
            )
        case Format.PNG:
            return source.find(b"acTL", 0, _PNG_HEAD) >= 0
        case Format.AVIF:
            return source[8:12] == b"avis"  # of other brands the still is shown
        case _:
            return False

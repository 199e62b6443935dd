"""Copies the picture of any format out of its file, or turns it upright on the way. Pure."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

from proxy.imaging.stripped import avif, gif, jpeg, jpeg_turn, png, webp
from proxy.imaging.stripped.parts import NotUnderstood
from proxy.model.formats import Format


def turn(source: bytes, orientation: int, *, most: int) -> bytes | None:
    """Return the upright picture of a JPEG in at most ``most`` bytes, its coefficients unchanged.

    Total, like ``strip``; None also where blocks cannot be mirrored, and for what would take long.

    Args:
        orientation: of EXIF, 2 to 8.
    """
    try:
        copy = jpeg_turn.turn(source, orientation, most)
    except (NotUnderstood, LookupError, ValueError, struct.error):
        return None
    return copy if len(copy) <= most else None


def strip(
    format_: Format,
    source: bytes,
    *,
    still: bool = False,
    most: int | None = None,
    shown: Image.Image | None = None,
) -> bytes | None:
    """Return the file with its own coded pixels and nothing else; all frames of what moves.

    Total: None for what is damaged, what has a part that is not understood, and for HEIC, which is
    never served. A file that is clean already comes back as it is.

    Args:
        still: return None for a file that moves.
        most: return None for more bytes than this.
        shown: the pixels of a still ``source`` as decoded, if they are at hand. With them a JPEG is
            copied faster, and of WebP and AVIF the ends of coded data are examined too.
    """
    try:
        match format_:
            case Format.JPEG:
                copy = jpeg.strip(source, most, shown)
            case Format.PNG:
                copy = png.strip(source, still=still)
            case Format.WEBP:
                copy = webp.strip(source, still=still, shown=shown)
            case Format.GIF:
                copy = gif.strip(source, still=still)
            case Format.AVIF:
                copy = avif.strip(source, still=still, shown=shown)
            case Format.HEIC:
                return None
    except (NotUnderstood, LookupError, ValueError, struct.error, zlib.error):
        return None
    return None if most is not None and len(copy) > most else copy

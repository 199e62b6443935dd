"""Writes an animated WebP (RFC 9649) frame by frame: of each, the rectangle that changed. Pure.

Pillow codes each frame as a still. Its own animations hold what was written until the end, so that
nothing could bound their bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO

from PIL import Image, ImageChops

from proxy.imaging.animation.changes import Region, changed, share
from proxy.imaging.animation.film import Frame, Ticks
from proxy.imaging.animation.output import Output
from proxy.imaging.containers import webp
from proxy.imaging.encoder_errors import encoding
from proxy.model.presets import Size

_METHOD = 2  # a third of the time of 4, for 2 percent more bytes
LOSSLESS = 101

_NO_BLEND = 2
_MOST_PLAYS, _MOST_DURATION = 0xFFFF, 0xFFFFFF
_PIXELS = (b"ALPH", b"VP8 ", b"VP8L")


def write(
    frames: Iterator[Frame], size: Size, plays: int, quality: int, most: int, *, drawn: bool
) -> bytes:
    """Return an animated WebP of ``frames``.

    Args:
        quality: 1 to 100, or ``LOSSLESS``.
        drawn: whether the picture is drawn rather than photographed: then each frame is coded
            without loss too, and the smaller is taken.

    Raises:
        TooManyBytes: it has more than ``most``.
    """
    out = Output(most)
    out.add(_head(size, plays, translucent=False))
    before: Image.Image | None = None
    translucent = False
    ticks = Ticks()
    for frame in frames:
        image = frame.image
        translucent = translucent or image.mode == "RGBA"
        box, blend, part = _part(before, image)
        duration = min(ticks.of(frame.duration), _MOST_DURATION)
        place = b"".join(
            number.to_bytes(3, "little")
            for number in (box[0] // 2, box[1] // 2, part.width - 1, part.height - 1, duration)
        )
        out.add(_chunk(b"ANMF", place + bytes([blend]) + _coded(part, quality, drawn)))
        before = image
    head = _head(size, plays, translucent=translucent)
    body = head[8:] + out.joined()[len(head) :]
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _head(size: Size, plays: int, *, translucent: bool) -> bytes:
    """Return what comes before the frames; the length of the file is set after them."""
    flags = webp.VP8X_ANIMATION | (webp.VP8X_ALPHA if translucent else 0)
    sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
    canvas = _chunk(b"VP8X", struct.pack("<I", flags) + sides)
    loops = _chunk(b"ANIM", struct.pack("<IH", 0, min(plays, _MOST_PLAYS)))
    return b"".join((b"RIFF\0\0\0\0WEBP", canvas, loops))


def _part(before: Image.Image | None, image: Image.Image) -> tuple[Region, int, Image.Image]:
    """Return where to draw what, and how it is blended."""
    if before is None:
        return (0, 0, *image.size), _NO_BLEND, image
    if before.mode != image.mode:
        before, image = before.convert("RGBA"), image.convert("RGBA")
    differs = changed(before, image)
    left, top, right, bottom = differs.getbbox() or (0, 0, 1, 1)
    box = (left & ~1, top & ~1, right, bottom)  # offsets are stored halved
    differs, part = differs.crop(box), image.crop(box)
    if share(differs) > 0.5 or _is_translucent(part, differs):
        return box, _NO_BLEND, part
    # What stays is transparent, and costs less than its colours.
    sparse = part.convert("RGB")
    sparse.putalpha(differs)
    return box, 0, sparse


def _is_translucent(image: Image.Image, where: Image.Image) -> bool:
    if image.mode != "RGBA":
        return False
    return ImageChops.subtract(where, image.getchannel("A")).getbbox() is not None


def _coded(image: Image.Image, quality: int, drawn: bool) -> bytes:
    exact = _encoded(image, lossless=True, quality=0) if drawn or quality == LOSSLESS else None
    lossy = None if quality == LOSSLESS else _encoded(image, quality=quality)
    return min((each for each in (exact, lossy) if each is not None), key=len)


def _encoded(image: Image.Image, **options: object) -> bytes:
    out = BytesIO()
    with encoding():
        image.save(out, "WEBP", method=_METHOD, **options)
    return b"".join(
        _chunk(chunk.kind, bytes(chunk.body))
        for chunk in webp.chunks(out.getvalue())
        if chunk.kind in _PIXELS
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    padding = b"\0" * (len(body) & 1)
    return kind + len(body).to_bytes(4, "little") + body + padding

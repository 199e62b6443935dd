"""Writes a GIF frame by frame: of each, the rectangle that changed. Pure.

Pillow codes the pixels of each frame; it would join them too, but holds all of them meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageChops

from proxy.imaging.animation.changes import Region, changed, union
from proxy.imaging.animation.few_colors import quantized
from proxy.imaging.animation.film import FOREVER, Frame, Ticks
from proxy.imaging.animation.output import Output
from proxy.imaging.animation.read_gif import parse
from proxy.imaging.encoder_errors import encoding
from proxy.model.presets import Size

MOST_COLORS = 255
"""One of the 256 is for pixels that stay as they are."""

_KEEP, _CLEAR = 1, 2

_MOST_PLAYS, _MOST_DELAY = 0xFFFF, 0xFFFF


@dataclass(slots=True)
class _Pending:
    """A frame that waits for the next one, which decides how it is disposed of.

    Attributes:
        canvas: what it is drawn on.
    """

    canvas: Image.Image
    image: Image.Image
    delay: int


def write(frames: Iterator[Frame], size: Size, plays: int, colors: int, most: int) -> bytes:
    """Return a GIF of ``frames``, each with at most ``colors`` colours of its own.

    A pixel is transparent where its alpha is below a half.

    Raises:
        TooManyBytes: it has more than ``most``.
    """
    out = Output(most)
    out.add(struct.pack("<6sHHBBB", b"GIF89a", *size, 0, 0, 0))
    if plays != 1:
        again = 0 if plays == FOREVER else min(plays - 1, _MOST_PLAYS)
        out.add(struct.pack("<3s11sBBHB", b"!\xff\x0b", b"NETSCAPE2.0", 3, 1, again, 0))
    pending: _Pending | None = None
    ticks = Ticks(10)
    for frame in frames:
        image = _hard_edged(frame.image)
        canvas = Image.new("RGBA", size)
        if pending is not None:
            erased = _erased(pending.image, image)
            _emit(out, pending, erased, colors)
            canvas = pending.image
            if erased is not None:
                canvas = canvas.copy()
                canvas.paste((0, 0, 0, 0), _region(pending, erased))
        delay = min(ticks.of(frame.duration), _MOST_DELAY)
        pending = _Pending(canvas, image, delay)
    if pending is not None:
        _emit(out, pending, None, colors)
    out.add(b";")
    return out.joined()


def _hard_edged(image: Image.Image) -> Image.Image:
    """Make each pixel fully transparent, without colour, or opaque."""
    if image.mode != "RGBA":
        return image.convert("RGBA")
    mask = image.getchannel("A").point([255 * (value >= 128) for value in range(256)])
    hard = Image.new("RGBA", image.size)
    hard.paste(image.convert("RGB"), mask=mask)
    return hard


def _erased(before: Image.Image, after: Image.Image) -> Region | None:
    """Return the region of opaque pixels that become transparent, which no frame can draw."""
    return ImageChops.subtract(before.getchannel("A"), after.getchannel("A")).getbbox()


def _region(pending: _Pending, erased: Region | None) -> Region:
    """Return the rectangle of the frame: what it changes, and what its disposal has to clear."""
    own = changed(pending.canvas, pending.image).getbbox()
    return union(own, erased) or (0, 0, 1, 1)


def _emit(out: Output, pending: _Pending, erased: Region | None, colors: int) -> None:
    box = _region(pending, erased)
    image = pending.image.crop(box)
    differs = changed(pending.canvas.crop(box), image)
    indices = quantized(image.convert("RGB"), differs, colors)
    palette = bytes(indices.getpalette() or ())
    transparent = colors
    indices.paste(transparent, mask=ImageChops.invert(differs))
    coded = BytesIO()
    with encoding():
        indices.save(coded, "GIF", optimize=False, interlace=0)
    parsed = parse(coded.getvalue(), 1)
    if parsed is None or not parsed.parts:
        raise ValueError("the encoder wrote no frame")
    bits = max((colors).bit_length(), 1)
    left, top, right, bottom = box
    disposal = _KEEP if erased is None else _CLEAR
    out.add(
        struct.pack("<3sBHBB", b"!\xf9\x04", disposal << 2 | 1, pending.delay, transparent, 0),
        struct.pack("<cHHHHB", b",", left, top, right - left, bottom - top, 0x80 | bits - 1),
        palette[: 3 << bits].ljust(3 << bits, b"\0"),
        bytes(parsed.parts[0].pixels),
    )

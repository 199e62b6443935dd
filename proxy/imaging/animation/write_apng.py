"""Writes an animated PNG frame by frame: of each, the rectangle that changed. Pure.

Pillow codes the pixels of each frame; it would join them too, but holds all of them meanwhile.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from itertools import chain

from PIL import Image, ImageChops

from proxy.imaging.animation.changes import changed, share
from proxy.imaging.animation.few_colors import quantized
from proxy.imaging.animation.film import Frame
from proxy.imaging.animation.output import Output
from proxy.imaging.containers import png
from proxy.imaging.containers.apng import chunk_of
from proxy.imaging.encoder_errors import encoding
from proxy.model.presets import Size

_SOURCE, _OVER = 0, 1
_LEVEL, _TIGHT_LEVEL = 4, 9  # of zlib

ALL, ALL_TIGHTLY = 0, -1
"""For a number of colours: all of them, the second in more time and fewer bytes."""
_MOST = 0xFFFF

_RGBA = struct.pack(">BBBBB", 8, 6, 0, 0, 0)  # eight bits each
_INDICES = struct.pack(">BBBBB", 8, 3, 0, 0, 0)  # likewise

MOST_COLORS = 255
"""Of a palette that all frames share."""

_EXACT = 8
_SAMPLES = 1 << 13
"""Pixels of each frame that such a palette is made of."""


def write(frames: Iterator[Frame], size: Size, plays: int, colors: int, most: int) -> bytes:
    """Return an APNG of ``frames``.

    Args:
        colors: of each frame, at most; or one of the constants above.

    Raises:
        TooManyBytes: it has more than ``most``.
    """
    out = Output(most)
    out.add(_head(size, 0, plays, _RGBA))
    number = count = 0
    before: Image.Image | None = None
    for frame in frames:
        image = frame.image if frame.image.mode == "RGBA" else frame.image.convert("RGBA")
        (left, top), blend, drawn = _drawn(before, image)
        if colors > 0:
            drawn = _fewer_colors(drawn, colors)
        coded = _coded(drawn, _TIGHT_LEVEL if colors == ALL_TIGHTLY else _LEVEL)
        number = _add_frame(out, number, (*drawn.size, left, top), frame, blend, coded)
        before = image
        count += 1
    out.add(chunk_of(b"IEND", b""))
    head = _head(size, count, plays, _RGBA)
    return head + out.joined()[len(head) :]


def shared_palette(frames: Iterator[Frame], colors: int) -> Image.Image | None:
    """Return a picture with a palette for all frames, or None if one of them has alpha.

    Args:
        colors: maximum of its entries.
    """
    strips = []
    for frame in frames:
        if frame.image.mode != "RGB":
            return None
        shrink = max(int((frame.image.width * frame.image.height / _SAMPLES) ** 0.5), 1)
        sides = (-(-frame.image.width // shrink), -(-frame.image.height // shrink))
        strips.append(frame.image.resize(sides, Image.Resampling.NEAREST))
    width, height = strips[0].size
    seen = Image.new("RGB", (width, height * len(strips)))
    for number, strip in enumerate(strips):
        seen.paste(strip, (0, height * number))
    # Medians are means of what is near: white would be off-white. So the commonest stay exact.
    counted = seen.getcolors(seen.width * seen.height) or []
    exact: list[tuple[int, ...]] = []
    for _, color in heapq.nlargest(_EXACT, counted):
        if isinstance(color, tuple) and not any(_beside(color, other) for other in exact):
            exact.append(color)
    rest = seen.quantize(colors - _EXACT, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    table = rest.getpalette() or []
    entries = [tuple(table[at : at + 3]) for at in range(0, len(table), 3)]
    # Pillow looks up the nearest entry for eight steps at once: one beside an exact one may be it.
    far = [entry for entry in entries if not any(_beside(entry, color) for color in exact)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*chain.from_iterable((*exact, *far[: colors - len(exact)]))])
    return palette


def _beside(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    return all(abs(one - two) < 8 for one, two in zip(first, second, strict=True))


def write_with_palette(
    frames: Iterator[Frame], size: Size, plays: int, palette: Image.Image, most: int
) -> bytes:
    """Return an APNG of opaque frames, whose pixels are indices into one palette.

    Args:
        palette: see ``shared_palette``, of at most 255 entries: one more says what stays as it is.

    Raises:
        TooManyBytes: it has more than ``most``.
    """
    entries = bytes(palette.getpalette() or ())[: 3 * MOST_COLORS]
    unchanged = len(entries) // 3
    chunks = chunk_of(b"PLTE", entries + bytes(3)) + chunk_of(b"tRNS", b"\xff" * unchanged + b"\0")
    out = Output(most)
    out.add(_head(size, 0, plays, _INDICES), chunks)
    number = count = 0
    before: Image.Image | None = None
    for frame in frames:
        few = frame.image.quantize(palette=palette, dither=Image.Dither.NONE)
        indices = Image.frombytes("L", few.size, few.tobytes())
        box, part = (0, 0), indices.copy()
        if before is not None:
            differs = changed(before, indices)
            found = differs.getbbox() or (0, 0, 1, 1)
            box, part = found[:2], indices.crop(found)
            part.paste(unchanged, mask=ImageChops.invert(differs.crop(found)))
        part.putpalette(entries + bytes(3))
        blend = _SOURCE if before is None else _OVER
        coded = _coded(part, _TIGHT_LEVEL, bits=8)
        number = _add_frame(out, number, (*part.size, *box), frame, blend, coded)
        before = indices
        count += 1
    out.add(chunk_of(b"IEND", b""))
    head = _head(size, count, plays, _INDICES)
    return head + out.joined()[len(head) :]


def _add_frame(
    out: Output, number: int, place: tuple[int, ...], frame: Frame, blend: int, coded: bytes
) -> int:
    """Write one frame, and return the sequence number of what comes next.

    Args:
        number: its sequence number; that of the first is 0, whose pixels are the default picture.
        place: width, height, left and top.
    """
    control = (number, *place, *_delay(frame), 0, blend)
    out.add(chunk_of(b"fcTL", struct.pack(">IIIIIHHBB", *control)))
    if number == 0:
        out.add(chunk_of(b"IDAT", coded))
        return 1
    out.add(chunk_of(b"fdAT", (number + 1).to_bytes(4, "big") + coded))
    return number + 2


def _head(size: Size, count: int, plays: int, samples: bytes) -> bytes:
    """Return what comes before the frames, whose number is known after them."""
    header = chunk_of(b"IHDR", struct.pack(">II", *size) + samples)
    return png.SIGNATURE + header + chunk_of(b"acTL", struct.pack(">II", count, plays))


def _drawn(
    before: Image.Image | None, image: Image.Image
) -> tuple[tuple[int, int], int, Image.Image]:
    """Return where to draw what, and how it is blended."""
    if before is None:
        return (0, 0), _SOURCE, image
    differs = changed(before, image)
    box = differs.getbbox() or (0, 0, 1, 1)
    differs, part = differs.crop(box), image.crop(box)
    opaque = Image.new("L", part.size, 255)
    hidden = ImageChops.darker(differs, ImageChops.difference(part.getchannel("A"), opaque))
    if share(differs) > 0.5 or hidden.getbbox():
        return box[:2], _SOURCE, part
    # What stays is transparent, and costs less than its colours.
    sparse = Image.new("RGBA", part.size)
    sparse.paste(part, mask=differs)
    return box[:2], _OVER, sparse


def _fewer_colors(image: Image.Image, colors: int) -> Image.Image:
    alpha = image.getchannel("A")
    visible = alpha.point([0, *[255] * 255])
    few = quantized(image.convert("RGB"), visible, colors).convert("RGB")
    few.putalpha(alpha)
    clear = Image.new("RGBA", image.size)
    clear.paste(few, mask=visible)
    return clear


def _delay(frame: Frame) -> tuple[int, int]:
    seconds = frame.duration / 1000
    if seconds.denominator > _MOST or seconds.numerator > _MOST:
        seconds = min(Fraction(round(frame.duration), 1000), Fraction(_MOST, 1000))
    return seconds.numerator, seconds.denominator


def _coded(image: Image.Image, level: int, **options: int) -> bytes:
    out = BytesIO()
    with encoding():
        image.save(out, "PNG", compress_level=level, **options)
    return b"".join(chunk.body for chunk in png.chunks(out.getvalue()) if chunk.kind == b"IDAT")

"""Reads the frames of a GIF (GIF89a specification), composed as browsers do. Pure.

Pillow decodes the pixels of each frame alone. It would compose them too, but takes the background
colour for what was disposed of, keeps a frame's disposal for later ones, and enlarges the canvas.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from typing import NamedTuple

from PIL import GifImagePlugin, Image

from proxy.errors import UndecodableImage
from proxy.imaging.animation.film import FOREVER, Film, Frame, shown
from proxy.imaging.decoder_errors import decoding
from proxy.model.presets import Size

_KEEP, _CLEAR, _RESTORE = 1, 2, 3
_DISPOSALS = {2: _CLEAR, 3: _RESTORE, 4: _RESTORE}  # 4 was written for 3 by some; others keep

_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


class _Part(NamedTuple):
    """A frame as stored.

    Attributes:
        box: left, top, right and bottom on the canvas; it may exceed the canvas.
        palette: red, green and blue of each entry; of the frame or else of the file.
        interlaced: the flag of the image descriptor.
        pixels: the coded pixels, with the code size before them.
        transparent: the index that leaves the canvas as it is.
        disposal: one of the constants above.
        delay: in hundredths of a second.
    """

    box: tuple[int, int, int, int]
    palette: bytes
    interlaced: int
    pixels: memoryview
    transparent: int | None
    disposal: int
    delay: int


class Parsed(NamedTuple):
    """A GIF without its metadata; at most so many frames as were asked for."""

    size: Size
    plays: int
    parts: list[_Part]


def film(source: bytes, most: int) -> Film | None:
    """Return the film of a GIF, or None if it has no second frame.

    Args:
        most: frames; a file with more is reported to have one more.
    """
    parsed = parse(source, most + 1)
    if parsed is None or len(parsed.parts) < 2:
        return None
    return Film(parsed.size, len(parsed.parts), parsed.plays, partial(_frames, parsed))


def parse(data: bytes, most: int) -> Parsed | None:
    """Read the structure of a GIF, until its end or a part that is cut; total for any bytes."""
    if len(data) < 13:
        return None
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, shared = _palette(data, 13, flags)
    parts: list[_Part] = []
    plays, control = 1, b"\0\0\0\0"
    while len(parts) < most:
        kind = data[at : at + 1]
        if kind == b"!":
            label, at = data[at + 1 : at + 2], at + 2
            end = _end_of_blocks(data, at)
            if end is None:
                break
            if label == b"\xf9" and data[at] >= 4:
                control = data[at + 1 : at + 5]
            elif label == b"\xff" and data[at + 1 : at + 12] in _LOOPS:
                plays = _plays(data[at + 12 : end], plays)
            at = end
        elif kind == b"," and at + 10 <= len(data):
            left, top, across, down, flags = struct.unpack_from("<HHHHB", data, at + 1)
            start, own = _palette(data, at + 10, flags)
            end = _end_of_blocks(data, start + 1)
            if end is None:
                break
            parts.append(
                _Part(
                    (left, top, left + across, top + down),
                    own or shared,
                    flags & 0x40,
                    memoryview(data)[start:end],
                    control[3] if control[0] & 1 else None,
                    _DISPOSALS.get(control[0] >> 2 & 7, _KEEP),
                    int.from_bytes(control[1:3], "little"),
                )
            )
            at, control = end, b"\0\0\0\0"
        else:
            break
    if parts:  # the first frame, and no other, enlarges the canvas
        width, height = max(width, parts[0].box[2]), max(height, parts[0].box[3])
    return Parsed(Size(width, height), plays, parts) if width and height else None


def _palette(data: bytes, at: int, flags: int) -> tuple[int, bytes]:
    """Return the offset after the palette, and the palette; an absent one is empty."""
    end = at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    return end, data[at:end]


def _end_of_blocks(data: bytes, at: int) -> int | None:
    """Return the offset after the blocks from ``at``, or None if the file ends in them."""
    while at < len(data):
        if not data[at]:
            return at + 1
        at += 1 + data[at]
    return None


def _plays(block: bytes, known: int) -> int:
    """Return how often all frames are shown: once, and then as often as the block says."""
    if len(block) < 4 or block[0] < 3 or block[1] & 7 != 1:
        return known
    again = int.from_bytes(block[2:4], "little")
    return again + 1 if again else FOREVER


def _frames(parsed: Parsed) -> Iterator[Frame]:
    canvas = Image.new("RGBA", parsed.size)
    before: Image.Image | None = None
    for part in parsed.parts:
        drawn = _decoded(part)
        if drawn is None:
            return
        if part.disposal == _RESTORE:
            before = canvas.copy()
        canvas.paste(*drawn)
        yield Frame(canvas.copy(), shown(10 * part.delay))
        if part.disposal == _RESTORE and before is not None:
            canvas = before
        elif part.disposal == _CLEAR:
            canvas.paste((0, 0, 0, 0), part.box)


def _decoded(
    part: _Part,
) -> tuple[Image.Image, tuple[int, int, int, int], Image.Image | None] | None:
    """Return what to paste: picture, box, mask. None if it does not decode."""
    left, top, right, bottom = part.box
    size = (right - left, bottom - top)
    if not all(size):
        return Image.new("RGB", (0, 0)), (left, top, left, top), None
    head = struct.pack("<6sHHBBB", b"GIF89a", *size, 0, 0, 0)
    frame = struct.pack("<cHHHHB", b",", 0, 0, *size, part.interlaced)
    try:
        with decoding():
            image = GifImagePlugin.GifImageFile(BytesIO(b"".join((head, frame, part.pixels, b";"))))
            image.load()
    except UndecodableImage:
        return None
    indices = Image.frombytes("L", size, image.tobytes())
    mask = None
    if part.transparent is not None:
        mask = indices.point([255 * (index != part.transparent) for index in range(256)])
    indices.putpalette(part.palette.ljust(768, b"\0"))  # an entry that is absent is black
    return indices.convert("RGB"), part.box, mask

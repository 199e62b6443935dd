"""Moving sources, put together by hand, so that every rule of their formats can be broken."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from tests.imaging.sources import Pixels, encoded

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def flat_palette(colors: Sequence[tuple[int, int, int]]) -> bytes:
    return bytes(value for color in colors for value in color)


@dataclass(frozen=True)
class GifFrame:
    """A frame of indices, at a place of the canvas.

    Attributes:
        local: a palette of its own, of 2, 4, 8, ... colours.
        delay: in hundredths of a second; None: no control extension at all.
    """

    indices: Pixels
    left: int = 0
    top: int = 0
    disposal: int = 0
    transparent: int | None = None
    delay: int | None = 5
    local: Sequence[tuple[int, int, int]] = ()
    interlaced: bool = False


def plain(index: int, width: int, height: int) -> Pixels:
    return np.full((height, width), index, np.uint8)


def ramp(width: int, height: int, colors: int = 4) -> Pixels:
    """Indices of diagonal stripes."""
    down, across = np.mgrid[0:height, 0:width]
    indices: Pixels = ((across // 2 + down) % colors).astype(np.uint8)
    return indices


def gif(
    frames: Sequence[GifFrame],
    size: tuple[int, int],
    *,
    colors: Sequence[tuple[int, int, int]] = PALETTE,
    background: int = 1,
    loops: int | None = None,
    loops_as: bytes = b"NETSCAPE2.0",
) -> bytes:
    out = [b"GIF89a", struct.pack("<HH", *size)]
    out.append(bytes([_palette_flags(colors), background, 0]) + flat_palette(colors))
    if loops is not None:
        out.append(b"!\xff\x0b" + loops_as + struct.pack("<BBHB", 3, 1, loops, 0))
    for frame in frames:
        if frame.delay is not None:
            see_through = frame.transparent is not None
            flags = frame.disposal << 2 | see_through
            fields = struct.pack("<BHB", flags, frame.delay, frame.transparent or 0)
            out.append(b"!\xf9\4" + fields + b"\0")
        height, width = frame.indices.shape
        flags = _palette_flags(frame.local) | frame.interlaced << 6
        out.append(b"," + struct.pack("<HHHHB", frame.left, frame.top, width, height, flags))
        out.append(flat_palette(frame.local) + _lzw(frame))
    return b"".join((*out, b";"))


def _palette_flags(colors: Sequence[object]) -> int:
    return 0x80 | (len(colors).bit_length() - 2) if colors else 0


def _lzw(frame: GifFrame) -> bytes:
    image = Image.fromarray(frame.indices).convert("P")
    data = encoded(image, "GIF", optimize=False, interlace=int(frame.interlaced))
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while data[at] == ord("!"):
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    assert data[at : at + 1] == b","
    return data[at + 10 : -1]


@dataclass(frozen=True)
class PngFrame:
    """A frame of any PNG mode; all of one file need the same one.

    Attributes:
        delay: numerator and denominator, in seconds.
    """

    image: Image.Image
    left: int = 0
    top: int = 0
    dispose: int = 0
    blend: int = 0
    delay: tuple[int, int] = (5, 100)


def apng(
    frames: Sequence[PngFrame],
    *,
    plays: int = 0,
    default: Image.Image | None = None,
    declared: int | None = None,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """An animated PNG.

    Args:
        default: a picture that is no frame.
        declared: the number of frames that the header tells.
        chunks: others, before the first picture.
    """
    first = png_chunks(encoded(default or frames[0].image, "PNG"))
    out = [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", first[b"IHDR"])]
    out.append(png_chunk(b"acTL", struct.pack(">II", declared or len(frames), plays)))
    out += [png_chunk(kind, body) for kind, body in chunks]
    out += [png_chunk(kind, first[kind]) for kind in (b"PLTE", b"tRNS") if kind in first]
    if default is not None:
        out.append(png_chunk(b"IDAT", first[b"IDAT"]))
    number = 0
    for at, frame in enumerate(frames):
        place = (number, *frame.image.size, frame.left, frame.top, *frame.delay)
        control = struct.pack(">IIIIIHHBB", *place, frame.dispose, frame.blend)
        out.append(png_chunk(b"fcTL", control))
        number += 1
        data = png_chunks(encoded(frame.image, "PNG"))[b"IDAT"]
        if at == 0 and default is None:
            out.append(png_chunk(b"IDAT", data))
        else:
            out.append(png_chunk(b"fdAT", number.to_bytes(4, "big") + data))
            number += 1
    return b"".join((*out, png_chunk(b"IEND", b"")))


def png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The bodies by their kinds; those of one kind joined."""
    found: dict[bytes, bytes] = {}
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        found[kind] = found.get(kind, b"") + data[at + 8 : at + 8 + length]
        at += 12 + length
    return found


def png_chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")
    return len(body).to_bytes(4, "big") + kind + body + check


@dataclass(frozen=True)
class WebpFrame:
    """A frame, coded without loss; left and top are even."""

    image: Image.Image
    left: int = 0
    top: int = 0
    clears: bool = False
    blends: bool = True
    duration: int = 50


def webp(
    frames: Sequence[WebpFrame],
    size: tuple[int, int],
    *,
    plays: int = 0,
    background: int = 0xFF00FF00,
) -> bytes:
    def number(value: int) -> bytes:
        return value.to_bytes(3, "little")

    body = [
        riff_chunk(b"VP8X", b"\x12\0\0\0" + number(size[0] - 1) + number(size[1] - 1)),
        riff_chunk(b"ANIM", struct.pack("<IH", background, plays)),
    ]
    for frame in frames:
        coded = encoded(frame.image, "WEBP", lossless=True, exact=True)
        at = coded.index(b"VP8L")
        sides = number(frame.image.width - 1) + number(frame.image.height - 1)
        place = number(frame.left // 2) + number(frame.top // 2) + sides + number(frame.duration)
        flags = bytes([(not frame.blends) << 1 | frame.clears])
        body.append(riff_chunk(b"ANMF", place + flags + coded[at:]))
    return riff_chunk(b"RIFF", b"WEBP" + b"".join(body))


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(4, "little") + body + bytes(len(body) & 1)


def saved(format_: str, frames: Sequence[Image.Image], **options: object) -> bytes:
    """As Pillow saves an animation."""
    out = BytesIO()
    frames[0].save(out, format_, save_all=True, append_images=frames[1:], **options)
    return out.getvalue()

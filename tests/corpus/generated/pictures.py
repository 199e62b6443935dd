"""The pictures that the corpus shows, and what writes them where no library does. Pure."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from tests.imaging import sources
from tests.imaging.sources import Pixels

WIDTH, HEIGHT = 96, 64


@cache
def card(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """A smooth picture with a row of flat colours: every colour error shows, codecs make none."""
    pixels = np.array(sources.photo(width, height, grain=0))
    patches = [(40, 40, 40), (128, 128, 128), (220, 220, 220), (200, 60, 40), (60, 170, 90),
               (50, 80, 190)]  # fmt: skip
    side = max(width // 6, 1)
    for number, color in enumerate(patches):
        pixels[: height // 4, number * side : (number + 1) * side] = color
    pixels.setflags(write=False)
    return pixels


def ramp(width: int, height: int) -> Pixels:
    """Colours that change slowly, for pictures too small for ``card``."""
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([90 + 3 * x, 130 + 2 * y, 160 - x]).clip(0, 255).astype(np.uint8)


@cache
def grey_card(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    grey: Pixels = np.ascontiguousarray(card(width, height)[..., 1])
    return grey


@cache
def glass(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    return sources.with_alpha(card(width, height))


@cache
def turning(count: int, width: int = WIDTH, height: int = HEIGHT) -> tuple[Pixels, ...]:
    """Frames in which everything moves."""
    step = max(width // max(count, 1) // 8 * 8, 8)
    frames = [np.ascontiguousarray(np.roll(card(width, height), step * n, 1)) for n in range(count)]
    return tuple(frames)


# PNG (third edition)


def apng_fctl(number: int, frame: ApngFrame) -> bytes:
    height, width = frame.pixels.shape[:2]
    body = struct.pack(">IIIIIHHBB", number, width, height, frame.x, frame.y, *frame.delay,
                       frame.dispose, frame.blend)  # fmt: skip
    return sources.png_chunk(b"fcTL", body)


@dataclass(frozen=True)
class ApngFrame:
    """RGBA pixels at an offset; ``delay`` is a fraction of a second."""

    pixels: Pixels
    x: int = 0
    y: int = 0
    delay: tuple[int, int] = (1, 10)
    dispose: int = 0
    blend: int = 0


def apng(
    frames: Sequence[ApngFrame], plays: int = 0, default: Pixels | None = None, more: bytes = b""
) -> bytes:
    """An animation. ``default`` is a picture that is no frame; ``more`` goes behind the header."""
    first = frames[0].pixels if default is None else default
    height, width = first.shape[:2]
    parts = [
        b"\x89PNG\r\n\x1a\n",
        sources.png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
        more,
        sources.png_chunk(b"acTL", struct.pack(">II", len(frames), plays)),
    ]
    if default is not None:
        parts.append(sources.png_chunk(b"IDAT", _rows(default)))
    number = 0
    for index, frame in enumerate(frames):
        parts.append(apng_fctl(number, frame))
        number += 1
        if index == 0 and default is None:
            parts.append(sources.png_chunk(b"IDAT", _rows(frame.pixels)))
        else:
            parts.append(
                sources.png_chunk(b"fdAT", struct.pack(">I", number) + _rows(frame.pixels))
            )
            number += 1
    return b"".join([*parts, sources.png_chunk(b"IEND", b"")])


def _rows(pixels: NDArray[np.generic]) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))


def raw_png(
    pixels: NDArray[np.uint8] | NDArray[np.uint16], color_type: int, *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG of 8 or 16 bits of any colour type, with ``chunks`` before its pixels."""
    height, width = pixels.shape[:2]
    bits = 16 if pixels.dtype == np.uint16 else 8
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    samples = pixels.astype(">u2") if bits == 16 else pixels
    parts = [(b"IHDR", header), *chunks, (b"IDAT", _rows(samples)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sources.png_chunk(*part) for part in parts)


# GIF89a


@dataclass(frozen=True)
class GifFrame:
    """Palette indices at an offset; ``delay`` in hundredths of a second."""

    indices: Pixels
    x: int = 0
    y: int = 0
    delay: int | None = 10
    disposal: int = 0
    transparent: int | None = None
    palette: bytes | None = None
    interlaced: bool = False


PALETTE = bytes(
    value for color in [(30, 30, 60), (230, 60, 50), (60, 190, 80), (70, 90, 210), (215, 200, 70),
                        (250, 250, 250), (120, 120, 120), (0, 0, 0)] for value in color
)  # fmt: skip
"""Eight colours."""


def gif(
    size: tuple[int, int],
    frames: Sequence[GifFrame],
    *,
    palette: bytes | None = PALETTE,
    background: int = 0,
    loops: int | None = None,
    extensions: bytes = b"",
    end: bytes = b";",
) -> bytes:
    """A GIF, its codes uncompressed. ``extensions`` go before the frames."""
    flags = 0x70 if palette is None else 0xF0 | _bits(palette) - 1
    data = b"GIF89a" + struct.pack("<HHBBB", *size, flags, background, 0) + (palette or b"")
    if loops is not None:
        data += b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loops) + b"\0"
    return data + extensions + b"".join(map(_gif_frame, frames)) + end


def _bits(palette: bytes) -> int:
    return max((len(palette) // 3 - 1).bit_length(), 1)


def _gif_frame(frame: GifFrame) -> bytes:
    data = b""
    if frame.delay is not None:
        flags = frame.disposal << 2 | (frame.transparent is not None)
        data = b"!\xf9\x04" + struct.pack("<BHB", flags, frame.delay, frame.transparent or 0)
        data += b"\0"
    height, width = frame.indices.shape
    flags = 0x40 if frame.interlaced else 0
    if frame.palette is not None:
        flags |= 0x80 | _bits(frame.palette) - 1
    data += b"," + struct.pack("<HHHHB", frame.x, frame.y, width, height, flags)
    rows = frame.indices
    if frame.interlaced:
        rows = np.concatenate([rows[0::8], rows[4::8], rows[2::4], rows[1::2]])
    return data + (frame.palette or b"") + _codes(rows.tobytes())


def _codes(indices: bytes) -> bytes:
    """LZW of 8 bits that clears its table before it would need a tenth."""
    bits = count = 0

    def put(code: int) -> None:
        nonlocal bits, count
        bits |= code << count
        count += 9

    for start in range(0, len(indices), 250):
        put(256)
        for index in indices[start : start + 250]:
            put(index)
    put(257)
    packed = bits.to_bytes(-(-count // 8), "little")
    blocks = [packed[at : at + 255] for at in range(0, len(packed), 255)]
    return b"\x08" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def gif_extension(label: int, *blocks: bytes) -> bytes:
    return b"!" + bytes([label]) + b"".join(bytes([len(b)]) + b for b in blocks) + b"\0"


# WebP


@dataclass(frozen=True)
class WebpFrame:
    """RGBA pixels at an even offset; ``duration`` in milliseconds."""

    pixels: Pixels
    x: int = 0
    y: int = 0
    duration: int = 100
    dispose: bool = False
    blend: bool = True
    lossy: bool = False


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_animation(
    size: tuple[int, int],
    frames: Sequence[WebpFrame],
    *,
    loops: int = 0,
    background: int = 0,
    flags: int = 0,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """An animated WebP; ``before`` and ``after`` are chunks around its frames."""
    width, height = size
    head = struct.pack("<I", 0x12 | flags) + _uint24(width - 1) + _uint24(height - 1)
    parts = [riff_chunk(b"VP8X", head), before]
    parts.append(riff_chunk(b"ANIM", struct.pack("<IH", background, loops)))
    for frame in frames:
        down, across = frame.pixels.shape[:2]
        body = b"".join(map(_uint24, (frame.x // 2, frame.y // 2, across - 1, down - 1)))
        body += _uint24(frame.duration) + bytes([frame.dispose | (not frame.blend) << 1])
        still = sources.webp(frame.pixels, lossless=not frame.lossy, quality=95)
        chunks = still[12:]
        if chunks[:4] == b"VP8X":
            chunks = chunks[18:]
        parts.append(riff_chunk(b"ANMF", body + chunks))
    return riff(*parts, after)


def _uint24(value: int) -> bytes:
    return value.to_bytes(3, "little")


# ISO media


def nclx(primaries: int, transfer: int, matrix: int, full: bool) -> bytes:
    return b"nclx" + struct.pack(">HHHB", primaries, transfer, matrix, full << 7)


def with_nclx(data: bytes, primaries: int, transfer: int, matrix: int | None = None,
              full: bool | None = None) -> bytes:  # fmt: skip
    """An AVIF or HEIC of other code points (ITU-T H.273), its coded samples as they were."""
    at = data.index(b"colrnclx") + 4
    _, _, own_matrix, flags = struct.unpack(">HHHB", data[at + 4 : at + 11])
    matrix = own_matrix if matrix is None else matrix
    full = bool(flags) if full is None else full
    return data[:at] + nclx(primaries, transfer, matrix, full) + data[at + 11 :]


def wide_avif(pixels: Pixels, bits: int) -> bytes:
    image = pyvips.Image.new_from_array(sources.wide(pixels)).copy(interpretation="rgb16")
    data: bytes = image.heifsave_buffer(compression="av1", bitdepth=bits, Q=95, effort=0)
    return data


def heic(pixels: NDArray[np.generic], mode: str | None = None, **options: object) -> bytes:
    """Needs pillow_heif's encoder."""
    import pillow_heif

    out = BytesIO()
    options = {"quality": 95, "chroma": 444, **options}
    if mode is None:
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(out, **options)
    else:
        height, width = pixels.shape[:2]
        pillow_heif.from_bytes(mode, (width, height), pixels.tobytes()).save(out, **options)
    return out.getvalue()

"""Source pictures, all made at run time.

Arrays are of shape (height, width) or (height, width, channels), uint8 unless a depth is named.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from io import BytesIO

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Chunk = tuple[bytes, bytes]


@cache
def photo(width: int, height: int, seed: int = 1, grain: float = 2) -> Pixels:
    """A picture as a camera takes it: gradients, texture, edges, no symmetry, no flat areas."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = x / max(width, height), y / max(width, height)
    random = np.random.default_rng(seed)
    bands = []
    for phase in (0.0, 1.3, 2.9):
        band = 0.55 * x + 0.35 * y + 0.15 * np.sin(9 * x + phase) * np.cos(7 * y - phase)
        band += 0.08 * np.sin(40 * x * (1 + y) + phase)
        for _ in range(6):
            cx, cy, radius, level = random.uniform((0, 0, 0.05, -0.3), (1, 1, 0.2, 0.3))
            band += level / (1 + np.exp(150 * (np.hypot(x - cx, y - cy) - radius)))
        bands.append(band)
    smooth = np.stack(bands, axis=-1)
    low, high = smooth.min(), smooth.max()
    values = 20 + 215 * (smooth - low) / max(high - low, 1e-9)
    values += random.normal(0, grain, smooth.shape)
    pixels: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    pixels.setflags(write=False)
    return pixels


def grey(width: int, height: int, grain: float = 2) -> Pixels:
    return np.ascontiguousarray(photo(width, height, grain=grain)[..., 1])


def alpha(width: int, height: int) -> Pixels:
    """Fully transparent on one side, opaque on the other, with a soft edge between."""
    x = np.linspace(0, 1, width)[None, :] + 0.3 * np.linspace(0, 1, height)[:, None]
    return (255 * np.clip((x - 0.35) * 3, 0, 1)).astype(np.uint8)


def with_alpha(pixels: Pixels) -> Pixels:
    """The picture with that alpha, and glaring colour where nobody should see it."""
    height, width = pixels.shape[:2]
    mask = alpha(width, height)
    color = pixels if pixels.ndim == 3 else pixels[..., None]
    glaring = np.zeros(color.shape[2], np.uint8)
    glaring[0] = 255
    color = np.where(mask[..., None] == 0, glaring, color)
    return np.dstack([color, mask])


def wide(pixels: Pixels, bits: int = 16) -> NDArray[np.uint16]:
    """The same picture in samples of more bits, 255 becoming the largest."""
    samples: NDArray[np.uint16] = np.round(pixels * ((2**bits - 1) / 255)).astype(np.uint16)
    return samples


def pixel_art(width: int, height: int, block: int = 8) -> Pixels:
    """Hard squares of six colours, none of them black or white."""
    palette = np.array([[40, 40, 60], [200, 60, 50], [60, 190, 80], [70, 90, 210], [215, 200, 70],
                        [190, 190, 200]], np.uint8)  # fmt: skip
    random = np.random.default_rng(3)
    cells = random.integers(0, len(palette), (-(-height // block), -(-width // block)))
    tiled = np.kron(cells, np.ones((block, block), np.int64))[:height, :width]
    pixels: Pixels = palette[tiled]
    return pixels


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def jpeg(pixels: Pixels, **options: object) -> bytes:
    """A JPEG of quality 95; ``options`` are Pillow's."""
    return encoded(Image.fromarray(pixels), "JPEG", **{"quality": 95, **options})


def png(pixels: Pixels, **options: object) -> bytes:
    return encoded(Image.fromarray(pixels), "PNG", **options)


def webp(pixels: Pixels, **options: object) -> bytes:
    return encoded(Image.fromarray(pixels), "WEBP", **{"quality": 95, "method": 1, **options})


def avif(pixels: Pixels, **options: object) -> bytes:
    return encoded(Image.fromarray(pixels), "AVIF", **{"quality": 95, "speed": 9, **options})


def gif(pixels: Pixels, colors: int = 256) -> bytes:
    return encoded(Image.fromarray(pixels).quantize(colors), "GIF")


def cmyk(pixels: Pixels) -> Pixels:
    """Inks (255 is full) that give ``pixels`` by the plain formula, with a black of their own."""
    inks = 255 - pixels.astype(np.float64)
    black = inks.min(axis=-1, keepdims=True) * 0.6
    rest = 255 * (inks - black) / np.maximum(255 - black, 1)
    return np.dstack([np.clip(rest, 0, 255), black]).round().astype(np.uint8)


def cmyk_jpeg(inks: Pixels, **options: object) -> bytes:
    """As Adobe writes it: inverted, with its marker."""
    return encoded(Image.fromarray(inks, mode="CMYK"), "JPEG", quality=95, subsampling=0, **options)


def ycck_jpeg(inks: Pixels, **options: object) -> bytes:
    """CMY as luma and chroma: what cmyk_jpeg writes, with converted bands and transform 2."""
    color = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr"))
    data = cmyk_jpeg(np.dstack([255 - color, inks[..., 3]]), **options)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    return data[:at] + b"\x02" + data[at + 1 :]


def exif(orientation: int, *, camera: str = "Camera", endian: str = "<") -> bytes:
    """An EXIF block with an orientation, a camera's name, and a GPS position."""
    data = Image.Exif()
    data.endian = endian
    data[0x0112] = orientation
    data[0x010F] = camera
    data.get_ifd(0x8825)[1] = "N"
    data.get_ifd(0x8825)[2] = (52.0, 30.0, 15.0)
    return data.tobytes()


def stored(upright: Pixels, orientation: int) -> Pixels:
    """What a camera stores so that ``orientation`` (EXIF 2.32, 4.6.4) shows ``upright``."""
    undo: dict[int, Callable[[Pixels], Pixels]] = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: np.rot90(p, -1),
    }
    return np.ascontiguousarray(undo[orientation](upright))


def vips_png(pixels: NDArray[np.uint8] | NDArray[np.uint16], **options: object) -> bytes:
    """A PNG by libvips, which writes 1, 2, 4 and 16 bits (the low ones), and interlaced."""
    image = pyvips.Image.new_from_array(pixels)
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    kind = "b-w" if bands < 3 else "srgb"
    if pixels.dtype == np.uint16:
        kind = "grey16" if bands < 3 else "rgb16"
    result: bytes = image.copy(interpretation=kind).pngsave_buffer(**options)
    return result


def ten_bit_avif(pixels: Pixels) -> bytes:
    image = pyvips.Image.new_from_array(wide(pixels)).copy(interpretation="rgb16")
    data: bytes = image.heifsave_buffer(compression="av1", bitdepth=10, Q=95, effort=0)
    return data


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(data: bytes, chunks: Sequence[Chunk], before: bytes = b"IDAT") -> bytes:
    """A PNG with more chunks ahead of its first one named ``before``."""
    at = data.index(before) - 4
    return data[:at] + b"".join(png_chunk(*chunk) for chunk in chunks) + data[at:]


def with_segments(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with more marker segments right after its start."""
    more = b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments
    )
    return data[:2] + more + data[2:]


def animation(format_: str, frames: Sequence[Pixels], **options: object) -> bytes:
    first, *more = [Image.fromarray(frame) for frame in frames]
    options = {"duration": 50, **options}
    return encoded(first, format_, save_all=True, append_images=more, **options)


# Colour profiles (ICC.1:2001-04)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


_D50 = (0.9642, 1.0, 0.8249)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"test\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78 + 1),
        b"wtpt": _xyz(*_D50),
        **tags,
    }
    offset = 128 + 4 + 12 * len(tags)
    table, bodies = struct.pack(">I", len(tags)), b""
    for tag, body in tags.items():
        body += bytes(-len(body) % 4)
        table += tag + struct.pack(">II", offset + len(bodies), len(body))
        bodies += body
    size = offset + len(bodies)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    return header.ljust(68, b"\0") + _fixed(*_D50) + bytes(48) + table + bodies


def rgb_profile(
    red: Sequence[float],
    green: Sequence[float],
    blue: Sequence[float],
    gamma: float,
    more: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """A matrix profile: the primaries in XYZ adapted to D50, one gamma, and more tags."""
    primaries = {b"rXYZ": _xyz(*red), b"gXYZ": _xyz(*green), b"bXYZ": _xyz(*blue)}
    curves = {tag: _gamma(gamma) for tag in (b"rTRC", b"gTRC", b"bTRC")}
    return _profile(b"RGB ", {**primaries, **curves, **(more or {})})


ADOBE_RGB = rgb_profile(
    (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457), 2.2
)


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {b"kTRC": _gamma(gamma)})


DARK_GREY = grey_profile(1.2)


def builtin_profile(name: str) -> bytes:
    """One of libvips' own: ``p3``, ``srgb``, ``cmyk``."""
    data: bytes = pyvips.Operation.call("profile_load", name)
    return bytes(data)

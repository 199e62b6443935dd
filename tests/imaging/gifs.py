"""Writes GIFs block by block (GIF89a specification)."""

from __future__ import annotations

import struct

COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (240, 240, 60))
PALETTE = bytes(band for color in COLORS for band in color)


def frame(
    left: int,
    top: int,
    width: int,
    height: int,
    *,
    transparent: int | None = None,
    disposal: int = 0,
    control: bool = True,
    palette: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """A frame of one colour, number 1, without compression: each code of LZW has three bits."""
    codes = [code for _ in range(width * height) for code in (4, 1)] + [5]
    bits = sum(code << 3 * place for place, code in enumerate(codes))
    data = bits.to_bytes(-(-3 * len(codes) // 8), "little")
    blocks = [data[at : at + 255] for at in range(0, len(data), 255)]
    flags = disposal << 2 | (transparent is not None)
    extension = b"!\xf9\4" + bytes([flags, 0, 0, transparent or 0, 0]) if control else b""
    shape = (0x81 if palette else 0) | (0x40 if interlaced else 0)
    return b"".join(
        (
            extension,
            struct.pack("<cHHHHB", b",", left, top, width, height, shape),
            palette,
            b"\2",
            *(bytes([len(block)]) + block for block in blocks),
            b"\0",
        )
    )


def gif(
    size: tuple[int, int],
    *frames: bytes,
    background: int = 0,
    palette: bytes = PALETTE,
    version: bytes = b"GIF89a",
    end: bytes = b";",
) -> bytes:
    head = struct.pack("<HHBBB", *size, 0x91 if palette else 0x10, background, 0)
    return version + head + palette + b"".join(frames) + end

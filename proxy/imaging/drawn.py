"""Draws a picture for an account that has none, from its DID. Pure.

A PNG of two colours without a font, an image library or a file: the process that answers requests
has no codecs. The presets make of it what they make of any source.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from hashlib import sha256

SIDE = 1000
"""Pixels of each side: what the largest avatar of the default presets needs."""

_ROWS = 5
"""Squares of each side of a shape. A letter has 5 by 7 of the same."""

_COLOURS = (
    0x1F4E79, 0x7A1F5C, 0x1F6B4A, 0x8A3B12, 0x4B3A91, 0x0E6470, 0x8C1D3F, 0x5A5E12,
    0x2D5DA8, 0x6B2FA0, 0x21703A, 0x9A4A00,
)  # fmt: skip
"""Dark enough for white upon them: a contrast of 4.5 to 1 or more (WCAG 2.2, 1.4.3)."""

_LETTERS = {
    "a": "0e11111f111111", "b": "1e11111e11111e", "c": "0e11101010110e", "d": "1e11111111111e",
    "e": "1f10101e10101f", "f": "1f10101e101010", "g": "0e11101711110f", "h": "1111111f111111",
    "i": "0e04040404040e", "j": "0702020202120c", "k": "11121418141211", "l": "1010101010101f",
    "m": "111b1515111111", "n": "11191513111111", "o": "0e11111111110e", "p": "1e11111e101010",
    "q": "0e11111115120d", "r": "1e11111e141211", "s": "0f10100e01011e", "t": "1f040404040404",
    "u": "1111111111110e", "v": "11111111110a04", "w": "1111111515150a", "x": "11110a040a1111",
    "y": "11110a04040404", "z": "1f01020408101f", "0": "0e11131519110e", "1": "040c040404040e",
    "2": "0e11010204081f", "3": "1f02040201110e", "4": "02060a121f0202", "5": "1f101e0101110e",
    "6": "0608101e11110e", "7": "1f010204080808", "8": "0e11110e11110e", "9": "0e11110f01020c",
}  # fmt: skip
"""Seven rows of five squares, each row as two hexadecimal digits."""


def draw(did: str, letter: str = "") -> bytes:
    """Return a PNG of ``SIDE`` pixels: the same for the same arguments.

    Args:
        letter: what is drawn; for anything but an ASCII letter or digit, a symmetric shape.
    """
    digest = sha256(did.encode()).digest()
    colour = _COLOURS[digest[0] % len(_COLOURS)]
    glyph = _LETTERS.get(letter.lower())
    rows = _shape(digest[1:]) if glyph is None else bytes.fromhex(glyph)
    side = 100 if glyph is not None else 140
    return _png(colour, list(_lines(rows, side)))


def _shape(digest: bytes) -> bytes:
    """Five rows of five squares, mirrored, of which some are set and some are not."""
    rows = bytearray()
    for byte in digest[:_ROWS]:
        left, middle = byte & 3, byte >> 2 & 1
        mirrored = left << 3 | middle << 2 | (left & 1) << 1 | left >> 1
        rows.append(mirrored)
    rows[_ROWS // 2] |= 0b01110  # never empty
    return bytes(rows)


def _lines(rows: bytes, side: int) -> Iterable[bytes]:
    """Lines of ``SIDE`` pixels, one bit each, with the squares in the middle."""
    top, left = (SIDE - len(rows) * side) // 2, (SIDE - 5 * side) // 2
    empty = bytes(SIDE // 8)
    yield from [empty] * top
    for row in rows:
        bits = "".join(str(row >> place & 1) * side for place in (4, 3, 2, 1, 0))
        line = int(f"{bits:0>{left + len(bits)}}".ljust(SIDE, "0"), 2).to_bytes(SIDE // 8)
        yield from [line] * side
    yield from [empty] * (SIDE - top - len(rows) * side)


def _png(colour: int, lines: list[bytes]) -> bytes:
    """A PNG of one bit and two colours (PNG, third edition, section 11)."""
    header = SIDE.to_bytes(4) * 2 + bytes((1, 3, 0, 0, 0))
    palette = colour.to_bytes(3) + b"\xff\xff\xff"
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)
        for name, data in chunks
    )

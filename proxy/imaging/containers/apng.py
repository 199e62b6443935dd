"""Frames of an animated PNG as stored (W3C PNG, third edition, chapter 12.5). Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

import deflate

from proxy.imaging.containers import png
from proxy.imaging.containers.facts import Facts, Place
from proxy.model.presets import Size

CLEAR, RESTORE = 1, 2
OVER = 1

_MAX = (1 << 31) - 1
"""The largest number in a PNG (section 7.1)."""


class Control(NamedTuple):
    """An ``fcTL`` chunk."""

    width: int
    height: int
    left: int
    top: int
    numerator: int
    denominator: int
    disposal: int
    blend: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def milliseconds(self) -> Fraction:
        return Fraction(1000 * self.numerator, self.denominator or 100)


@dataclass(slots=True)
class Part:
    """A frame as stored: how to draw it, and its coded pixels."""

    control: Control
    pixels: list[memoryview] = field(default_factory=list)


@dataclass(slots=True)
class Parsed:
    """An APNG: what all frames share is ``header``, and ``shared``, chunks as stored.

    Attributes:
        has_default: whether there is a picture that is no frame.
    """

    size: Size
    has_default: bool = False
    plays: int = 0
    header: bytes = b""
    shared: list[bytes] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


def inspect(data: bytes) -> Facts:
    """Read the facts of a PNG; of an animated one, its first frame is the picture.

    A default picture that is no frame is for readers that know no frames. Browsers do not show it.
    """
    facts = png.inspect(data)
    parsed = parse(data, 1)
    if parsed is None or not (parsed.has_default and parsed.parts):
        return facts
    part = parsed.parts[0]
    size = Size(part.control.width, part.control.height)
    place = Place(part.control.left, part.control.top, parsed.size)
    picture = png.inspect(alone(parsed, part)).picture
    return replace(facts, picture=picture, place=None if size == parsed.size else place)


def alone(parsed: Parsed, part: Part) -> bytes:
    """Return a frame as the PNG that it would be alone."""
    size = struct.pack(">II", part.control.width, part.control.height)
    chunks = [
        chunk_of(b"IHDR", size + parsed.header[8:]),
        *parsed.shared,
        chunk_of(b"IDAT", b"".join(part.pixels)),
        chunk_of(b"IEND", b""),
    ]
    return png.SIGNATURE + b"".join(chunks)


def chunk_of(kind: bytes, body: bytes | bytearray) -> bytes:
    """Return a PNG chunk, with its length and checksum."""
    check = deflate.crc32(body, deflate.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", check)))


def parse(data: bytes, most: int) -> Parsed | None:
    """Read the chunks until the end, or a mistake after which browsers show no more frames."""
    parsed: Parsed | None = None
    expected = 0  # the next sequence number
    declared: int | None = None
    seen_data = False
    for chunk in png.chunks(data):
        kind, body = chunk.kind, chunk.body
        match kind:
            case b"IHDR" if len(body) == 13:
                size = Size(*struct.unpack_from(">II", body))
                parsed = Parsed(size, header=bytes(body))
            case b"acTL" if parsed and len(body) == 8 and declared is None and not seen_data:
                declared, parsed.plays = struct.unpack(">II", body)
                if max(declared, parsed.plays) > _MAX:
                    return None  # no number in a PNG: browsers then show a still
            case b"fcTL" if parsed and declared is not None and len(body) == 26:
                number, *values = struct.unpack(">IIIIIHHBB", body)
                control = Control(*values)
                if number != expected or not _is_valid(control, parsed.size, not seen_data):
                    break
                if len(parsed.parts) == min(most, declared):
                    break
                expected += 1
                parsed.parts.append(Part(control))
            case b"IDAT":
                seen_data = True
                if parsed and not parsed.parts:
                    parsed.has_default = True
                elif parsed and len(parsed.parts) == 1:
                    parsed.parts[0].pixels.append(body)
            case b"fdAT" if parsed and parsed.parts and len(body) >= 4:
                if int.from_bytes(body[:4], "big") != expected:
                    break
                expected += 1
                parsed.parts[-1].pixels.append(body[4:])
            case b"PLTE" | b"tRNS" if parsed and not seen_data:
                parsed.shared.append(data[chunk.start : chunk.end])
    if parsed is None or declared is None:
        return None
    while parsed.parts and not parsed.parts[-1].pixels:
        parsed.parts.pop()
    return parsed


def _is_valid(control: Control, size: Size, is_default: bool) -> bool:
    """Whether the frame lies on the canvas; the default picture is the whole canvas."""
    left, top, right, bottom = control.box
    if is_default:
        return control.box == (0, 0, *size)
    inside = right <= size.width and bottom <= size.height
    known = control.disposal <= RESTORE and control.blend <= OVER
    return left < right and top < bottom and inside and known

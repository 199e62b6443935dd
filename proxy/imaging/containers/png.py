"""PNG files (W3C PNG, third edition). Pure."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from proxy.imaging.color import profiles
from proxy.imaging.color.code_points import Chromaticities
from proxy.imaging.containers import exif
from proxy.imaging.containers.facts import MAX_PARTS, MAX_PROFILE, Facts
from proxy.model.presets import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Chunk(NamedTuple):
    """A PNG chunk: ``data[start:end]`` is all of it."""

    kind: bytes
    start: int
    end: int
    body: memoryview
    crc: int

    @property
    def intact(self) -> bool:
        """Whether the checksum of kind and body is correct."""
        return zlib.crc32(self.body, zlib.crc32(self.kind)) == self.crc


def chunks(data: bytes) -> Iterator[Chunk]:
    """Yield at most ``MAX_PARTS`` chunks, to IEND (included) or until one is truncated."""
    view = memoryview(data)
    at = len(SIGNATURE)
    for _ in range(MAX_PARTS):
        if at + 12 > len(data):
            return
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data):
            return
        kind = bytes(view[at + 4 : at + 8])
        crc = int.from_bytes(view[end - 4 : end], "big")
        yield Chunk(kind, at, end, view[at + 8 : end - 4], crc)
        if kind == b"IEND":
            return
        at = end


_PICTURE = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_ANIMATION = frozenset({b"fcTL", b"fdAT"})
_COLOR = {
    b"cICP": 4, b"iCCP": None, b"sRGB": 1, b"cHRM": 32, b"gAMA": 4, b"cLLI": 8, b"mDCV": 24,
}  # fmt: skip
"""The chunks that say what the colours are, and how bright, and their only length."""


def inspect(data: bytes) -> Facts:
    facts = Facts(data)
    kept: list[bytes | memoryview] = [SIGNATURE]
    depth = color = 0
    said: dict[bytes, bytes] = {}
    seen: set[bytes] = set()
    rest = len(SIGNATURE)
    for chunk in chunks(data):
        kind, body = chunk.kind, chunk.body
        rest = chunk.end
        begins = chunk.start == len(SIGNATURE)
        broken = begins != (kind == b"IHDR" and _is_header(body)) or {kind} & seen == {b"PLTE"}
        if broken and b"IDAT" not in seen:
            return Facts(SIGNATURE)  # browsers and libpng show nothing
        if kind == b"IHDR" and len(body) == 13:
            width, height, depth, color = struct.unpack_from(">IIBB", body)
            facts = replace(facts, size=Size(width, height))
        # As in libpng, only the first of a kind counts, and none after the pixels.
        counts = chunk.intact and kind not in seen and b"IDAT" not in seen
        # Keep tRNS for palettes only: for others, Pillow compares it with samples it has scaled.
        of_palette = kind == b"tRNS" and color == 3 and b"PLTE" in seen
        if kind in _PICTURE or (of_palette and counts):
            kept.append(memoryview(data)[chunk.start : chunk.end])
        if chunk.intact or kind in _PICTURE:
            seen.add(kind)
        if kind == b"IDAT" or not chunk.intact:
            continue  # the decoder verifies the checksum of the IDAT stream
        match kind:
            case b"tRNS" if counts and color in (0, 2) and len(body) == (2 if color == 0 else 6):
                facts = replace(facts, transparent=_samples(body, depth))
            case b"eXIf" if counts and body[: len(exif.PREFIX)] != exif.PREFIX:
                facts = replace(facts, orientation=exif.orientation_of(bytes(body)))
            case _ if _describes_color(kind, len(body), seen):
                said.setdefault(kind, bytes(body))
    # A chunk that was cut short is the decoder's to judge; frames come after the picture's pixels.
    if data[rest + 4 : rest + 8] not in _ANIMATION:
        kept.append(memoryview(data)[rest:])
    return replace(facts, picture=b"".join(kept), profile=_profile(said))


def _is_header(body: memoryview) -> bool:
    """Whether an IHDR has its length, and the only methods of compression and filters."""
    return len(body) == 13 and not any(body[10:12])


def _describes_color(kind: bytes, length: int, seen: set[bytes]) -> bool:
    """Whether a chunk counts: of those after the pixels, browsers take none."""
    late = b"IDAT" in seen or (kind == b"cICP" and b"PLTE" in seen)
    return not late and kind in _COLOR and _COLOR[kind] in (None, length)


_INTENTS = 4


def _profile(said: dict[bytes, bytes]) -> bytes | None:
    """Return the profile of what the chunks say. The first that is valid counts (section 4.3)."""
    if b"cICP" in said:
        primaries, transfer, matrix, full = said[b"cICP"]
        known = profiles.knows(primaries, transfer)
        if known and (matrix, full) == (0, 1):
            return profiles.of_code_points(primaries, transfer, _peak(said))
    if b"iCCP" in said:
        profile = _inflate_profile(said[b"iCCP"])
        if profile is not None:
            return profile
    if said.get(b"sRGB", b"\xff")[0] < _INTENTS:
        return None
    if b"gAMA" not in said:
        return None
    gamma = int.from_bytes(said[b"gAMA"], "big") / 100_000
    if b"cHRM" not in said:
        return profiles.of_gamma(gamma, None)
    coordinates = [value / 100_000 for value in struct.unpack(">8I", said[b"cHRM"])]
    if max(coordinates) > 1:
        return None  # no colours at all: browsers then take no gamma either
    x0, y0, *rest = coordinates
    red, green, blue = zip(rest[::2], rest[1::2], strict=True)
    return profiles.of_gamma(gamma, Chromaticities(red, green, blue, (x0, y0)))


def _peak(said: dict[bytes, bytes]) -> float | None:
    """Return the brightest light of the content in cd/m2, or of the display that it was made on."""
    of_content = int.from_bytes(said.get(b"cLLI", b"")[:4], "big") / 10_000
    of_display = int.from_bytes(said.get(b"mDCV", b"")[16:20], "big") / 10_000
    return of_content or of_display or None


def _samples(body: memoryview, depth: int) -> tuple[int, ...]:
    """Convert samples of ``depth`` bits, stored in two bytes each, to 8 bits if they have fewer."""
    values = struct.unpack(f">{len(body) // 2}H", body)
    if depth == 16:
        return values
    top = max((1 << depth) - 1, 1)  # the decoder refuses a depth of 0
    return tuple((value & top) * 255 // top for value in values)


_NAME = 79
"""Bytes in the name of a profile, at most."""


def _inflate_profile(body: bytes) -> bytes | None:
    name, _, rest = body.partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(rest[1:], MAX_PROFILE)
    except zlib.error:
        return None
    valid = (
        0 < len(name) <= _NAME and inflater.eof and rest[:1] == b"\0" and profile[36:40] == b"acsp"
    )
    return profile if valid else None


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))  # fmt: skip


def rows_length(header: bytes) -> int:
    """Return the bytes of all rows of a picture, including their filter bytes, by its IHDR."""
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(color, 0)
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns = max(0, -(-(width - left) // across))
        rows = max(0, -(-(height - top) // down))
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total

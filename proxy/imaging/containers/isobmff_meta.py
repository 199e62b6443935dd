"""The ``meta`` box of an AVIF file: mends what Pillow's reader refuses, and reads the crop.

Pillow's reader wants all associations of properties in one ``ipma`` box; browsers do not. A
``meta`` box with several is written anew at the end of the file, where it moves nothing else, and
the old one becomes ``free``.

Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from proxy.imaging.containers.facts import MAX_PARTS
from proxy.model.presets import Box

Part = tuple[bytes, bytes]
"""Kind and body of a box."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What is read of a ``meta`` box.

    Attributes:
        mended: the whole box, written anew; None if it can stay as it is.
        crop: the clean aperture of the primary item, in its pixels; None if it shows all of them.
    """

    mended: bytes | None = None
    crop: Box | None = None


def read(body: bytes) -> Meta:
    """Read the body of a ``meta`` box. One that is not understood can stay as it is."""
    try:
        return _read(body)
    except (struct.error, KeyError, IndexError, ValueError, ZeroDivisionError):
        return Meta()


def _read(body: bytes) -> Meta:
    boxes = list(parts(body, 4))
    found = dict(boxes)
    properties = list(parts(found[b"iprp"], 0))
    kinds = [kind for kind, _ in properties]
    if len(found) != len(boxes) or kinds[0] != b"ipco" or set(kinds[1:]) != {b"ipma"}:
        return Meta()
    known = list(parts(properties[0][1], 0))
    associations = associated([content for kind, content in properties if kind == b"ipma"])
    pitm = found[b"pitm"]
    (primary,) = struct.unpack_from(">I" if pitm[0] else ">H", pitm, 4)
    mended = None
    if len(kinds) > 2:
        iprp = box_of(*properties[0]) + box_of(b"ipma", _written(associations))
        rest = ((kind, iprp if kind == b"iprp" else content) for kind, content in boxes)
        mended = box_of(b"meta", body[:4] + b"".join(box_of(*part) for part in rest))
    own = [known[(index & 0x7FFF) - 1] for index in associations[primary] if index & 0x7FFF]
    return Meta(mended, _crop(dict(own)))


def parts(body: bytes, at: int) -> Iterator[Part]:
    """Yield the boxes that fill ``body`` from ``at``.

    Raises:
        ValueError: they do not, or are more than any file has.
    """
    for _ in range(MAX_PARTS):
        if at == len(body):
            return
        length, kind = struct.unpack_from(">I4s", body, at)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", body, at + head)
            head = 16
        end = at + length
        if length < head or end > len(body):
            break
        yield kind, body[at + head : end]
        at = end
    raise ValueError("what is no box")


def box_of(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


_ESSENTIAL = 0x8000


def associated(boxes: Iterable[bytes]) -> dict[int, list[int]]:
    """Return the properties of each item from all ``ipma`` boxes (ISO/IEC 23008-12, 9.3).

    A property is its number, from 1, and ``_ESSENTIAL``.

    Raises:
        ValueError: an item has associations in two places, which the standard forbids.
    """
    joined: dict[int, list[int]] = {}
    for body in boxes:
        version, wide = body[0], body[3] & 1
        (count,) = struct.unpack_from(">I", body, 4)
        head = struct.Struct(">IB" if version else ">HB")
        at = 8
        for _ in range(count):
            item, length = head.unpack_from(body, at)
            if item in joined or len(joined) == MAX_PARTS:
                raise ValueError("an item twice")
            at += head.size
            values = struct.unpack_from(f">{length}{'H' if wide else 'B'}", body, at)
            at += length << wide
            joined[item] = list(values) if wide else [_widened(value) for value in values]
        if at != len(body):
            raise ValueError("bytes after the last association")
    return joined


def _widened(value: int) -> int:
    return value & 0x7F | (_ESSENTIAL if value & 0x80 else 0)


def _written(associations: dict[int, list[int]]) -> bytes:
    """Return the body of an ``ipma`` box of the widest form; its items are in ascending order."""
    entries = [struct.pack(">II", 1 << 24 | 1, len(associations))]
    for item, values in sorted(associations.items()):
        entries.append(struct.pack(f">IB{len(values)}H", item, len(values), *values))
    return b"".join(entries)


def _crop(properties: dict[bytes, bytes]) -> Box | None:
    """Return the clean aperture (ISO/IEC 14496-12, 12.1.4), on whole pixels.

    One that is not within the picture, which the standard forbids, is ignored, as in browsers.
    """
    if b"clap" not in properties:
        return None
    canvas = struct.unpack_from(">II", properties[b"ispe"], 4)
    terms = struct.unpack(">IIIIiIiI", properties[b"clap"])
    width, height, right, down = (
        Fraction(terms[at], terms[at + 1]) for at in range(0, len(terms), 2)
    )
    edges: list[int] = []
    for size, whole, offset in ((width, canvas[0], right), (height, canvas[1], down)):
        start = int(offset + (whole - size) / 2) if size <= whole + abs(2 * offset) else -1
        edges += [start, start + int(size + Fraction(1, 2))]
    left, end, top, bottom = edges
    inside = 0 <= left < end <= canvas[0] and 0 <= top < bottom <= canvas[1]
    return Box(left, top, end, bottom) if inside else None


def ends_outside(body: bytes, length: int) -> bool:
    """Whether the data of an item goes beyond a file of ``length`` bytes.

    libheif leaves a tile green whose data is missing. A body that is not understood gives False.
    """
    try:
        found = dict(parts(body, 4))
        within = {0: length, 1: len(found.get(b"idat", b""))}
        return any(end > within.get(method, end) for method, end in _ends(found[b"iloc"]))
    except (struct.error, KeyError, IndexError, ValueError):
        return False


def _ends(iloc: bytes) -> Iterator[tuple[int, int]]:
    """Yield the construction method of each item, and where its data ends (14496-12, 8.11.3)."""
    version, sizes = iloc[0], iloc[4:6].hex()
    offset_size, length_size, base_size, index_size = (int(digit, 16) for digit in sizes)
    number_size = 4 if version == 2 else 2
    reader = _Reader(iloc, 6)
    for _ in range(min(reader.take(number_size), MAX_PARTS)):
        reader.take(number_size)
        method = reader.take(2) & 15 if version else 0
        reader.take(2)
        base = reader.take(base_size)
        end = 0
        for _ in range(min(reader.take(2), MAX_PARTS)):
            reader.take(index_size if version else 0)
            start = base + reader.take(offset_size)
            end = max(end, start + reader.take(length_size))
        yield method, end


class _Reader:
    """Takes integers of any number of bytes, one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def take(self, size: int) -> int:
        """Return the next integer; ValueError if the data ends before."""
        value = self._data[self._at : self._at + size]
        if len(value) < size:
            raise ValueError("the data ends")
        self._at += size
        return int.from_bytes(value, "big")

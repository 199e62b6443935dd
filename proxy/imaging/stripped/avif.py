"""AVIF files, stills and sequences (ISO/IEC 14496-12 and 23008-12, AVIF 1.1). Pure.

What is copied stays where it is, because offsets point to it. The copy begins as zeros, and gets
what is known: headers and fields of boxes, and the units of the items and samples that belong to
the picture. A foreign box becomes ``free``, and a foreign item one of no known type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile

from proxy.imaging.containers.facts import MAX_PARTS
from proxy.imaging.stripped import av1, samples, tails
from proxy.imaging.stripped.parts import NotUnderstood, need

Extent = tuple[int, int]
"""Offset and length, in the file."""

_BRANDS = frozenset({b"avif", b"avis", b"mif1", b"msf1", b"miaf", b"MA1A", b"MA1B", b"iso8"})
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0", b"urn:mpeg:hevc:2015:auxid:1\0")
_NAMES = (b"Color\0", b"Alpha\0")
_UNDETERMINED = b"\x55\xc4"  # the language "und", packed


class Box(NamedTuple):
    """A box of the file: all of it is ``[start:end]``, what it holds ``[body:end]``."""

    kind: bytes
    start: int
    body: int
    end: int


def strip(source: bytes, *, still: bool, shown: Image.Image | None = None) -> bytes:
    """Keep the boxes, items, tracks and units that show the picture, where they are.

    Args:
        still: refuse what moves.
        shown: the pixels of a still, if they are at hand: then its data must be needed to its end.
    """
    copy = _Copy(source)
    top = list(copy.top())
    need(top and top[0].kind == b"ftyp")
    end = 0
    copy.data = [(box.body, box.end) for box in top if box.kind == b"mdat"]
    for box in top:
        if box.kind in (b"ftyp", b"mdat", b"meta", b"moov"):
            end = box.end
        match box.kind:
            case b"ftyp":
                copy.brands(box)
            case b"mdat":
                copy.header(box)
            case b"meta":
                _Meta(copy, box).keep()
            case b"moov":
                need(not still)
                _keep_movie(copy, box)
            case _:
                copy.free(box)
    need(copy.pictures)
    file = bytes(copy.out[:end])
    if shown is not None:
        need(tails.are_needed(AvifImageFile, file, copy.ends, shown))
    return file


class _Copy:
    """The file that is made.

    Attributes:
        data: the places where items and samples may be.
        pictures: how many items and samples were copied.
        ends: the offsets after their data.
    """

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.out = bytearray(len(source))
        self.pictures = 0
        self.ends: list[int] = []
        self.data: list[tuple[int, int]] = []
        self._boxes = 0

    def top(self) -> Iterator[Box]:
        """Yield the boxes of the file itself, until its end or what is no box."""
        at = 0
        while at < len(self.source):
            try:
                (box,) = self.boxes(at, at + self._length(at))
            except (NotUnderstood, struct.error):
                return
            yield box
            at = box.end

    def _length(self, at: int) -> int:
        length = int.from_bytes(self.source[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(self.source[at + 8 : at + 16], "big")
        need(at + length <= len(self.source))
        return length or len(self.source) - at

    def boxes(self, start: int, end: int) -> list[Box]:
        """Return the boxes that fill the range; NotUnderstood if they do not."""
        found = []
        while start < end:
            self._boxes += 1
            need(start + 8 <= end and self._boxes < MAX_PARTS)
            length, kind = struct.unpack_from(">I4s", self.source, start)
            body = start + 8
            if length == 1:
                (length,) = struct.unpack_from(">Q", self.source, body)
                body += 8
            elif length == 0:
                need(end == len(self.source))
                length = end - start
            found.append(Box(kind, start, body, start + length))
            need(body <= start + length <= end)
            start += length
        return found

    def body(self, box: Box) -> bytes:
        return self.source[box.body : box.end]

    def full(self, box: Box, *versions: int) -> tuple[int, int]:
        """Return the version, one of ``versions``, and the flags of a FullBox."""
        (word,) = struct.unpack_from(">I", self.source, box.body)
        need(box.end - box.body >= 4 and word >> 24 in (versions or (0,)))
        return word >> 24, word & 0xFFFFFF

    def header(self, box: Box) -> None:
        self.copy(box.start, box.body)

    def whole(self, box: Box) -> None:
        self.copy(box.start, box.end)

    def free(self, box: Box) -> None:
        self.header(box)
        self.write(box.start + 4, b"free")

    def copy(self, start: int, end: int) -> None:
        self.out[start:end] = self.source[start:end]

    def fields(self, box: Box, *spans: Extent) -> None:
        """Copy the header, and of the body some ranges."""
        self.header(box)
        for start, end in spans:
            self.copy(box.body + start, box.body + end)

    def write(self, at: int, data: bytes) -> None:
        self.out[at : at + len(data)] = data

    def units(self, extents: Sequence[Extent], *, still: bool) -> None:
        """Copy the AV1 units that ``extents`` make up together."""
        pieces = [self.piece(extent) for extent in extents]
        data = av1.without_notes(b"".join(pieces), still=still)
        for start, length in extents:
            self.write(start, data[:length])
            data = data[length:]
        self.pictures += 1
        self.ends.append(sum(extents[-1]))

    def piece(self, extent: Extent) -> bytes:
        start, length = extent
        need(length and any(low <= start and start + length <= end for low, end in self.data))
        return self.source[start : start + length]

    def brands(self, box: Box) -> None:
        self.header(box)
        for at in (box.body, *range(box.body + 8, box.end, 4)):
            brand = self.source[at : at + 4]
            self.write(at, brand if brand in _BRANDS else b"mif1")
        need((box.end - box.body) % 4 == 0)

    def handler(self, box: Box, *types: bytes) -> bytes:
        """Copy the type of a ``hdlr`` box without its name; return the type, one of ``types``."""
        self.full(box)
        type_ = self.body(box)[8:12]
        need(type_ in types and box.end - box.body >= 24)
        self.fields(box, (0, 4), (8, 12))
        return type_


@dataclass(slots=True)
class _Item:
    """An item of ``meta``; ``properties`` are numbers from 1, and whether each is essential."""

    type: bytes = b""
    extents: list[Extent] = field(default_factory=list)
    in_idat: bool = False
    properties: list[tuple[int, bool]] = field(default_factory=list)
    kept: bool = False


class _Meta:
    """The ``meta`` box of the file."""

    def __init__(self, copy: _Copy, box: Box) -> None:
        self._copy = copy
        copy.full(box)
        copy.fields(box, (0, 4))
        self._children = copy.boxes(box.body + 4, box.end)
        kinds = [child.kind for child in self._children]
        self._by_kind = dict(zip(kinds, self._children, strict=True))
        need(all(kinds.count(kind) == 1 for kind in _ONCE))
        self._items: dict[int, _Item] = {}
        self._entries: list[tuple[int, Box]] = []  # of iinf, with the identifier
        self._references: list[tuple[Box, int, list[int]]] = []
        self._properties: list[Box] = []

    def keep(self) -> None:
        copy = self._copy
        copy.handler(self._by_kind[b"hdlr"], b"pict")
        self._read_entries(self._by_kind[b"iinf"])
        self._read_properties(self._by_kind[b"iprp"])
        if b"iref" in self._by_kind:
            self._read_references(self._by_kind[b"iref"])
        self._choose(self._primary(self._by_kind[b"pitm"]))
        self._keep_locations(self._by_kind[b"iloc"])
        self._keep_entries()
        self._keep_references()
        self._keep_properties()
        if b"idat" in self._by_kind:
            copy.header(self._by_kind[b"idat"])
        for item in self._items.values():
            if item.kept:
                self._keep_data(item)
        for child in self._children:
            if child.kind not in (*_ONCE, b"iref", b"idat"):
                copy.free(child)

    def _primary(self, box: Box) -> int:
        version, _ = self._copy.full(box, 0, 1)
        need(box.end - box.body == (8 if version else 6))
        self._copy.whole(box)
        return int.from_bytes(self._copy.body(box)[4:], "big")

    def _read_entries(self, box: Box) -> None:
        copy = self._copy
        version, _ = copy.full(box, 0, 1)
        start = 8 if version else 6
        copy.fields(box, (0, start))
        for entry in copy.boxes(box.body + start, box.end):
            need(entry.kind == b"infe")
            wide = copy.full(entry, 2, 3)[0] == 3
            body = copy.body(entry)
            number = int.from_bytes(body[4 : 8 if wide else 6], "big")
            need(number not in self._items)
            self._items[number] = _Item(type=body[8:12] if not wide else body[10:14])
            self._entries.append((number, entry))
        need(int.from_bytes(copy.body(box)[4:start], "big") == len(self._entries))

    def _keep_entries(self) -> None:
        copy = self._copy
        for number, entry in self._entries:
            at = 4 + (4 if copy.full(entry, 2, 3)[0] == 3 else 2)
            need(copy.body(entry)[at : at + 2] == b"\0\0")  # not protected
            need(entry.end - entry.body > at + 6)
            copy.fields(entry, (0, at))
            # Of the flags, whether it is hidden. The name is empty, or one of libavif's.
            copy.write(entry.body + 1, b"\0\0" + bytes([copy.body(entry)[3] & 1]))
            type_ = self._items[number].type if self._items[number].kept else b"skip"
            copy.write(entry.body + at + 2, type_)
            if (name := copy.body(entry)[at + 6 :]) in _NAMES:
                copy.write(entry.end - len(name), name)

    def _read_references(self, box: Box) -> None:
        copy = self._copy
        width = 4 if copy.full(box, 0, 1)[0] else 2
        copy.fields(box, (0, 4))
        for reference in copy.boxes(box.body + 4, box.end):
            body = copy.body(reference)
            count = int.from_bytes(body[width : width + 2], "big")
            need(len(body) == width + 2 + count * width)
            numbers = [
                int.from_bytes(body[at : at + width], "big")
                for at in (0, *range(width + 2, len(body), width))
            ]
            self._references.append((reference, numbers[0], numbers[1:]))

    def _keep_references(self) -> None:
        for box, source, targets in self._references:
            kept = all(self._items[number].kept for number in (source, *targets))
            self._copy.whole(box)
            if not (kept and box.kind in (b"auxl", b"dimg", b"prem")):
                self._copy.write(box.start + 4, b"skip")

    def _choose(self, primary: int) -> None:
        """Mark the picture, its tiles, and the alpha of either."""
        self._mark(primary)
        for _ in range(2):  # alpha, then what alpha refers to
            for box, source, targets in self._references:
                if box.kind == b"auxl" and self._items[targets[0]].kept and self._is_alpha(source):
                    self._mark(source)

    def _mark(self, number: int) -> None:
        item = self._items[number]
        need(item.type in (b"av01", b"grid"))
        item.kept = True
        if item.type == b"grid":
            for box, source, targets in self._references:
                if box.kind == b"dimg" and source == number:
                    for tile in targets:
                        need(self._items[tile].type == b"av01")
                        self._items[tile].kept = True

    def _is_alpha(self, number: int) -> bool:
        boxes = (
            self._properties[index - 1] for index, _ in self._items[number].properties if index
        )
        return any(box.kind == b"auxC" and self._known_property(box) for box in boxes)

    def _read_properties(self, box: Box) -> None:
        copy = self._copy
        copy.header(box)
        children = copy.boxes(box.body, box.end)
        need(children and children[0].kind == b"ipco")
        copy.header(children[0])
        self._properties = copy.boxes(children[0].body, children[0].end)
        for child in children[1:]:
            need(child.kind == b"ipma")
            version, flags = copy.full(child, 0, 1)
            at = child.body + 8
            for _ in range(int.from_bytes(copy.body(child)[4:8], "big")):
                width = 4 if version else 2
                number = int.from_bytes(copy.source[at : at + width], "big")
                count = copy.source[at + width]
                at += width + 1
                step = 2 if flags & 1 else 1
                for _ in range(count):
                    value = int.from_bytes(copy.source[at : at + step], "big")
                    top = 0x8000 if flags & 1 else 0x80
                    need(at < child.end and value & ~top <= len(self._properties))
                    if number in self._items:
                        self._items[number].properties.append((value & ~top, bool(value & top)))
                    at += step
                need(at <= child.end)
            need(at == child.end)
            copy.whole(child)

    def _keep_properties(self) -> None:
        used: set[int] = set()
        for item in self._items.values():
            kinds: set[bytes] = set()
            for index, essential in item.properties if item.kept else ():
                if index and self._known_property(self._properties[index - 1]):
                    kind = self._properties[index - 1].kind
                    need(kind not in kinds)
                    kinds.add(kind)
                    used.add(index)
                else:
                    need(not essential)
        for index, box in enumerate(self._properties, start=1):
            if index in used:
                self._copy.whole(box)
            else:
                self._copy.free(box)

    def _known_property(self, box: Box) -> bool:
        return is_known(box.kind, self._copy.body(box))

    def _keep_locations(self, box: Box) -> None:
        copy = self._copy
        version, _ = copy.full(box, 0, 1, 2)
        body = copy.body(box)
        offset_size, length_size = body[4] >> 4, body[4] & 15
        base_size, index_size = body[5] >> 4, body[5] & 15 if version else 0
        need(not index_size)
        wide = 4 if version == 2 else 2
        copy.fields(box, (0, 6 + wide))
        at = 6 + wide
        for _ in range(int.from_bytes(body[6:at], "big")):
            start = at
            number = int.from_bytes(body[at : at + wide], "big")
            at += wide
            method = 0
            if version:
                method = int.from_bytes(body[at : at + 2], "big")
                at += 2
            reference, base = (
                struct.unpack_from(">H", body, at)[0],
                body[at + 2 : at + 2 + base_size],
            )
            at += 2 + base_size
            (count,) = struct.unpack_from(">H", body, at)
            at += 2
            extents = []
            for _ in range(count):
                offset = int.from_bytes(body[at : at + offset_size], "big")
                length = int.from_bytes(
                    body[at + offset_size : at + offset_size + length_size], "big"
                )
                extents.append((int.from_bytes(base, "big") + offset, length))
                at += offset_size + length_size
                need(at <= len(body))
            item = self._items.get(number)
            if item is not None and item.kept:
                need(method in (0, 1) and reference == 0 and not item.extents)
                item.extents, item.in_idat = extents, method == 1
                copy.copy(box.body + start, box.body + at)
            else:  # it has no data
                copy.copy(box.body + start, box.body + start + wide)
                head = start + wide + (2 if version else 0) + 2 + base_size
                copy.copy(box.body + head, box.body + head + 2)
        need(at == len(body))

    def _keep_data(self, item: _Item) -> None:
        copy = self._copy
        extents = item.extents
        if item.in_idat:
            idat = self._by_kind[b"idat"]
            extents = [(idat.body + start, length) for start, length in extents]
            copy.data.append((idat.body, idat.end))
        if item.type == b"av01":
            copy.units(extents, still=True)
            return
        ((start, length),) = extents
        grid = copy.piece((start, length))
        need(len(grid) >= 8 and len(grid) == (12 if grid[1] & 1 else 8))
        copy.write(start, grid)


_ONCE = (b"hdlr", b"pitm", b"iloc", b"iinf", b"iprp")


def is_known(kind: bytes, body: bytes) -> bool:
    """Whether a property says how to show the picture, in exactly the bytes that this takes."""
    match kind:
        case b"ispe":
            return len(body) == 12 and body[:4] == bytes(4)
        case b"pixi":
            return len(body) >= 5 and body[:4] == bytes(4) and len(body) == 5 + body[4]
        case b"av1C":
            return av1.is_configuration(body)
        case b"colr":
            return body[:4] == b"nclx" and len(body) == 11
        case b"auxC" | b"auxi":
            return body[:4] == bytes(4) and body[4:] in _ALPHA
        case b"irot" | b"imir" | b"a1op":
            return len(body) == 1
        case b"pasp":
            return len(body) == 8
        case b"clap":
            return len(body) == 32
        case b"ccst":
            return len(body) == 8
        case _:
            return False


# Tracks


def _keep_movie(copy: _Copy, box: Box) -> None:
    copy.header(box)
    for child in copy.boxes(box.body, box.end):
        match child.kind:
            case b"mvhd":
                _keep_header(copy, child, 100, 112)
            case b"trak" if _is_picture(copy, child):
                copy.header(child)
                for part in copy.boxes(child.body, child.end):
                    _keep_in_track(copy, part)
            case _:
                copy.free(child)


def _keep_header(copy: _Copy, box: Box, *lengths: int) -> None:
    """Copy mvhd, tkhd or mdhd without the times of creation and change."""
    version, _ = copy.full(box, 0, 1)
    length = lengths[version]
    need(box.end - box.body == length)
    copy.fields(box, (0, 4), (20 if version else 12, length))


def _is_picture(copy: _Copy, track: Box) -> bool:
    for box in copy.boxes(track.body, track.end):
        if box.kind == b"mdia":
            for part in copy.boxes(box.body, box.end):
                if part.kind == b"hdlr":
                    return copy.body(part)[8:12] in (b"pict", b"auxv")
    return False


def _keep_in_track(copy: _Copy, box: Box) -> None:
    match box.kind:
        case b"tkhd":
            _keep_header(copy, box, 84, 96)
        case b"mdhd":
            _keep_header(copy, box, 24, 36)
            copy.write(box.end - 4, _UNDETERMINED + b"\0\0")
        case b"hdlr":
            copy.handler(box, b"pict", b"auxv")
        case b"vmhd":
            copy.full(box)
            need(box.end - box.body == 12)
            copy.fields(box, (0, 4))
        case b"dref":
            # One entry: the data are in this file.
            need(copy.body(box) == bytes(7) + b"\1\0\0\0\x0curl \0\0\0\1")
            copy.whole(box)
        case b"elst":
            _keep_table(copy, box, 12, 20)
        case b"auxl" | b"prem":
            copy.whole(box)
            need((box.end - box.body) % 4 == 0 and box.end - box.body <= 16)
        case b"stbl":
            _keep_samples(copy, box)
        case b"mdia" | b"minf" | b"dinf" | b"edts" | b"tref":
            copy.header(box)
            for part in copy.boxes(box.body, box.end):
                _keep_in_track(copy, part)
        case _:
            copy.free(box)


def _keep_table(copy: _Copy, box: Box, *entries: int) -> None:
    """Copy a table: a count, and as many entries, whose length depends on the version."""
    version, _ = copy.full(box, *range(len(entries)))
    (count,) = struct.unpack_from(">I", copy.source, box.body + 4)
    need(box.end - box.body == 8 + count * entries[version])
    copy.whole(box)


_TABLES = {
    b"stts": (8,),
    b"ctts": (8, 8),
    b"stsc": (12,),
    b"stss": (4,),
    b"stco": (4,),
    b"co64": (8,),
}


def _keep_samples(copy: _Copy, box: Box) -> None:
    tables: dict[bytes, bytes] = {}
    for child in copy.boxes(box.body, box.end):
        need(child.kind not in tables)
        if child.kind == b"stsd":
            _keep_description(copy, child)
        elif child.kind == b"stsz":
            copy.whole(child)
        elif child.kind in _TABLES:
            _keep_table(copy, child, *_TABLES[child.kind])
        else:
            copy.free(child)
            continue
        tables[child.kind] = copy.body(child)
    copy.header(box)
    for extent in samples.extents(tables):
        copy.units([extent], still=False)


def _keep_description(copy: _Copy, box: Box) -> None:
    copy.full(box)
    copy.fields(box, (0, 8))
    entries = copy.boxes(box.body + 8, box.end)
    need(len(entries) == 1 and entries[0].kind == b"av01")
    (entry,) = entries
    need(entry.end - entry.body >= 78)
    # Which data, width, height, resolution, frames of a sample, depth; without the coder's name.
    copy.fields(entry, (6, 8), (24, 36), (40, 42), (74, 78))
    for child in copy.boxes(entry.body + 78, entry.end):
        if is_known(child.kind, copy.body(child)):
            copy.whole(child)
        else:
            copy.free(child)

"""Decides whether an AVIF file contains only its picture; see ``passthrough``.

Only the layout that libavif writes for a still picture, with or without alpha, is allowed. Every
box (ISO/IEC 14496-12 and 23008-12, AVIF 1.1) is either compared as a whole or read to its last bit,
and every byte of the file belongs to a box.

Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence


def bare_avif(data: bytes) -> bool:
    """Whether ``data`` is an sRGB still without metadata, profile, rotation, or hidden bytes."""
    try:
        file = _only(data, b"ftyp", b"meta", b"mdat")
        meta = _full(file[b"meta"])
        boxes = dict(_boxes(meta))
        more = (b"iref",) if b"iref" in boxes else ()
        boxes = _only(meta, b"hdlr", b"pitm", b"iloc", b"iinf", *more, b"iprp")
        items = _item_count(boxes)
        return (
            _known_brands(file[b"ftyp"])
            and boxes[b"hdlr"] == _HANDLER
            and boxes[b"pitm"] == bytes(4) + _number(_PRIMARY)
            and _plain_properties(boxes[b"iprp"], items)
            and _all_located(data, len(data) - len(file[b"mdat"]), boxes[b"iloc"], items)
        )
    except (ValueError, struct.error):
        return False


_PRIMARY, _ALPHA = 1, 2
"""The numbers that libavif gives its items."""

_BRANDS = frozenset({b"avif", b"mif1", b"miaf", b"MA1A", b"MA1B"})
_HANDLER = bytes(8) + b"pict" + bytes(12) + b"\0"  # without a name
_NAMES = (b"Color", b"Alpha")
_DEPTHS = frozenset({8, 10, 12})
_MATRICES = frozenset({0, 1, 5, 6})
_ALPHA_URN = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"


def _boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return kinds and bodies of the boxes in ``data``; ValueError if they do not fill it."""
    found = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        # The standard also allows lengths of 0 (to the end) and 1 (64 bits); here they are refused.
        if length < 8 or at + length > len(data):
            raise ValueError("a box that breaks off")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + length]))
        at += length
    return found


def _only(data: bytes, *kinds: bytes) -> dict[bytes, bytes]:
    """Return the bodies of the boxes; ValueError if they are not exactly ``kinds``, in order."""
    boxes = _boxes(data)
    if tuple(kind for kind, _ in boxes) != kinds:
        raise ValueError("another box than expected")
    return dict(boxes)


def _full(body: bytes, version: int = 0) -> bytes:
    """Return the part after version and flags; ValueError for another version, or any flag."""
    if body[:4] != struct.pack(">I", version << 24):
        raise ValueError("another version, or flags")
    return body[4:]


def _number(value: int) -> bytes:
    return struct.pack(">H", value)


def _known_brands(body: bytes) -> bool:
    major, minor, rest = body[:4], body[4:8], body[8:]
    brands = [rest[at : at + 4] for at in range(0, len(rest), 4)]
    once = len(set(brands)) == len(brands) and set(brands) <= _BRANDS
    return once and major == b"avif" and minor == bytes(4)


def _item_count(boxes: dict[bytes, bytes]) -> int:
    """Return 1, or 2 with alpha; ValueError for any other items, or relations between them."""
    items = 2 if b"iref" in boxes else 1
    names = _NAMES[:items]
    entries = [
        b"\2\0\0\0" + _number(item) + _number(0) + b"av01" + name + b"\0"
        for item, name in enumerate(names, start=_PRIMARY)
    ]
    if _boxes(_full(boxes[b"iinf"])[2:]) != [(b"infe", entry) for entry in entries]:
        raise ValueError("other items")
    if boxes[b"iinf"][4:6] != _number(items):
        raise ValueError("another number of items")
    relation = _number(_ALPHA) + _number(1) + _number(_PRIMARY)
    if items == 2 and _boxes(_full(boxes[b"iref"])) != [(b"auxl", relation)]:
        raise ValueError("another relation")
    return items


def _plain_properties(body: bytes, items: int) -> bool:
    parts = _only(body, b"ipco", b"ipma")
    properties = _boxes(parts[b"ipco"])
    associated = _associations(_full(parts[b"ipma"]), items)
    used = {index for indices in associated for index in indices}
    # A property that belongs to no item could hide data.
    if used != set(range(1, len(properties) + 1)):
        return False
    needed = ({b"ispe", b"pixi", b"av1C", b"colr"}, {b"ispe", b"pixi", b"av1C", b"auxC"})
    for indices, kinds in zip(associated, needed, strict=False):
        own = [properties[index - 1] for index in indices]
        if len(own) != len(kinds) or {kind for kind, _ in own} != kinds:
            return False
    return all(_plain_property(kind, value) for kind, value in properties)


def _associations(body: bytes, items: int) -> Sequence[Sequence[int]]:
    """Return the indices of the properties of each item, from 1."""
    (count,) = struct.unpack_from(">I", body)
    if count != items:
        raise ValueError("other items have properties")
    found, at = [], 4
    for expected in range(_PRIMARY, _PRIMARY + items):
        item, length = struct.unpack_from(">HB", body, at)
        entries = body[at + 3 : at + 3 + length]
        if item != expected or len(entries) != length:
            raise ValueError("another item")
        found.append([entry & 0x7F for entry in entries])  # without "essential"
        at += 3 + length
    if at != len(body):
        raise ValueError("more than associations")
    return found


def _plain_property(kind: bytes, body: bytes) -> bool:
    """Whether a property has its only length, and describes how to show the samples."""
    match kind:
        case b"ispe":
            return len(_full(body)) == 8
        case b"pixi":
            count, depths = _full(body)[:1], _full(body)[1:]
            return count in (b"\1", b"\3") and count[0] == len(depths) and set(depths) <= _DEPTHS
        case b"av1C":
            return len(body) == 4
        case b"colr":
            # ITU-T H.273: the primaries and the curve of sRGB, with one of the usual matrices.
            type_, primaries, transfer, matrix, full_range = struct.unpack(">4s3HB", body)
            usual = matrix in _MATRICES and full_range in (0, 0x80)
            return type_ == b"nclx" and (primaries, transfer) == (1, 13) and usual
        case b"auxC":
            return _full(body) == _ALPHA_URN
        case _:
            return False


def _all_located(data: bytes, start: int, body: bytes, items: int) -> bool:
    """Whether the items fill ``data`` from ``start`` on, each as one piece with one frame."""
    body = _full(body)
    extents = []
    # Offsets and lengths of 4 bytes, no base offset.
    if body[:4] != b"\x44\0" + _number(items) or len(body) != 4 + 14 * items:
        return False
    for place in range(items):
        item, reference, pieces, offset, length = struct.unpack_from(">3H2I", body, 4 + 14 * place)
        if (item, reference, pieces) != (_PRIMARY + place, 0, 1):
            return False
        extents.append((offset, offset + length))
    for begin, end in sorted(extents):
        if begin != start or not _one_frame(data[begin:end]):
            return False
        start = end
    return start == len(data)


_SEQUENCE_HEADER, _TEMPORAL_DELIMITER, _FRAME = 1, 2, 6
_MOST_OF_SEQUENCE_HEADER = 16  # the header of a still picture has about ten bytes


def _one_frame(data: bytes) -> bool:
    """Whether an AV1 stream (AV1 specification, 5.3 to 5.5) is exactly one still picture.

    Other units hold metadata, padding, or pictures that are not shown.
    """
    kinds = []
    at = 0
    while at < len(data):
        header = data[at]
        # There must be no extension, but a length, and the reserved bits must be 0.
        if header & 0b1000_0111 != 0b010:
            return False
        kind = header >> 3
        length, at = _leb128(data, at + 1)
        unit = data[at : at + length]
        if len(unit) != length:
            return False
        if kind == _TEMPORAL_DELIMITER and unit:
            return False
        # The bit after the three bits of the profile is "still picture".
        if kind == _SEQUENCE_HEADER and not (
            0 < length <= _MOST_OF_SEQUENCE_HEADER and unit[0] & 0b0001_0000
        ):
            return False
        kinds.append(kind)
        at += length
    return kinds in (
        [_SEQUENCE_HEADER, _FRAME],
        [_TEMPORAL_DELIMITER, _SEQUENCE_HEADER, _FRAME],
    )


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """Return a leb128 number (AV1 specification, 4.10.5), and the offset of its end."""
    value = 0
    for place in range(8):
        byte = data[at + place : at + place + 1]
        if not byte:
            break
        value |= (byte[0] & 0x7F) << 7 * place
        if byte[0] < 0x80:
            return value, at + place + 1
    raise ValueError("a number that breaks off")

"""Edits boxes of AVIF and HEIC files (ISO/IEC 14496-12, 23008-12). Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tests.imaging.isobmff import associations, box, boxes, entries, split


def edit_meta(data: bytes, edit: Callable[[bytes, bytes], bytes]) -> bytes:
    """The file with each box of its ``meta`` replaced by what ``edit`` makes of kind and body.

    The places of the coded pixels, which ``iloc`` has, move with what comes before them.
    """
    at = data.index(b"meta") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    body = data[at + 8 : at + size]

    def made(shift: int) -> bytes:
        parts = [body[:4]]
        for kind, inner in boxes(body[4:]):
            moved = _moved(inner, shift) if kind == b"iloc" else inner
            parts.append(edit(kind, moved))
        return box(b"meta", b"".join(parts))

    shift = len(made(0)) - size
    return data[:at] + made(shift) + data[at + size :]


def _moved(iloc: bytes, shift: int) -> bytes:
    """An ``iloc`` whose offsets into the file are larger."""
    version = iloc[0]
    offset_size, length_size = iloc[4] >> 4, iloc[4] & 15
    base_size, index_size = iloc[5] >> 4, (iloc[5] & 15) if version else 0
    out = bytearray(iloc)
    at = 6
    wide = 4 if version == 2 else 2
    count = int.from_bytes(iloc[at : at + wide], "big")
    at += wide
    for _ in range(count):
        at += wide
        method = 0
        if version:
            method = iloc[at + 1] & 15
            at += 2
        at += 2
        base_at = at
        at += base_size
        extents = int.from_bytes(iloc[at : at + 2], "big")
        at += 2
        if base_size and method == 0 and int.from_bytes(iloc[base_at : base_at + base_size], "big"):
            _add(out, base_at, base_size, shift)
        for _ in range(extents):
            at += index_size
            in_base = base_size and int.from_bytes(iloc[base_at : base_at + base_size], "big")
            if method == 0 and not in_base:
                _add(out, at, offset_size, shift)
            at += offset_size + length_size
    return bytes(out)


def _add(out: bytearray, at: int, size: int, shift: int) -> None:
    value = int.from_bytes(out[at : at + size], "big") + shift
    out[at : at + size] = value.to_bytes(size, "big")


def edit_iprp(data: bytes, edit: Callable[[list[bytes], list[bytes]], bytes]) -> bytes:
    """The file with an ``iprp`` made of its properties and of its association boxes."""

    def replace(kind: bytes, body: bytes) -> bytes:
        if kind != b"iprp":
            return box(kind, body)
        parts = boxes(body)
        properties = [box(*each) for each in boxes(parts[0][1])]
        tables = [box(*each) for each in parts[1:]]
        return box(b"iprp", edit(properties, tables))

    return edit_meta(data, replace)


def with_property(
    data: bytes, kind: bytes, body: bytes, *, essential: bool = True, item: int = 1
) -> bytes:
    """The file with one more property of an item."""

    def edit(properties: list[bytes], tables: list[bytes]) -> bytes:
        more = [*properties, box(kind, body)]
        index = len(more) | (0x80 if essential else 0)
        return box(b"ipco", b"".join(more)) + b"".join(
            _with_index(table, item, index) for table in tables
        )

    return edit_iprp(data, edit)


def _with_index(table: bytes, item: int, index: int) -> bytes:
    """An ``ipma`` of version 0 with short indices that has one more for an item."""
    number = struct.pack(">H", item)
    found = [
        (each, properties + bytes([index]) if each == number else properties)
        for each, properties in entries(table[8:])
    ]
    return box(b"ipma", associations(found))


def split_ipma(data: bytes) -> bytes:
    """The file with a second ``ipma``, of the same version and flags, for its last property.

    Not allowed (23008-12, 9.3.1: at most one of each version and flags), and written all the same.
    """
    return split(
        data,
        lambda found: [
            associations([(item, properties[:-1]) for item, properties in found]),
            associations([(item, properties[-1:]) for item, properties in found]),
        ],
    )


def split_ipma_by_item(data: bytes) -> bytes:
    """The file with an ``ipma`` for each of its items."""
    return split(data, lambda found: [associations([each]) for each in found])


def without_property(data: bytes, kind: bytes, replaced: bytes = b"free") -> bytes:
    """The file with a property that no reader knows in the place of those of a kind."""

    def edit(properties: list[bytes], tables: list[bytes]) -> bytes:
        kept = [
            each[:4] + replaced + each[8:] if each[4:8] == kind else each for each in properties
        ]
        return box(b"ipco", b"".join(kept)) + b"".join(tables)

    return edit_iprp(data, edit)


def clap(
    width: tuple[int, int], height: tuple[int, int], across: tuple[int, int], down: tuple[int, int]
) -> bytes:
    """The body of a ``clap`` (14496-12, 12.1.4): sizes and offsets of the centre, as fractions."""
    return struct.pack(">IIIIiIiI", *width, *height, *across, *down)

"""Changes the boxes of AVIF files that Pillow wrote (ISO/IEC 14496-12)."""

from __future__ import annotations

import struct
from collections.abc import Callable

PARENTS = {b"meta": 4, b"iinf": 6, b"iprp": 0, b"ipco": 0, b"iref": 4}
"""Boxes that hold boxes, and how many bytes come before those."""


def box(kind: bytes, body: bytes) -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + length]))
        at += length
    return found


Edit = Callable[[bytes], bytes]


def edited(data: bytes, path: str, edit: Edit, *, shift: bool = True) -> bytes:
    """The file with the body of one box changed, and all lengths and offsets right again.

    Args:
        path: the kinds on the way to it.
        shift: whether what is located in the file moves with the header.
    """

    def walk(content: bytes, kinds: list[bytes]) -> bytes:
        if not kinds:
            return edit(content)
        made = b""
        for kind, body in boxes(content):
            if kind == kinds[0]:
                skip = PARENTS.get(kind, 0) if kinds[1:] else 0
                body = body[:skip] + walk(body[skip:], kinds[1:])
            made += box(kind, body)
        return made

    result = walk(data, path.encode().split())
    return moved(result, result.index(b"mdat") - data.index(b"mdat")) if shift else result


def moved(data: bytes, by: int) -> bytes:
    """With every offset in ``iloc`` so much larger."""

    def move(body: bytes) -> bytes:
        out = body[:8]
        for at in range(8, len(body), 14):
            entry = body[at : at + 14]
            offset = int.from_bytes(entry[6:10], "big") + by
            out += entry[:6] + offset.to_bytes(4, "big") + entry[10:]
        return out

    return edited(data, "meta iloc", move, shift=False)


def appended(extra: bytes) -> Edit:
    return lambda body: body + extra


def replaced(old: bytes, new: bytes) -> Edit:
    def edit(body: bytes) -> bytes:
        assert old in body
        return body.replace(old, new)

    return edit


# Properties

Entry = tuple[bytes, bytes]
"""Number of an item, and its properties, a byte each."""


def entries(ipma: bytes) -> list[Entry]:
    found, at = [], 8
    while at < len(ipma):
        end = at + 3 + ipma[at + 2]
        found.append((ipma[at : at + 2], ipma[at + 3 : end]))
        at = end
    return found


def associations(found: list[Entry], *, wide: bool = False) -> bytes:
    """The body of an ``ipma`` box: of version 0 without flags, or of version 1 with 16 bits."""
    body = struct.pack(">II", 0x01000001 if wide else 0, len(found))
    for item, properties in found:
        body += (b"\0\0" if wide else b"") + item + bytes([len(properties)])
        if wide:
            properties = b"".join(bytes([value & 0x80, value & 0x7F]) for value in properties)
        body += properties
    return body


UNKNOWN: Entry = (b"\0\x09", b"\1")
"""Of an item that the file does not have."""


def split(source: bytes, change: Callable[[list[Entry]], list[bytes]]) -> bytes:
    """The file with several ``ipma`` boxes, made of the entries of the one it has."""

    def edit(body: bytes) -> bytes:
        (ipco, (_, ipma)) = boxes(body)
        return box(*ipco) + b"".join(box(b"ipma", made) for made in change(entries(ipma)))

    return edited(source, "meta iprp", edit)


def clap(width: int, height: int, right: int = 0, down: int = 0, *, per: int = 1) -> bytes:
    """A crop of this size; its centre is off by ``right`` and ``down`` in parts of a pixel."""
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, per, down, per))


def with_properties(source: bytes, *extra: bytes) -> bytes:
    """The file with more properties of its picture, in this order, essential."""
    iprp = dict(boxes(dict(boxes(source))[b"meta"][4:]))[b"iprp"]
    known = len(boxes(dict(boxes(iprp))[b"ipco"]))
    added = bytes(0x80 | known + number for number in range(1, len(extra) + 1))

    def associate(body: bytes) -> bytes:
        (first, own), *rest = entries(body)
        return associations([(first, own + added), *rest])

    source = edited(source, "meta iprp ipco", appended(b"".join(extra)))
    return edited(source, "meta iprp ipma", associate)

"""Puts properties into AVIF and HEIC files (ISO/IEC 14496-12 and 23008-12)."""

from __future__ import annotations

import struct

from tests.imaging.isobmff import box, boxes

Box = tuple[bytes, bytes]
"""Kind and body."""


def nclx(primaries: int, transfer: int, matrix: int = 6, *, full: bool = True) -> Box:
    """Code points; matrix and range should be those of the coded picture."""
    return b"colr", struct.pack(">4s3HB", b"nclx", primaries, transfer, matrix, full << 7)


def icc(profile: bytes) -> Box:
    return b"colr", b"prof" + profile


def light_level(most: int, average: int = 100) -> Box:
    return b"clli", struct.pack(">HH", most, average)


def joined(parts: list[Box]) -> bytes:
    return b"".join(box(*part) for part in parts)


def with_colors(data: bytes, *properties: Box) -> bytes:
    """The file with these properties of its first item, instead of every ``colr`` that it has."""
    file = boxes(data)
    meta = dict(file)[b"meta"]
    parts = boxes(meta[4:])
    iprp = dict(boxes(dict(parts)[b"iprp"]))
    known = [(b"free" if kind == b"colr" else kind, body) for kind, body in boxes(iprp[b"ipco"])]
    added = bytes(range(len(known) + 1, len(known) + 1 + len(properties)))
    iprp[b"ipco"] = joined([*known, *properties])
    iprp[b"ipma"] = _associated(
        iprp[b"ipma"], {n + 1 for n, p in enumerate(known) if p[0] == b"free"}, added
    )
    grown = joined(list(iprp.items()))
    shift = len(grown) - len(dict(parts)[b"iprp"])
    moved = [
        (kind, grown if kind == b"iprp" else _shifted(body, shift) if kind == b"iloc" else body)
        for kind, body in parts
    ]
    changed = meta[:4] + joined(moved)
    return joined([(kind, changed if kind == b"meta" else body) for kind, body in file])


def _associated(body: bytes, dropped: set[int], added: bytes) -> bytes:
    """An ``ipma`` box of version 0 with other indices."""
    assert body[:4] == bytes(4)
    (count,) = struct.unpack_from(">I", body, 4)
    out, at = body[:8], 8
    for number in range(count):
        length = body[at + 2]
        indices = bytes(i for i in body[at + 3 : at + 3 + length] if i & 0x7F not in dropped)
        indices += added if number == 0 else b""
        out += body[at : at + 2] + bytes([len(indices)]) + indices
        at += 3 + length
    return out


def _shifted(body: bytes, shift: int) -> bytes:
    """An ``iloc`` box of version 0 or 1 whose offsets into the file, of 4 bytes, are moved."""
    out, version = bytearray(body), body[0]
    base = body[5] >> 4
    assert body[4] == 0x44
    assert version in (0, 1)
    at = 8
    for _ in range(int.from_bytes(body[6:8], "big")):
        in_file = not (version and body[at + 3])
        at += 6 if version else 4
        places = [at] if base else []
        at += base + 2
        count = int.from_bytes(body[at - 2 : at], "big")
        places = places or [at + 8 * number for number in range(count)]
        at += 8 * count
        for place in places if in_file else ():
            offset = int.from_bytes(body[place : place + 4], "big") + shift
            out[place : place + 4] = offset.to_bytes(4, "big")
    return bytes(out)

"""The colours that AVIF and HEIC files declare by code points.

``colr`` of type ``nclx`` (ISO/IEC 14496-12, 12.1.5), of the primary item or of the first picture
track; without any ``colr``, what the AV1 stream says. The decoder applies the matrix and the range;
primaries and transfer are left to be applied. An ICC profile, which comes before code points, is
the decoder's to report.

Pure.
"""

from __future__ import annotations

import struct

from proxy.imaging.color import profiles
from proxy.imaging.color.code_points import BT_709, CURVES, HLG, PQ, PRIMARIES, SRGB_CURVE
from proxy.imaging.containers import av1
from proxy.imaging.containers.isobmff import boxes
from proxy.imaging.containers.isobmff_meta import Part, associated, parts


def profile_of(data: bytes) -> bytes | None:
    """Return the profile of the code points of a file; None if they are sRGB, or there are none."""
    try:
        body = {
            box.kind: data[box.body : box.end]
            for box in boxes(data)
            if box.kind in (b"meta", b"moov")
        }
        if data[8:12] == _SEQUENCE and b"moov" in body:
            properties, stream = _of_track(body[b"moov"]), b""
        else:
            properties, stream = _of_primary_item(data, body[b"meta"])
    except (struct.error, ValueError, KeyError, IndexError):
        return None
    colors = [value for kind, value in properties if kind == b"colr"]
    codes = None if colors else av1.code_points_of(stream)
    for color in colors:
        if color[:4] == b"nclx" and len(color) >= 8:
            primaries, transfer = struct.unpack_from(">2H", color, 4)
            codes = primaries, transfer
    if codes is None:
        return None
    return profiles.of_code_points(*_as_shown(*codes), _peak(properties))


_SEQUENCE = b"avis"  # with this brand, the decoder shows the track


def _as_shown(primaries: int, transfer: int) -> tuple[int, int]:
    """Replace what browsers show as sRGB: what is unknown, and cameras' curves (BT.709)."""
    like_709 = CURVES.get(transfer) == CURVES[BT_709]
    known = (transfer in CURVES or transfer in (PQ, HLG)) and not like_709
    return primaries if primaries in PRIMARIES else 1, transfer if known else SRGB_CURVE


def _peak(properties: list[Part]) -> float | None:
    """Return the content's brightest light in cd/m2 (``clli``); browsers ignore ``mdcv``."""
    levels = dict(properties).get(b"clli", b"")
    return float(int.from_bytes(levels[:2], "big")) or None


_SAMPLE_ENTRY = 78  # bytes of a VisualSampleEntry before its boxes


def _of_track(body: bytes) -> list[Part]:
    """Return the boxes of the first sample entry of the first track.

    Raises:
        KeyError, ValueError, IndexError: there is none, or a box on the way to it is damaged.
    """
    for kind in (b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        body = _first(body, kind)
    (_, entry), *_ = parts(body, 8)
    return list(parts(entry, _SAMPLE_ENTRY))


def _first(body: bytes, kind: bytes) -> bytes:
    for name, inner in parts(body, 0):
        if name == kind:
            return inner
    raise KeyError(kind)


_STREAM = 1024
"""Bytes of a coded picture that are read: its sequence header is at the start."""


def _of_primary_item(data: bytes, meta: bytes) -> tuple[list[Part], bytes]:
    """Return the properties of the primary item, and the start of its coded picture.

    Those of a grid without colours are those of its first tile, which it is decoded from.
    """
    found = dict(parts(meta, 4))
    item = int.from_bytes(found[b"pitm"][4 : 8 if found[b"pitm"][0] else 6], "big")
    described = list(parts(found[b"iprp"], 0))
    known = list(parts(dict(described)[b"ipco"], 0))
    indices = associated(body for kind, body in described if kind == b"ipma")

    def properties(item: int) -> list[Part]:
        return [known[(index & 0x7FFF) - 1] for index in indices[item] if index & 0x7FFF]

    own = properties(item)
    tile = _first_tile(found[b"iref"], item) if b"iref" in found else None
    if tile is not None and not any(kind == b"colr" for kind, _ in own):
        item = tile
        own += properties(item)
    at = _location(found[b"iloc"], item)
    return own, b"" if at is None else data[at : at + _STREAM]


def _first_tile(body: bytes, item: int) -> int | None:
    """Return the first item that ``item`` is derived from (14496-12, 8.11.12)."""
    code = "I" if body[0] else "H"
    for kind, reference in parts(body, 4):
        start, count, first = struct.unpack_from(f">{code}H{code}", reference)
        if kind == b"dimg" and start == item and count:
            return int(first)
    return None


def _location(body: bytes, item: int) -> int | None:
    """Return where in the file an item begins (14496-12, 8.11.3); None if it is not in the file."""
    version = body[0]
    widths = body[4] >> 4, body[4] & 15, body[5] >> 4, body[5] & 15 if version else 0
    offset_width, length_width, base_width, index_width = widths
    number_width = 4 if version == 2 else 2
    at = 6 + number_width
    for _ in range(int.from_bytes(body[6:at], "big")):
        number = int.from_bytes(body[at : at + number_width], "big")
        at += number_width
        method = body[at + 1] & 15 if version else 0
        at += 4 if version else 2
        base = int.from_bytes(body[at : at + base_width], "big")
        at += base_width
        (count,) = struct.unpack_from(">H", body, at)
        at += 2
        if number == item:
            at += index_width
            start = base + int.from_bytes(body[at : at + offset_width], "big")
            return start if count and method == 0 else None
        at += count * (index_width + offset_width + length_width)
    return None

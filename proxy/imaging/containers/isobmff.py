"""AVIF and HEIC files (ISO/IEC 14496-12 and 23008-12). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from proxy.imaging.containers import isobmff_meta, isobmff_track
from proxy.imaging.containers.facts import MAX_PARTS, Facts


class Box(NamedTuple):
    """A box of the file itself: all of it is ``data[start:end]``, what it holds ``[body:end]``."""

    kind: bytes
    start: int
    body: int
    end: int


def boxes(data: bytes) -> Iterator[Box]:
    """Yield at most ``MAX_PARTS`` boxes, until the end or what is no box; the last may be cut."""
    at = 0
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        length = int.from_bytes(data[at : at + 4], "big") or len(data) - at
        head = 8
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
            head = 16
        if length < head:
            return
        yield Box(data[at + 4 : at + 8], at, at + head, at + length)
        at += length


def inspect(data: bytes) -> Facts:
    """Prepare a file for Pillow's reader.

    EXIF is renamed, because that reader fails if it is damaged. It is not needed here: in this
    format, orientation is a property of the picture (``irot``, ``imir``), never of EXIF. See
    ``isobmff_meta`` for what else is mended.
    """
    whole = [box for box in boxes(data) if box.end <= len(data)]  # what is not is a trailer
    box = next((box for box in whole if box.kind == b"meta"), None)
    if box is None:
        return Facts(data)
    body = data[box.body : box.end].replace(b"Exif", b"skip")
    meta = isobmff_meta.read(body)
    crop = None if data[8:12] == _SEQUENCE else meta.crop
    last = whole[-1]
    if meta.mended is not None and data[last.start : last.start + 4] != bytes(4):  # it has an end
        body = data[: box.start + 4] + b"free" + data[box.start + 8 : last.end]
        return Facts(body + meta.mended, crop=crop)
    return Facts(data[: box.body] + body + data[box.end :], crop=crop)


def with_item(data: bytes) -> bytes:
    """Give a sequence without any item its first picture as one; see ``isobmff_track``."""
    whole = [box for box in boxes(data) if box.end <= len(data)]
    kinds = {box.kind: box for box in whole}
    if b"moov" not in kinds or b"meta" in kinds:
        return data
    moov, last = kinds[b"moov"], whole[-1]
    meta = isobmff_track.primary_item(data[moov.body : moov.end])
    if meta is None or data[last.start : last.start + 4] == bytes(4):
        return data
    brands = _STILL * ((whole[0].end - 8) // 4)
    return data[:8] + brands + data[8 + len(brands) : last.end] + meta


def is_cut(data: bytes) -> bool:
    """Whether data is said to be where the file has already ended."""
    meta = next((box for box in boxes(data) if box.kind == b"meta"), None)
    return meta is not None and isobmff_meta.ends_outside(data[meta.body : meta.end], len(data))


_STILL = b"heic"
"""The decoder refuses a file whose brands are those of sequences alone."""

_SEQUENCE = b"avis"
"""With this major brand, the reader decodes a track instead of an item."""

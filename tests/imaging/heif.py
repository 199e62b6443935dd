"""Writes HEIF files, AVIF or HEIC, from coded pictures (ISO/IEC 14496-12 and 23008-12)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

from tests.imaging.isobmff import box, boxes
from tests.imaging.sources import Pixels, animation


def heic(pixels: Pixels, **options: object) -> bytes:
    """A HEIC by libheif; ``options`` are pillow-heif's. It must be installed."""
    from pillow_heif import from_pillow

    out = BytesIO()
    from_pillow(Image.fromarray(pixels)).save(out, **{"quality": 95, **options})
    return out.getvalue()


def deep_heic(pixels: Pixels, bits: int) -> bytes:
    """A HEIC of 10 or 12 bits."""
    import pillow_heif

    height, width, bands = pixels.shape
    samples = (pixels.astype(np.uint32) * 65535 // 255).astype(np.uint16)
    mode = "RGBA;16" if bands == 4 else "RGB;16"
    image = pillow_heif.from_bytes(mode=mode, size=(width, height), data=samples.tobytes())
    out = BytesIO()
    before = pillow_heif.options.SAVE_HDR_TO_12_BIT
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    try:
        image.save(out, quality=95)
    finally:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = before
    return out.getvalue()


@dataclass
class Item:
    """An item of a file, numbered from 1 by its place.

    Attributes:
        properties: whole boxes, each essential or not.
        references: kind and numbers of what it refers to.
    """

    kind: bytes
    data: bytes
    properties: list[tuple[bytes, bool]] = field(default_factory=list)
    references: list[tuple[bytes, list[int]]] = field(default_factory=list)
    hidden: bool = False


def coded(data: bytes, *, references: Sequence[tuple[bytes, list[int]]] = ()) -> Item:
    """The coded picture of a file that Pillow or libheif wrote, with its properties."""
    meta = dict(boxes(dict(boxes(data))[b"meta"][4:]))
    iloc, iprp = meta[b"iloc"], dict(boxes(meta[b"iprp"]))
    base = iloc[5] >> 4
    start = int.from_bytes(iloc[12 : 12 + base], "big")
    offset, length = struct.unpack_from(">II", iloc, 14 + base)
    known = [box(*each) for each in boxes(iprp[b"ipco"])]
    ipma = iprp[b"ipma"]
    own = ipma[11 : 11 + ipma[10]]
    return Item(
        kind=b"av01" if b"av01" in meta[b"iinf"] else b"hvc1",
        data=data[start + offset : start + offset + length],
        properties=[(known[(value & 0x7F) - 1], value >= 0x80) for value in own],
        references=list(references),
    )


def size(width: int, height: int) -> tuple[bytes, bool]:
    return box(b"ispe", struct.pack(">III", 0, width, height)), False


def grid(rows: int, columns: int, width: int, height: int, tiles: list[int]) -> Item:
    """A picture made of tiles, row by row (23008-12, 6.6.2.3)."""
    data = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    return Item(b"grid", data, [size(width, height)], [(b"dimg", tiles)])


def overlay(
    width: int, height: int, places: list[tuple[int, int]], inputs: list[int], fill: int = 65535
) -> Item:
    """Pictures at places on a canvas of one grey (23008-12, 6.6.2.2)."""
    data = struct.pack(">BB4HHH", 0, 0, fill, fill, fill, 65535, width, height)
    data += b"".join(struct.pack(">hh", *place) for place in places)
    return Item(b"iovl", data, [size(width, height)], [(b"dimg", inputs)])


def alpha_of(number: int, item: Item) -> Item:
    """Make ``item`` the alpha of another (23008-12, 6.4.5)."""
    name = _HEVC_ALPHA if item.kind == b"hvc1" else _AV1_ALPHA
    item.properties.append((box(b"auxC", bytes(4) + name + b"\0"), True))
    item.references.append((b"auxl", [number]))
    return item


_HEVC_ALPHA = b"urn:mpeg:hevc:2015:auxid:1"
_AV1_ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"


def file_of(items: list[Item], *, brands: bytes, primary: int = 1) -> bytes:
    """A file of these items; ``brands`` is the body of its first box."""
    known: list[bytes] = []
    ipma, iinf, iref = b"", b"", b""
    for number, item in enumerate(items, start=1):
        indices = b""
        for prop, essential in item.properties:
            if prop not in known:
                known.append(prop)
            indices += bytes([known.index(prop) + 1 | (0x80 if essential else 0)])
        ipma += struct.pack(">HB", number, len(indices)) + indices
        flags = 2 << 24 | item.hidden
        iinf += box(b"infe", struct.pack(">IHH", flags, number, 0) + item.kind + b"\0")
        for kind, to in item.references:
            iref += box(kind, struct.pack(f">HH{len(to)}H", number, len(to), *to))
    count = struct.pack(">H", len(items))
    iprp = box(b"ipco", b"".join(known))
    iprp += box(b"ipma", struct.pack(">II", 0, len(items)) + ipma)

    def head(start: int) -> bytes:
        iloc = bytes(4) + b"\x44\0" + count
        for number, item in enumerate(items, start=1):
            iloc += struct.pack(">HHHII", number, 0, 1, start, len(item.data))
            start += len(item.data)
        meta = box(b"hdlr", bytes(8) + b"pict" + bytes(13))
        meta += box(b"pitm", struct.pack(">IH", 0, primary)) + box(b"iloc", iloc)
        meta += box(b"iinf", bytes(4) + count + iinf)
        meta += box(b"iref", bytes(4) + iref) if iref else b""
        return box(b"ftyp", brands) + box(b"meta", bytes(4) + meta + box(b"iprp", iprp))

    media = box(b"mdat", b"".join(item.data for item in items))
    return head(len(head(0)) + 8) + media


_TO_TABLES = "trak mdia minf stbl"


def sequence(frames: Sequence[Pixels], *, brands: bytes, before: bytes = b"") -> bytes:
    """An HEIC of one track; ``before`` is what stands between its first box and ``moov``.

    The tables are those of an AVIF that Pillow wrote, with other samples.
    """
    samples = [coded(heic(frame)) for frame in frames]
    own = {each[4:8]: each for each, _ in samples[0].properties}
    extent = struct.unpack_from(">II", own[b"ispe"], 12)
    moov = dict(boxes(animation("AVIF", frames)))[b"moov"]

    def entry(body: bytes) -> bytes:
        ((_, old),) = boxes(body[8:])
        head = old[:24] + struct.pack(">HH", *extent) + old[28:78]
        return body[:8] + box(b"hvc1", head + own[b"hvcC"] + own.get(b"clap", b""))

    sizes = [len(sample.data) for sample in samples]
    table = struct.pack(f">III{len(sizes)}I", 0, 0, len(sizes), *sizes)
    moov = changed(moov, f"{_TO_TABLES} stsd", entry)
    moov = changed(moov, f"{_TO_TABLES} stsz", lambda _: table)

    def head(offset: int) -> bytes:
        chunks = struct.pack(">III", 0, 1, offset)
        made = changed(moov, f"{_TO_TABLES} stco", lambda _: chunks)
        return box(b"ftyp", brands) + before + box(b"moov", made)

    media = box(b"mdat", b"".join(sample.data for sample in samples))
    return head(len(head(0)) + 8) + media


def changed(content: bytes, path: str, edit: Callable[[bytes], bytes]) -> bytes:
    """Boxes, with the body of each at the end of a path of kinds changed."""
    first, _, rest = path.encode().partition(b" ")
    return b"".join(
        box(
            kind,
            body if kind != first else changed(body, rest.decode(), edit) if rest else edit(body),
        )
        for kind, body in boxes(content)
    )

"""What a file holds beside pixels and what showing them needs. Pure.

Each container has a list of what it may hold; whatever else is there is left over. It is read
afresh here, by the formats' specifications, and not by the code that strips files.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.model.formats import Format

_PNG = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
_WEBP = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}
_BOXES = {
    *(b"ftyp", b"meta", b"hdlr", b"pitm", b"iloc", b"iinf", b"infe", b"iref", b"iprp", b"ipco"),
    *(b"ipma", b"ispe", b"pixi", b"av1C", b"colr", b"auxC", b"auxl", b"mdat", b"moov", b"mvhd"),
    *(b"trak", b"tkhd", b"edts", b"elst", b"mdia", b"mdhd", b"minf", b"vmhd", b"dinf", b"dref"),
    *(b"url ", b"stbl", b"stsd", b"stts", b"stsc", b"stsz", b"stco", b"stss", b"tref", b"ccst"),
    *(b"idat", b"a1op", b"lsel", b"dimg", b"prem", b"co64", b"auxi", b"irot", b"imir"),
}
_INSIDE = {b"moov", b"trak", b"edts", b"mdia", b"minf", b"dinf", b"stbl", b"iprp", b"ipco", b"tref"}
_ITEMS = {b"av01", b"grid", b"hvc1", b"skip"}
"""``skip`` is what a copy makes of an item that is none of the picture's; ``free`` of a box."""


def leftovers(format_: Format, data: bytes) -> list[str]:
    """What ``data`` should not hold, each in a few words."""
    match format_:
        case Format.JPEG:
            return list(_of_jpeg(data))
        case Format.PNG:
            return list(_of_png(data))
        case Format.WEBP:
            return list(_of_webp(data))
        case Format.GIF:
            return list(_of_gif(data))
        case Format.AVIF | Format.HEIC:
            return list(_of_boxes(data, 0, len(data)))
        case Format.JSON:
            raise ValueError("no picture")


def _of_jpeg(data: bytes) -> Iterator[str]:
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            yield f"bytes between segments at {at}"
            return
        marker = data[at + 1]
        if marker == 0xD9:
            break
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + size]
        if marker == 0xE0:
            if body[:5] != b"JFIF\0" or len(body) != 14:
                yield f"APP0 of {len(body)} bytes"
        elif marker == 0xEE:
            if body[:5] != b"Adobe" or len(body) != 12:
                yield f"APP14 of {len(body)} bytes"
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            yield f"segment {marker:02X} of {len(body)} bytes"
        at += 2 + size
        if marker == 0xDA:
            at = _end_of_scan(data, at)
    if data[at : at + 2] != b"\xff\xd9":
        yield "no end"
    elif at + 2 != len(data):
        yield f"{len(data) - at - 2} bytes after the end"


def _end_of_scan(data: bytes, at: int) -> int:
    while (at := data.find(b"\xff", at)) >= 0:
        following = data[at + 1 : at + 2]
        if following == b"\0" or b"\xd0" <= following <= b"\xd7":
            at += 2
        else:
            return at
    return len(data)


def _of_png(data: bytes) -> Iterator[str]:
    at, kind = 8, b""
    while at + 12 <= len(data) and kind != b"IEND":
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind not in _PNG:
            yield f"chunk {kind!r}"
        at += size + 12
    if at != len(data):
        yield f"{len(data) - at} bytes after the end"


def _of_webp(data: bytes) -> Iterator[str]:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end != len(data):
        yield f"{len(data) - end} bytes after the end"
    yield from _of_riff(data, 12, min(end, len(data)))


def _of_riff(data: bytes, at: int, end: int) -> Iterator[str]:
    while at + 8 <= end:
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind not in _WEBP:
            yield f"chunk {kind!r}"
        if kind == b"ANMF":
            yield from _of_riff(data, at + 8 + 16, at + 8 + size)
        at += 8 + size + size % 2
    if at != end:
        yield f"{end - at} bytes after the last chunk"


def _of_gif(data: bytes) -> Iterator[str]:
    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    def blocks(at: int) -> int:
        while data[at]:
            at += 1 + data[at]
        return at + 1

    at = 13 + table(data[10])
    while at < len(data):
        if data[at] == 0x3B:
            at += 1
            break
        if data[at] == 0x2C:
            at = blocks(at + 10 + table(data[at + 9]) + 1)
        elif data[at] == 0x21:
            end = blocks(at + 2)
            loops = data[at + 1] == 0xFF and data[at + 3 : at + 14] == b"NETSCAPE2.0"
            if data[at + 1] != 0xF9 and not (loops and end - at == 19):
                yield f"extension {data[at + 1]:02X} of {end - at} bytes"
            at = end
        else:
            yield f"bytes between blocks at {at}"
            return
    if at != len(data):
        yield f"{len(data) - at} bytes after the end"


def _of_boxes(data: bytes, at: int, end: int) -> Iterator[str]:
    while at + 8 <= end:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        size = size or end - at
        if size < 8 or at + size > end:
            yield f"box {kind!r} of {size} bytes"
            return
        if kind in (b"free", b"skip") and not any(data[at + 8 : at + size]):
            pass
        elif kind not in _BOXES:
            yield f"box {kind!r}"
        elif kind == b"colr" and data[at + 8 : at + 12] != b"nclx":
            yield "a profile"
        elif kind == b"infe":
            if data[at + 16 : at + 20] not in _ITEMS:
                yield f"item {data[at + 16 : at + 20]!r}"
        elif kind in _INSIDE:
            yield from _of_boxes(data, at + 8, at + size)
        elif kind == b"meta":
            yield from _of_boxes(data, at + 12, at + size)
        elif kind == b"iinf":
            yield from _of_boxes(data, at + (14 if data[at + 8] == 0 else 16), at + size)
        at += size
    if at != end:
        yield f"{end - at} bytes after the last box"

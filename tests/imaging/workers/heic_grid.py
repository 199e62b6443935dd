"""A HEIC whose picture is a grid of tiles, as telephones write it (ISO/IEC 23008-12, 6.6.2.3).

The encoder of the tests writes none, so it is put together from the encoder's single pictures.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image


def grid(rows: int, columns: int, side: int = 64) -> bytes:
    """Tiles of one colour each, ``side`` pixels wide and high; needs pillow_heif's encoder."""
    colours = np.random.default_rng(1).integers(0, 256, (rows * columns, 3), dtype=np.uint8)
    tiles = [_encoded(Image.new("RGB", (side, side), tuple(map(int, rgb)))) for rgb in colours]
    items = range(2, 2 + len(tiles))
    entry = [_item(1, 0, b"grid"), *[_item(item, 1, b"hvc1") for item in items]]
    size = struct.pack(">II", side * columns, side * rows)
    properties = _box(
        b"ipco",
        _box(b"hvcC", _inside(tiles[0], b"meta", b"iprp", b"ipco", b"hvcC")),
        _full(b"ispe", 0, 0, struct.pack(">II", side, side)),
        _full(b"ispe", 0, 0, size),
    )
    of_items = [
        struct.pack(">HBB", 1, 1, 3),
        *[struct.pack(">HBBB", item, 2, 0x81, 2) for item in items],
    ]
    parts = [
        _full(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
        _full(b"pitm", 0, 0, struct.pack(">H", 1)),
        _full(b"iinf", 0, 0, struct.pack(">H", len(entry)), *entry),
        _full(
            b"iref", 0, 0, _box(b"dimg", struct.pack(f">HH{len(items)}H", 1, len(items), *items))
        ),
        _box(
            b"iprp",
            properties,
            _full(b"ipma", 0, 0, struct.pack(">I", len(of_items)), *of_items),
        ),
        _box(b"idat", struct.pack(">BBBB", 0, 0, rows - 1, columns - 1), _halved(size)),
    ]
    data = [_inside(tile, b"mdat") for tile in tiles]

    def head(start: int) -> bytes:
        places = [struct.pack(">HHHHII", 1, 1, 0, 1, 0, 8)]
        for item, piece in zip(items, data, strict=True):
            places.append(struct.pack(">HHHHII", item, 0, 0, 1, start, len(piece)))
            start += len(piece)
        location = _full(b"iloc", 1, 0, b"\x44\0", struct.pack(">H", len(places)), *places)
        return _box(b"ftyp", b"heic\0\0\0\0mif1heic") + _full(b"meta", 0, 0, *parts, location)

    return head(len(head(0)) + 8) + _box(b"mdat", *data)


def _encoded(picture: Image.Image) -> bytes:
    import pillow_heif

    out = BytesIO()
    pillow_heif.from_pillow(picture).save(out)
    return out.getvalue()


def _halved(size: bytes) -> bytes:
    """Width and height in 16 bits each."""
    return struct.pack(">HH", *struct.unpack(">II", size))


def _item(number: int, hidden: int, kind: bytes) -> bytes:
    return _full(b"infe", 2, hidden, struct.pack(">HH", number, 0), kind, b"\0")


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def _full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)


def _inside(data: bytes, *path: bytes) -> bytes:
    """What the box at ``path`` contains."""
    for kind in path:
        data = next(body for found, body in _boxes(data) if found == kind)
        if kind == b"meta":
            data = data[4:]
    return data


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    while data:
        (length,) = struct.unpack_from(">I", data)
        yield data[4:8], data[8:length]
        data = data[length:]

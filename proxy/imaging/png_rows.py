"""The rows of a PNG (W3C PNG, 7.2 and 9): deflated, inflated, and written as a file.

The compressor is libdeflate. Pillow's wheels take the zlib of the system for this, which may be
the original one: it inflates at a ninth of the speed. Drawn pictures repeat their bytes: without a
filter the compressor finds that, in fewer bytes and less time than with one.

Pure.
"""

from __future__ import annotations

import struct

import deflate
from PIL import Image

from proxy.imaging.containers import png
from proxy.imaging.containers.apng import chunk_of
from proxy.imaging.containers.png import SIGNATURE

_AT_HEADER = len(SIGNATURE) + 8
_BANDS, _LEAST_ROWS = 4, 8
_LEVEL_OF_SAMPLE, _CLEARLY = 2, 0.9

# Rows that take over so many times the bytes of their stream are mostly repeats, which zlib copies
# as fast as libdeflate; to store them anew would only take longer.
_MOSTLY_REPEATS = 8

MODES = {"L": 0, "LA": 4, "RGB": 2, "RGBA": 6}
"""The modes of ``file_of``, and their colour types (11.2.1)."""


def inflated(stream: bytes, size: int) -> bytearray | None:
    """Return what a zlib stream holds if that is exactly ``size`` bytes; None for any other. Total.

    Bytes behind the end of the stream do not count.
    """
    try:
        rows = deflate.zlib_decompress(stream, size)
    except deflate.DeflateError:
        return None
    return rows if len(rows) == size else None


def ends_exactly(stream: bytes, size: int) -> bool:
    """Whether ``stream`` holds ``size`` bytes and has none behind its end. Total."""
    return inflated(stream, size) is not None and inflated(stream[:-1], size) is None


def stored(picture: bytes) -> bytes | None:
    """Return a PNG with its rows stored, not compressed, where Pillow decodes that faster.

    None where Pillow is to read the file as it is: what is damaged, which it then says, what is
    interlaced or has 16 bits, whose rows need more memory, and what is mostly repeats. Total.
    """
    before: list[bytes | memoryview] = []
    stream: list[memoryview] = []
    end = 0
    for chunk in png.chunks(picture):
        if chunk.kind == b"IDAT":
            stream.append(chunk.body)
            end = chunk.end
        elif not stream:
            before.append(memoryview(picture)[chunk.start : chunk.end])
        else:
            break
    header = picture[_AT_HEADER : _AT_HEADER + 13]
    if not stream or header[8] > 8 or header[12]:
        return None
    size = png.rows_length(header)
    if size > _MOSTLY_REPEATS * sum(map(len, stream)):
        return None
    rows = inflated(b"".join(stream), size)
    if rows is None:
        return None
    body = deflate.zlib_compress(rows, 0)
    del rows
    return b"".join((SIGNATURE, *before, chunk_of(b"IDAT", body), memoryview(picture)[end:]))


def file_of(image: Image.Image, level: int, *, filtered: bool) -> bytes:
    """Return the file, with nothing but IHDR, IDAT and IEND.

    Args:
        image: of one of ``MODES``.
        level: 1 to 12, of libdeflate.
        filtered: with the filter that Pillow chooses for each row; else without any.
    """
    width, height = image.size
    header = struct.pack(">IIBBBBB", width, height, 8, MODES[image.mode], 0, 0, 0)
    rows = _filtered(image) if filtered else _unfiltered(image)
    return _file([(b"IHDR", header)], deflate.zlib_compress(rows, level))


def packed(data: bytes, level: int) -> bytes:
    """Return a file of Pillow's with its rows deflated anew; that was quickest at its level 0."""
    parts = [(chunk.kind, bytes(chunk.body)) for chunk in png.chunks(data)]
    stream = b"".join(body for kind, body in parts if kind == b"IDAT")
    header = next(body for kind, body in parts if kind == b"IHDR")
    rows = inflated(stream, png.rows_length(header))
    if rows is None:
        return data
    before = [(kind, body) for kind, body in parts if kind not in (b"IDAT", b"IEND")]
    return _file(before, deflate.zlib_compress(rows, level))


def gains_by_filters(image: Image.Image) -> bool:
    """Whether the picture takes clearly fewer bytes with the filters that Pillow chooses.

    To choose them takes twice as long as to deflate. A sixteenth of the rows is asked, in bands, or
    more of a small picture.
    """
    sample = _sample(image)
    plain, filtered = (
        len(deflate.zlib_compress(rows, _LEVEL_OF_SAMPLE))
        for rows in (_unfiltered(sample), _filtered(sample))
    )
    return filtered < _CLEARLY * plain


def _file(before: list[tuple[bytes, bytes]], stream: bytearray) -> bytes:
    chunks = [chunk_of(kind, body) for kind, body in before]
    return b"".join((SIGNATURE, *chunks, chunk_of(b"IDAT", stream), chunk_of(b"IEND", b"")))


def _unfiltered(image: Image.Image) -> bytes:
    data = memoryview(image.tobytes())
    row = image.width * len(image.getbands())
    starts = range(0, len(data), row)
    return b"\0" + b"\0".join(data[at : at + row] for at in starts)  # each with its filter, none


def _filtered(image: Image.Image) -> bytearray:
    stream = image.tobytes("zip", image.mode, False, 0, -1, b"")
    rows = inflated(stream, image.height * (image.width * len(image.getbands()) + 1))
    if rows is None:
        raise ValueError("Pillow wrote another number of rows")
    return rows


def _sample(image: Image.Image) -> Image.Image:
    width, height = image.size
    rows = max(height // (16 * _BANDS), _LEAST_ROWS)
    if rows * _BANDS >= height:
        return image
    sample = Image.new(image.mode, (width, rows * _BANDS))
    for band in range(_BANDS):
        top = (2 * band + 1) * (height - rows) // (2 * _BANDS)
        sample.paste(image.crop((0, top, width, top + rows)), (0, band * rows))
    return sample

"""Decides, from the bytes of a file, whether it contains only its picture.

This is an allow-list: the answer is no if any part is unknown, doubtful, or after the end. If such
a file is served unchanged, it reveals no more than a transformed one.

Pure.
"""

from __future__ import annotations

import re
import struct
import zlib

from proxy.imaging import containers
from proxy.imaging.passthrough_avif import bare_avif
from proxy.model.formats import Format


def is_bare(format_: Format, data: bytes) -> bool:
    """Whether ``data`` is an sRGB still picture without metadata, profile, or hidden bytes.

    Conservative: False for every format other than JPEG, PNG, WebP and AVIF.
    """
    match format_:
        case Format.JPEG:
            return _bare_jpeg(data)
        case Format.PNG:
            return _bare_png(data)
        case Format.WEBP:
            return _bare_webp(data)
        case Format.AVIF:
            return bare_avif(data)
        case _:
            return False


_DQT, _DHT, _DRI = 0xDB, 0xC4, 0xDD
_JPEG_TABLES = frozenset({_DQT, _DHT, _DRI, containers.SOS})
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; all Huffman

# In entropy-coded data, only 0 or a restart marker follows 0xFF.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")


def _bare_jpeg(data: bytes) -> bool:
    at = 2
    frames = 0
    while True:
        segment = None
        for segment in containers.jpeg_segments(data, at):
            if segment.start != at:
                return False
            at = segment.end
            if segment.marker == containers.EOI:
                return frames == 1 and at == len(data)
            if segment.marker in _JPEG_FRAMES:
                frames += 1
                # One (grey) or three components: CMYK would have to be converted.
                if len(segment.body) < 6 or segment.body[5] not in (1, 3):
                    return False
            elif segment.marker not in _JPEG_TABLES and not _names_color(segment):
                return False
        if segment is None or segment.marker != containers.SOS:
            return False
        marker = _AFTER_SCAN.search(data, at)
        if marker is None:
            return False
        at = marker.start()


def _names_color(segment: containers.Segment) -> bool:
    """Whether it is JFIF without a thumbnail, or Adobe's colour transform, of the exact length."""
    body = segment.body
    if segment.marker == containers.APP0:
        return len(body) == 14 and body.startswith(b"JFIF\0") and body.endswith(b"\0\0")
    return segment.marker == containers.APP14 and len(body) == 12 and body.startswith(b"Adobe")


# Each has one exact length, and describes how to show the samples, not their origin.
_PNG_LENGTHS = {b"IHDR": 13, b"IEND": 0, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32, b"pHYs": 9}
_PNG_SRGB = {
    b"gAMA": (45455).to_bytes(4, "big"),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}


def _bare_png(data: bytes) -> bool:
    inflater = zlib.decompressobj()
    seen: set[bytes] = set()
    unpacked = expected = 0
    end = 0
    for chunk in containers.png_chunks(data):
        kind, body = chunk.kind, chunk.body
        if not chunk.intact or (kind in seen and kind != b"IDAT"):
            return False
        if kind in _PNG_LENGTHS and len(body) != _PNG_LENGTHS[kind]:
            return False
        if kind not in _PNG_LENGTHS and kind not in (b"PLTE", b"tRNS", b"IDAT"):
            return False
        if kind in _PNG_SRGB and body != _PNG_SRGB[kind]:
            return False
        if kind == b"IHDR":
            expected = _unpacked_size(bytes(body))
        elif kind == b"IDAT":
            if inflater.eof or unpacked > expected:
                return False
            try:
                unpacked += len(inflater.decompress(body, expected + 1 - unpacked))
            except zlib.error:
                return False
        seen.add(kind)
        end = chunk.end
    # Extra bytes in the rows, after the stream, or after the end may be an older picture.
    exact = inflater.eof and unpacked == expected
    hidden = inflater.unused_data or inflater.unconsumed_tail or end != len(data)
    return b"IEND" in seen and exact and not hidden


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))  # fmt: skip


def _unpacked_size(header: bytes) -> int:
    """Return the bytes of all rows of a picture, including their filter bytes."""
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(color, 0)
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns = max(0, -(-(width - left) // across))
        rows = max(0, -(-(height - top) // down))
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total


_WEBP_PICTURES = ([b"VP8 "], [b"VP8L"], [b"VP8X", b"VP8 "], [b"VP8X", b"VP8L"],
                  [b"VP8X", b"ALPH", b"VP8 "])  # fmt: skip


def _bare_webp(data: bytes) -> bool:
    if int.from_bytes(data[4:8], "little") != len(data) - 8:
        return False
    chunks = list(containers.riff_chunks(data))
    if [chunk.kind for chunk in chunks] not in _WEBP_PICTURES or chunks[-1].end != len(data):
        return False
    extended = chunks[0].kind == b"VP8X"
    return not extended or (
        len(chunks[0].body) == 10 and chunks[0].body[0] & ~containers.VP8X_ALPHA == 0
    )

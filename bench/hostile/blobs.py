"""The bytes that attacks are made of: pictures, documents, frames of HTTP/2. Pure."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from functools import cache

from hpack import Encoder

MAX_DOCUMENT = 250_000
"""Bytes of a document or record: a little less than the limit of the proxy, 256 KiB."""

# JPEG (ITU-T T.81). One table each: of ones, and with one code of one bit.
_QUANTIZATION = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
_LONGEST_RUN = 0xE0
"""The symbol EOB14 (G.1.2.2): 14 further bits, so that a code of 15 bits ends 32,767 blocks."""
_ONE_CODE = bytes([1]) + bytes(15) + bytes([_LONGEST_RUN])
_HUFFMAN = b"\xff\xc4" + struct.pack(">HB", 3 + len(_ONE_CODE), 0x10) + _ONE_CODE
_SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
_BLOCKS_OF_RUN = 32_767


def filled_jpeg(filling: bytes, length: int) -> bytes:
    """The start of a JPEG, and then ``filling`` where a marker is expected."""
    return (b"\xff\xd8" + filling * (length // len(filling) + 1))[:length]


def scans_jpeg(width: int, height: int, length: int, number: int) -> bytes:
    """A grey progressive JPEG whose scans say "no coefficients" of every block, in few bytes each.

    Args:
        number: for a comment, so that each number gives another blob.
    """
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    comment = b"\xff\xfe\x00\x0a" + struct.pack(">Q", number)
    blocks = -(-width // 8) * -(-height // 8)
    runs = -(-blocks // _BLOCKS_OF_RUN)
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    head = b"\xff\xd8" + comment + _QUANTIZATION + frame + _HUFFMAN
    scan = _SCAN + coded
    return head + scan * max((length - len(head)) // len(scan), 1) + b"\xff\xd9"


def profiles_png(profiles: int, number: int) -> bytes:
    """A small PNG with many colour profiles, each of which inflates to 4 MiB of zeros."""
    profile = b"p\0\0" + _zeros()
    chunks = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)),
        *[_chunk(b"iCCP", profile)] * profiles,
        _chunk(b"IDAT", zlib.compress(bytes(9 * 8))),
        _chunk(b"tEXt", b"n\0" + str(number).encode()),
        _chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@cache
def _zeros() -> bytes:
    return zlib.compress(bytes(4 << 20), 9)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def large_blob(length: int, number: int) -> bytes:
    """Bytes that look like a JPEG to what reads the first of them."""
    return b"\xff\xd8\xff\xe0" + struct.pack(">Q", number) + bytes(length - 12)


def document(did: str, endpoint: str, **more: object) -> bytes:
    """A DID document that names a PDS."""
    pds = {
        "id": "#atproto_pds",
        "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": endpoint,
    }
    return json.dumps({"id": did, "service": [pds], **more}, ensure_ascii=False).encode()


def of_names(did: str, endpoint: str) -> bytes:
    """As large a document as is read, of names that are no handles."""
    return document(did, endpoint, alsoKnownAs=["at://a"] * (MAX_DOCUMENT // 10))


def of_objects(did: str, endpoint: str) -> bytes:
    """As large a document as is read, of as many objects as fit."""
    return document(did, endpoint, x=[{}] * (MAX_DOCUMENT // 4))


def of_long_endpoint(did: str) -> bytes:
    """A document whose endpoint takes four bytes of memory for each that is sent."""
    return document(did, "https://" + "x" * (MAX_DOCUMENT - 100) + "\N{GRINNING FACE}")


def record(uri: str) -> bytes:
    """The answer of ``getRecord`` with as many small objects as fit."""
    value = {"$type": "app.bsky.actor.profile", "x": [{}] * (MAX_DOCUMENT // 4)}
    return json.dumps({"uri": uri, "cid": "x", "value": value}).encode()


# HTTP/2 (RFC 9113)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _HEADERS, _WINDOW_UPDATE = 4, 1, 8
_INITIAL_WINDOW_SIZE = 4
_END_STREAM_AND_HEADERS = 5


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame (section 4.1)."""
    length = struct.pack(">I", len(payload))[1:]
    return length + struct.pack(">BBI", kind, flags, stream) + payload


SETTINGS = frame(_SETTINGS, 0, 0)
WINDOW_UPDATE = frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))
NO_WINDOW = frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0))


def requests(host: str, paths: Iterable[str]) -> bytes:
    """A stream for each path: GETs without a body."""
    encoder = Encoder()
    frames = []
    for number, path in enumerate(paths):
        headers = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", path),
            (":authority", host),
        ]
        block = encoder.encode(headers)
        frames.append(frame(_HEADERS, _END_STREAM_AND_HEADERS, 2 * number + 1, block))
    return b"".join(frames)

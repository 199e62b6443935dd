"""Keys and entries for the tests of the cache: small, valid, and told apart by a number."""

from __future__ import annotations

import base64
import hashlib

from proxy.cache.interface import Entry
from proxy.model.formats import Format
from proxy.model.identifiers import Cid, Did, parse_cid, parse_did
from proxy.model.keys import ImageKey, image_key
from proxy.model.presets import DEFAULT_PRESETS

SIGNATURES = {
    Format.JPEG: b"\xff\xd8\xff",
    Format.PNG: b"\x89PNG\r\n\x1a\n",
    Format.WEBP: b"RIFF\x00\x00\x00\x00WEBP",
    Format.AVIF: b"\x00\x00\x00\x14ftypavif\x00\x00\x00\x00avif",
    Format.GIF: b"GIF89a",
    Format.JSON: b'{"width":',
}
"""How data of each format begins that a cache may keep."""


def owner(number: int = 0) -> Did:
    digits = base64.b32encode(number.to_bytes(15, "big")).decode().lower()
    return parse_did(f"did:plc:{digits}")


def blob_cid(number: int = 0) -> Cid:
    binary = b"\x01\x55\x12\x20" + hashlib.sha256(str(number).encode()).digest()
    return parse_cid("b" + base64.b32encode(binary).decode().lower().rstrip("="))


def key(
    number: int = 0,
    *,
    preset: str = "avatar",
    did: Did | None = None,
    cid: Cid | None = None,
    format_: Format | None = None,
) -> ImageKey:
    """A key whose owner and blob are both told apart by ``number``, unless they are given."""
    return image_key(
        DEFAULT_PRESETS, preset, did or owner(number), cid or blob_cid(number), format_
    )


def entry(size: int = 100, format_: Format = Format.JPEG, fill: bytes = b"\x00") -> Entry:
    """``size`` bytes that begin as ``format_`` does."""
    return Entry(SIGNATURES[format_].ljust(size, fill), format_)

"""What an object in a shared store consists of: a header that proves the data, and the data. Pure.

The checksum covers the path too, so that an object under the path of another one is noticed. It
proves that the data is what some node wrote, not who wrote it: only nodes may write to the store.
"""

from __future__ import annotations

import hashlib
import math
import struct

_MAGIC = b"ATPROXY\x01"

_HEADER = struct.Struct(">8sdQ32s")

HEADER_BYTES = _HEADER.size
"""Bytes of an object besides its data."""


class Damaged(ValueError):
    """The object is not what was written under its path."""


def pack(path: str, data: bytes, seen: float) -> bytes:
    """Return the object.

    Args:
        seen: when the PDS last had the blob, seconds since the epoch.
    """
    return _HEADER.pack(_MAGIC, seen, len(data), _digest(path, data, seen)) + data


def unpack(path: str, content: bytes) -> tuple[bytes, float]:
    """Return the data of an object, and ``seen``; see ``pack``.

    Raises:
        Damaged: ``content`` was not packed for ``path``.
    """
    if len(content) < HEADER_BYTES:
        raise Damaged(f"{len(content)} bytes")
    magic, seen, length, digest = _HEADER.unpack_from(content)
    data = content[HEADER_BYTES:]
    if magic != _MAGIC or length != len(data) or not math.isfinite(seen):
        raise Damaged("not the header of an object")
    if digest != _digest(path, data, seen):
        raise Damaged("another checksum")
    return data, seen


def _digest(path: str, data: bytes, seen: float) -> bytes:
    found = hashlib.sha256(path.encode())
    found.update(struct.pack(">xd", seen))
    found.update(data)
    return found.digest()

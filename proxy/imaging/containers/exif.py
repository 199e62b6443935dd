"""Reads the orientation from an EXIF block (CIPA DC-008, EXIF 2.32). Pure."""

from __future__ import annotations

import struct

PREFIX = b"Exif\0\0"

_ORIENTATION = 0x0112
_SHORT = 3
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


def is_block(segment: bytes) -> bool:
    """Whether an APP1 segment is EXIF; the last byte of its prefix is only there to pad it."""
    return segment.startswith(PREFIX[:-1]) and len(segment) >= len(PREFIX)


def orientation_of(exif: bytes) -> int:
    """Return the orientation of an EXIF block (the ``Exif`` prefix is optional); default 1.

    The first valid one counts, as in browsers: of type SHORT, and one value of 1 to 8.
    """
    tiff = exif[len(PREFIX) :] if is_block(exif) else exif
    order = _ORDERS.get(tiff[:4])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for at in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, type_, length, value = struct.unpack_from(f"{order}HHIHxx", tiff, at)
            if (tag, type_, length) == (_ORIENTATION, _SHORT, 1) and 1 <= value <= 8:
                return int(value)
    except struct.error:
        pass
    return 1

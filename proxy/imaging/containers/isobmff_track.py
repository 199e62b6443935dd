"""The first picture of an HEIC sequence that has tracks and no items (ISO/IEC 23008-12, 7).

pillow-heif reads items alone. A ``meta`` box is made whose one item is the first sample of the
first track of pictures. The end of the file is where it moves nothing.

Pure.
"""

from __future__ import annotations

import struct

from proxy.imaging.containers.isobmff_meta import box_of, parts

_SAMPLE_ENTRY = 78  # bytes of a VisualSampleEntry before its boxes (14496-12, 12.1.3)

_ESSENTIAL = frozenset({b"hvcC", b"clap"})
_KEPT = _ESSENTIAL | {b"colr"}


def primary_item(moov: bytes) -> bytes | None:
    """Return the ``meta`` box for the body of a ``moov`` box; None if that is not understood."""
    try:
        return _meta(_samples_of_pictures(moov))
    except (struct.error, KeyError, IndexError, ValueError):
        return None


Tables = dict[bytes, bytes]
"""The boxes of ``stbl``, by kind."""


def _samples_of_pictures(moov: bytes) -> Tables:
    for kind, trak in parts(moov, 0):
        if kind == b"trak":
            mdia = dict(parts(dict(parts(trak, 0))[b"mdia"], 0))
            if mdia[b"hdlr"][8:12] == b"pict":
                return dict(parts(dict(parts(mdia[b"minf"], 0))[b"stbl"], 0))
    raise KeyError("no track of pictures")


def _meta(tables: Tables) -> bytes:
    kind, entry = next(parts(tables[b"stsd"], 8))
    width, height = struct.unpack_from(">HH", entry, 24)
    properties = [(b"ispe", struct.pack(">III", 0, width, height))]
    properties += [part for part in parts(entry, _SAMPLE_ENTRY) if part[0] in _KEPT]
    offset, length = _first_sample(tables)
    numbers = bytes(
        number | (0x80 if name in _ESSENTIAL else 0)
        for number, (name, _) in enumerate(properties, start=1)
    )
    ipma = struct.pack(">IIHB", 0, 1, 1, len(numbers)) + numbers
    ipco = b"".join(box_of(*part) for part in properties)
    item = box_of(b"infe", struct.pack(">IHH4sB", 2 << 24, 1, 0, kind, 0))
    children = (
        (b"hdlr", bytes(8) + b"pict" + bytes(13)),
        (b"pitm", struct.pack(">IH", 0, 1)),
        (b"iloc", struct.pack(">IBBHHHHQI", 0, 0x84, 0, 1, 1, 0, 1, offset, length)),
        (b"iinf", struct.pack(">IH", 0, 1) + item),
        (b"iprp", box_of(b"ipco", ipco) + box_of(b"ipma", ipma)),
    )
    return box_of(b"meta", bytes(4) + b"".join(box_of(*child) for child in children))


def _first_sample(tables: Tables) -> tuple[int, int]:
    """Return its offset and length (14496-12, 8.7.3 and 8.7.5)."""
    size, count = struct.unpack_from(">II", tables[b"stsz"], 4)
    if not count:
        raise ValueError("no samples")
    (length,) = (size,) if size else struct.unpack_from(">I", tables[b"stsz"], 12)
    wide = b"co64" in tables
    chunks = tables[b"co64" if wide else b"stco"]
    (offset,) = struct.unpack_from(">Q" if wide else ">I", chunks, 8)
    return offset, length

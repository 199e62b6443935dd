"""WebP files (RFC 9649). Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from proxy.imaging.containers import exif
from proxy.imaging.containers.facts import MAX_PARTS, MAX_PROFILE, Facts
from proxy.model.presets import Size


class Chunk(NamedTuple):
    """A chunk of a RIFF file: ``data[start:end]`` is all of it, including the padding."""

    kind: bytes
    start: int
    end: int
    body: memoryview


def chunks(data: bytes) -> Iterator[Chunk]:
    """Yield at most ``MAX_PARTS`` chunks of a WebP file, until its end or a truncated chunk.

    The file ends where its header says, as for libwebp, whatever follows.
    """
    view = memoryview(data)
    stop = min(8 + int.from_bytes(view[4:8], "little"), len(data))
    at = 12
    for _ in range(MAX_PARTS):
        if at + 8 > stop:
            return
        length = int.from_bytes(view[at + 4 : at + 8], "little")
        end = at + 8 + length + (length & 1)
        if at + 8 + length > stop:
            return
        yield Chunk(bytes(view[at : at + 4]), at, end, view[at + 8 : at + 8 + length])
        at = end


VP8X_ANIMATION, VP8X_EXIF, VP8X_ALPHA, VP8X_ICC = 0x02, 0x08, 0x10, 0x20


def inspect(data: bytes) -> Facts:
    """Read the facts. Metadata counts if the header announces it, and the first of a kind.

    An animation is said to have alpha: what its frames do not cover is transparent in any case.
    """
    facts = Facts(data)
    announced = 0
    for chunk in chunks(data):
        body = chunk.body
        match chunk.kind:
            case b"VP8X" if len(body) >= 10:
                width = int.from_bytes(body[4:7], "little") + 1
                height = int.from_bytes(body[7:10], "little") + 1
                announced = body[0]
                facts = replace(facts, size=Size(width, height))
                if announced & VP8X_ANIMATION and not announced & VP8X_ALPHA:
                    at = chunk.start + 8
                    flags = bytes([announced | VP8X_ALPHA])
                    facts = replace(facts, picture=data[:at] + flags + data[at + 1 :])
            case b"VP8 " if len(body) >= 10 and facts.size is None:
                width, height = struct.unpack_from("<HH", body, 6)
                facts = replace(facts, size=Size(width & 0x3FFF, height & 0x3FFF))
            case b"VP8L" if len(body) >= 5 and facts.size is None:
                bits = int.from_bytes(body[1:5], "little")
                facts = replace(facts, size=Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
            case b"ICCP" if announced & VP8X_ICC:
                announced -= VP8X_ICC
                if len(body) <= MAX_PROFILE:
                    facts = replace(facts, profile=bytes(body))
            case b"EXIF" if announced & VP8X_EXIF:
                announced -= VP8X_EXIF
                facts = replace(facts, orientation=exif.orientation_of(bytes(body)))
    return facts

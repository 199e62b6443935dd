"""Reads the properties of a picture from its file, without a decoder.

The decoder gets only the picture: profile, orientation and gamma are extracted here, and other
metadata is removed unread. So a comment or a camera's notes cannot make a good picture fail, and no
parser reads them. Every function is total: data that cannot be understood is passed on unchanged,
and the decoder refuses it. No function takes more than ``MAX_PARTS`` steps; ``bounds`` refuses a
file that has more parts.

Pure.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from proxy.model.formats import Format
from proxy.model.presets import Size

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_PROFILE = 4 << 20
"""Maximum bytes of a colour profile that is read: printers' profiles reach 3 MB."""

MAX_PARTS = 1 << 15
"""Maximum segments, chunks, blocks or boxes that are read of one file. Libraries write PNGs in
chunks of 8 KiB or more: 1300 in ten megabytes."""

MAX_FILL = 1 << 16
"""Maximum bytes in a row that may stand before a marker, and belong to nothing."""

_EXIF = b"Exif\0\0"
_ICC = b"ICC_PROFILE\0"
_ORIENTATION = 0x0112
_EXIF_INTEGERS = {3: "H", 4: "I"}  # SHORT and LONG


@dataclass(frozen=True, slots=True)
class Facts:
    """The properties that a container gives.

    Attributes:
        picture: the file without its metadata, for the decoder.
        size: the canvas as stored, before orientation; None if only the decoder knows it.
        orientation: the EXIF orientation, 1 to 8.
        profile: the embedded ICC profile, unchecked.
        gamma: the file gamma of a PNG; None if a profile or an sRGB chunk overrides it.
        transparent: the samples of the colour that a PNG declares transparent, 8 bits each.
        animated: whether the header declares more than one frame.
    """

    picture: bytes
    size: Size | None = None
    orientation: int = 1
    profile: bytes | None = None
    gamma: float | None = None
    transparent: tuple[int, ...] | None = None
    animated: bool = False


def inspect(format_: Format, data: bytes) -> Facts:
    """Return the facts of ``data``; ``format_`` is the result of ``formats.sniff``."""
    match format_:
        case Format.JPEG:
            return _inspect_jpeg(data)
        case Format.PNG:
            return _inspect_png(data)
        case Format.WEBP:
            return _inspect_webp(data)
        case Format.GIF:
            return _inspect_gif(data)
        case Format.AVIF:
            return _inspect_avif(data)
        case Format.HEIC:
            return Facts(data)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation of an EXIF block (the ``Exif`` prefix is optional); default 1."""
    tiff = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for at in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, type_, length = struct.unpack_from(f"{order}HHI", tiff, at)
            if tag == _ORIENTATION:
                code = _EXIF_INTEGERS.get(type_)
                if code is None or length != 1:
                    return 1
                (value,) = struct.unpack_from(order + code, tiff, at + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


# JPEG (ITU-T T.81)


class Segment(NamedTuple):
    """A marker segment: ``data[start:end]`` is all of it, ``body`` the part after its length."""

    marker: int
    start: int
    end: int
    body: bytes


SOI, EOI, SOS, APP0, APP1, APP2, APP14, COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


_MARKER = re.compile(rb"\xff[^\x00\xff]")


def jpeg_segments(data: bytes, at: int) -> Iterator[Segment]:
    """Yield the segments from ``at`` to the next SOS or EOI (included), or until one is invalid.

    Bytes between segments that do not start a marker are skipped, as in libjpeg, but at most
    ``MAX_FILL`` in all. At most ``MAX_PARTS`` segments are yielded.
    """
    fill = MAX_FILL
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, at, at + fill + 2)
        if found is None:
            return
        start = found.start()
        fill -= start - at
        marker = data[start + 1]
        if marker == EOI:
            yield Segment(marker, start, start + 2, b"")
            return
        if marker in (0x01, SOI) or 0xD0 <= marker <= 0xD7:
            yield Segment(marker, start, start + 2, b"")
            at = start + 2
            continue
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        end = start + 2 + length
        if length < 2 or end > len(data):
            return
        yield Segment(marker, start, end, data[start + 4 : end])
        if marker == SOS:
            return
        at = end


def _inspect_jpeg(data: bytes) -> Facts:
    kept = [data[:2]]
    chunks: list[bytes] = []
    orientation, size = None, None
    rest = 2
    for segment in jpeg_segments(data, 2):
        marker, body = segment.marker, segment.body
        if marker in (SOS, EOI):
            break
        rest = segment.end
        if marker == APP1 and body.startswith(_EXIF):
            orientation = orientation or exif_orientation(body)
        elif marker == APP2 and body.startswith(_ICC):
            chunks.append(body[len(_ICC) :])
        elif marker in SOF and len(body) >= 6:
            size = Size(int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"))
        # JFIF and Adobe define the colour space of the components, so they belong to the picture.
        named = (marker == APP0 and body.startswith(b"JFIF\0")) or (
            marker == APP14 and body.startswith(b"Adobe")
        )
        if named or not (marker == COM or APP0 <= marker <= 0xEF):
            kept.append(data[segment.start : segment.end])
    kept.append(data[rest:])
    return Facts(b"".join(kept), size, orientation or 1, _join_profile(chunks))


def _join_profile(chunks: list[bytes]) -> bytes | None:
    """Join the numbered parts of a profile (ICC.1:2010, B.4); None if not each occurs once."""
    if not chunks or any(len(chunk) < 2 for chunk in chunks):
        return None
    chunks.sort(key=lambda chunk: chunk[0])
    if [chunk[0] for chunk in chunks] != list(range(1, chunks[0][1] + 1)):
        return None
    profile = b"".join(chunk[2:] for chunk in chunks)
    return profile if len(profile) <= MAX_PROFILE else None


# PNG (W3C PNG, third edition)


class Chunk(NamedTuple):
    """A PNG chunk: ``data[start:end]`` is all of it."""

    kind: bytes
    start: int
    end: int
    body: memoryview
    crc: int

    @property
    def intact(self) -> bool:
        """Whether the checksum of kind and body is correct."""
        return zlib.crc32(self.body, zlib.crc32(self.kind)) == self.crc


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """Yield at most ``MAX_PARTS`` chunks, to IEND (included) or until one is truncated."""
    view = memoryview(data)
    at = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        if at + 12 > len(data):
            return
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data):
            return
        kind = bytes(view[at + 4 : at + 8])
        crc = int.from_bytes(view[end - 4 : end], "big")
        yield Chunk(kind, at, end, view[at + 8 : end - 4], crc)
        if kind == b"IEND":
            return
        at = end


_PNG_PICTURE = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


def _inspect_png(data: bytes) -> Facts:
    facts = Facts(data)
    kept: list[bytes | memoryview] = [PNG_SIGNATURE]
    depth = color = 0
    declared_srgb = has_profile = False
    rest = len(PNG_SIGNATURE)
    for chunk in png_chunks(data):
        kind, body = chunk.kind, chunk.body
        rest = chunk.end
        if kind == b"IHDR" and len(body) == 13:
            width, height, depth, color = struct.unpack_from(">IIBB", body)
            facts = replace(facts, size=Size(width, height))
        # Keep tRNS for palettes only: for others, Pillow compares it with samples it has scaled.
        if kind in _PNG_PICTURE or (kind == b"tRNS" and color == 3 and chunk.intact):
            kept.append(memoryview(data)[chunk.start : chunk.end])
        if kind == b"IDAT" or not chunk.intact:
            continue  # the decoder verifies the checksum of the IDAT stream
        match kind:
            case b"tRNS" if color in (0, 2) and len(body) == (2 if color == 0 else 6):
                facts = replace(facts, transparent=_samples(body, depth))
            case b"iCCP" if not has_profile:  # a file may have one; each could inflate to 4 MiB
                has_profile = True
                facts = replace(facts, profile=_inflate_profile(bytes(body)))
            case b"sRGB":
                declared_srgb = True
            case b"gAMA" if len(body) == 4:
                facts = replace(facts, gamma=int.from_bytes(body, "big") / 100_000)
            case b"eXIf":
                facts = replace(facts, orientation=exif_orientation(bytes(body)))
    if declared_srgb or facts.profile is not None:
        facts = replace(facts, gamma=None)
    kept.append(memoryview(data)[rest:])
    return replace(facts, picture=b"".join(kept))


def _samples(body: memoryview, depth: int) -> tuple[int, ...]:
    """Convert samples of ``depth`` bits, stored in two bytes each, to decoded 8-bit values."""
    values = struct.unpack(f">{len(body) // 2}H", body)
    if depth == 16:
        return tuple(value >> 8 for value in values)
    top = max((1 << depth) - 1, 1)  # the decoder refuses a depth of 0
    return tuple((value & top) * 255 // top for value in values)


def _inflate_profile(body: bytes) -> bytes | None:
    _, _, rest = body.partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(rest[1:], MAX_PROFILE)
    except zlib.error:
        return None
    return profile if inflater.eof and rest[:1] == b"\0" else None


# WebP (RFC 9649)


class RiffChunk(NamedTuple):
    """A chunk of a RIFF file: ``data[start:end]`` is all of it, including the padding."""

    kind: bytes
    start: int
    end: int
    body: memoryview


def riff_chunks(data: bytes) -> Iterator[RiffChunk]:
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
        yield RiffChunk(bytes(view[at : at + 4]), at, end, view[at + 8 : at + 8 + length])
        at = end


VP8X_ANIMATION, VP8X_XMP, VP8X_EXIF, VP8X_ALPHA = 0x02, 0x04, 0x08, 0x10


def _inspect_webp(data: bytes) -> Facts:
    facts = Facts(data)
    for chunk in riff_chunks(data):
        body = chunk.body
        match chunk.kind:
            case b"VP8X" if len(body) >= 10:
                width = int.from_bytes(body[4:7], "little") + 1
                height = int.from_bytes(body[7:10], "little") + 1
                animated = bool(body[0] & VP8X_ANIMATION)
                facts = replace(facts, size=Size(width, height), animated=animated)
            case b"VP8 " if len(body) >= 10 and facts.size is None:
                width, height = struct.unpack_from("<HH", body, 6)
                facts = replace(facts, size=Size(width & 0x3FFF, height & 0x3FFF))
            case b"VP8L" if len(body) >= 5 and facts.size is None:
                bits = int.from_bytes(body[1:5], "little")
                facts = replace(facts, size=Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
            case b"ICCP" if len(body) <= MAX_PROFILE:
                facts = replace(facts, profile=bytes(body))
            case b"EXIF":
                facts = replace(facts, orientation=exif_orientation(bytes(body)))
    return facts


def without_webp_metadata(data: bytes) -> bytes:
    """Remove EXIF and XMP from a WebP file; every frame stays unchanged."""
    kept: list[bytes] = []
    for chunk in riff_chunks(data):
        piece = data[chunk.start : chunk.end]
        if chunk.kind == b"VP8X":
            flags = chunk.body[0] & ~(VP8X_EXIF | VP8X_XMP)
            piece = piece[:8] + bytes([flags]) + piece[9:]
        if chunk.kind not in (b"EXIF", b"XMP "):
            kept.append(piece)
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


# GIF (GIF89a specification)


class GifHead(NamedTuple):
    """What comes before the first frame of a GIF.

    Attributes:
        palette_end: the offset after the global palette.
        control: the last graphic control extension: it names the transparent colour.
        frame: the offset of the first frame, or of what stands there instead.
        blocks: data blocks of all extensions; ``MAX_PARTS`` if reading stopped for that.
    """

    palette_end: int
    control: bytes
    frame: int
    blocks: int


_CONTROL = 0xF9


def gif_head(data: bytes) -> GifHead:
    """Read the extensions before the first frame; ``data`` has at least 13 bytes."""
    flags = data[10]
    palette_end = at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control = b""
    blocks = 0
    while data[at : at + 1] == b"!" and blocks < MAX_PARTS:
        start = at
        at += 2
        while at < len(data) and data[at] and blocks < MAX_PARTS:
            at += 1 + data[at]
            blocks += 1
        at += 1
        blocks += 1  # an empty extension takes a step too
        if data[start + 1 : start + 2] == bytes([_CONTROL]):
            control = data[start:at]
    return GifHead(palette_end, control, at, min(blocks, MAX_PARTS))


def _inspect_gif(data: bytes) -> Facts:
    """Read the canvas. If the first frame exceeds it, enlarge it, as the decoder does.

    Comments and other extensions before the first frame are not for the decoder.
    """
    if len(data) < 13:
        return Facts(data)
    width, height = struct.unpack_from("<HH", data, 6)
    head = gif_head(data)
    at = head.frame
    if data[at : at + 1] != b"," or at + 9 > len(data):
        return Facts(data, Size(width, height))
    left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
    size = Size(max(width, left + across), max(height, top + down))
    picture = b"".join((data[: head.palette_end], head.control, memoryview(data)[at:]))
    return Facts(picture, size)


# AVIF and HEIC (ISO/IEC 14496-12 and 23008-12)


class IsoBox(NamedTuple):
    """A box of the file itself: ``data[start:end]`` is all of it."""

    kind: bytes
    start: int
    end: int


def iso_boxes(data: bytes) -> Iterator[IsoBox]:
    """Yield at most ``MAX_PARTS`` boxes, until the end or a box of another form than usual."""
    at = 0
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        length = int.from_bytes(data[at : at + 4], "big") or len(data) - at
        if length < 8:
            return
        yield IsoBox(data[at + 4 : at + 8], at, at + length)
        at += length


def _inspect_avif(data: bytes) -> Facts:
    """Rename the EXIF item, because Pillow's reader fails if it is damaged.

    EXIF is not needed here: in this format, orientation is a property of the picture (``irot``,
    ``imir``), never of EXIF.
    """
    for box in iso_boxes(data):
        if box.kind == b"meta":
            meta = data[box.start : box.end].replace(b"Exif", b"skip")
            return Facts(data[: box.start] + meta + data[box.end :])
    return Facts(data)

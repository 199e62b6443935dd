"""JPEG files (ITU-T T.81). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO

from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from proxy.errors import ImageTooLarge, UndecodableImage
from proxy.imaging.containers import jpeg
from proxy.imaging.containers.jpeg import APP0, APP14, COM, EOI, SOI, SOS, Segment
from proxy.imaging.decoder_errors import decoding
from proxy.imaging.stripped.jpeg_scans import RESTART, Code, Frame, Scan, Walker
from proxy.imaging.stripped.parts import NotUnderstood, need

SOF0, DQT, DHT, _DRI = 0xC0, 0xDB, 0xC4, 0xDD
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; all Huffman
_PROGRESSIVE = 0xC2

_TALLEST = 32
"""Maximum rows of pixels that a unit of blocks has."""

_JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"  # version 1.1, square pixels, no thumbnail
_ADOBE = b"Adobe\0\x64\0\0\0\0"  # version 100, no flags; the transform follows


@dataclass
class Table:
    """A quantisation or Huffman table as its segment holds it.

    Attributes:
        name: its class or precision, and its number: the first byte.
        used: whether a scan needs it.
    """

    name: int
    values: bytes
    used: bool = False

    @cached_property
    def code(self) -> Code:
        """The code of a Huffman table."""
        return Code(self.values)


@dataclass(slots=True)
class Tables:
    """A segment of tables; those that no scan needs are left out."""

    marker: int
    tables: list[Table]


@dataclass(slots=True)
class File:
    """What a JPEG's pixels need, in order.

    Attributes:
        transform: of Adobe's segment; None if there is none.
        parts: segments as they came, segments of tables, and scans with their data.
    """

    jfif: bool = False
    transform: int | None = None
    frame: bytes = b""
    progressive: bool = False
    parts: list[bytes | Tables | tuple[Scan, bytes]] = field(default_factory=list)
    quantization: dict[int, Table] = field(default_factory=dict)
    huffman: dict[int, Table] = field(default_factory=dict)
    restart: int = 0


def strip(source: bytes, most: int | None = None, shown: Image.Image | None = None) -> bytes:
    """Keep the frame, its tables and its scans; of JFIF and Adobe's segment what colours need.

    A frame of four components is refused: CMYK has no colours of its own.

    Args:
        most: files with more bytes of coded data are refused.
        shown: the pixels that a decoder makes of ``source``, in full size, if they are at hand.
            They tell faster that a scan has nothing behind its last block.
    """
    file = read(source)
    coded = sum(len(part[1]) for part in file.parts if isinstance(part, tuple))
    need(most is None or coded <= most)
    if shown is not None and _ends_with_last_block(file, shown):
        return written(file, _parts(file, None))
    walker = Walker(Frame.read(file.frame))
    return written(file, _parts(file, walker))


def _parts(file: File, walker: Walker | None) -> Iterator[bytes]:
    for part in file.parts:
        if isinstance(part, bytes):
            yield part
        elif isinstance(part, tuple):
            yield walker.exact(*part) if walker else part[1]
        elif body := b"".join(bytes([t.name]) + t.values for t in part.tables if t.used):
            yield segment_of(part.marker, body)


def _ends_with_last_block(file: File, shown: Image.Image) -> bool:
    """Whether a baseline scan needs its last byte: its pixels are others with another byte.

    If so, nothing is behind the last block. If not, it may still be a block that looks the same.
    """
    scans = [part for part in file.parts if isinstance(part, tuple)]
    scan, data = scans[0]
    if len(scans) > 1 or scan.progressive or scan.restart or RESTART.search(data):
        return False
    last = data[-2:-1] if data.endswith(b"\xff\0") else data[-1:]
    before = data[: -2 if data.endswith(b"\xff\0") else -1]
    other = bytes([last[0] ^ 0xFF]).replace(b"\xff", b"\xff\0")
    parts = [before + other if part is data else part for part in _parts(file, None)]
    strip_of_it = (0, max(0, shown.height - _TALLEST), shown.width, shown.height)
    try:
        with decoding(), JpegImageFile(BytesIO(written(file, parts))) as image:
            image.load()
            if (image.size, image.mode) != (shown.size, shown.mode):
                return False
            changed = ImageChops.difference(image.crop(strip_of_it), shown.crop(strip_of_it))
    except (ImageTooLarge, UndecodableImage) as error:
        raise NotUnderstood from error
    return changed.getbbox() is not None


def written(file: File, parts: Iterable[bytes]) -> bytes:
    """Return a file of what colours need, and ``parts``: segments, and data of scans."""
    kept = [b"\xff\xd8"]
    if file.jfif:
        kept.append(segment_of(APP0, _JFIF))
    if file.transform is not None:
        kept.append(segment_of(APP14, _ADOBE + bytes([file.transform])))
    return b"".join((*kept, *parts, b"\xff\xd9"))


def read(source: bytes) -> File:
    """Read the parts of a JPEG.

    Raises:
        NotUnderstood: a part is damaged, unknown or missing.
    """
    need(jpeg.layout_of(source).brings_everything)
    file = File()
    at = 2
    while at < len(source):
        segment = None
        for segment in jpeg.segments(source, at):
            at = segment.end
            if segment.marker == EOI:
                return file
            _take(file, segment)
        if segment is None or segment.marker != SOS:
            raise NotUnderstood
        after = jpeg.AFTER_SCAN.search(source, at)
        # Without a marker there may be every pixel: a scan ends where its last block does.
        end = len(source) if after is None else after.start()
        file.parts.append((_scan(file, segment.body), source[at:end].rstrip(b"\xff")))
        at = end
    return file


def _take(file: File, segment: Segment) -> None:
    marker, body = segment.marker, segment.body
    if marker == APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        file.jfif = True
    elif marker == APP14 and body.startswith(b"Adobe") and len(body) >= 12:
        file.transform = body[11]
    elif marker == DQT:
        # Where a table changes between scans, decoders differ.
        need(not any(isinstance(part, tuple) for part in file.parts))
        tables = _quantization(body)
        file.parts.append(Tables(marker, tables))
        file.quantization |= {table.name & 15: table for table in tables}
    elif marker == DHT:
        tables = _huffman(body)
        file.parts.append(Tables(marker, tables))
        file.huffman |= {table.name: table for table in tables}
    elif marker == _DRI:
        need(len(body) == 2)
        file.restart = int.from_bytes(body, "big")
        file.parts.append(segment_of(marker, body))
    elif marker in _FRAMES:
        need(not file.frame and _plain_frame(body))
        file.frame, file.progressive = body, marker == _PROGRESSIVE
        file.parts.append(segment_of(marker, body))
    elif marker == SOS:
        file.parts.append(segment_of(marker, body))
    else:
        # Notes, or markers without a meaning here: they are left out.
        need(
            marker == COM or APP0 <= marker <= 0xEF or marker in (0x01, SOI) or 0xD0 <= marker < SOI
        )


def segment_of(marker: int, body: bytes) -> bytes:
    """Return a marker segment of ``body``."""
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _quantization(body: bytes) -> list[Table]:
    found = []
    at = 0
    while at < len(body):
        length = 128 if body[at] & 0xF0 else 64
        need(body[at] & 0xEC == 0 and at + 1 + length <= len(body))
        found.append(Table(body[at], body[at + 1 : at + 1 + length]))
        at += 1 + length
    return found


def _huffman(body: bytes) -> list[Table]:
    found = []
    at = 0
    while at < len(body):
        counts = body[at + 1 : at + 17]
        end = at + 17 + sum(counts)
        symbols = body[at + 17 : end]
        need(body[at] & 0xEC == 0 and len(counts) == 16 and end <= len(body))
        # Each symbol once, and its low bits a length that a coefficient of 8-bit samples has.
        need(len(set(symbols)) == len(symbols))
        need(all(symbol & 15 <= 11 for symbol in symbols))
        need(body[at] & 0x10 or all(symbol <= 11 for symbol in symbols))
        found.append(Table(body[at], counts + symbols))
        at = end
    return found


def _plain_frame(body: bytes) -> bool:
    """Whether it has 8-bit samples, a height, and one or three different components."""
    if len(body) < 6 or body[0] != 8 or not int.from_bytes(body[1:3], "big"):
        return False
    components = body[5]
    return (
        components in (1, 3)
        and len(body) == 6 + 3 * components
        and len(set(body[6::3])) == components
        and all(1 <= factor >> 4 <= 4 and 1 <= factor & 15 <= 4 for factor in body[7::3])
    )


def _scan(file: File, body: bytes) -> Scan:
    """Read the body of a SOS segment, and mark the tables that the scan needs."""
    need(file.frame and body and len(body) == 4 + 2 * body[0])
    first, last, steps = body[-3:]
    if not file.progressive:
        need((first, last, steps) == (0, 63, 0))
    quantization = dict(zip(file.frame[6::3], file.frame[8::3], strict=True))
    components, names = list(body[1:-3:2]), body[2:-3:2]
    need(components and len(set(components)) == len(components))
    for component in components:
        file.quantization[quantization[component]].used = True
    needs_dc = first == 0 and steps < 0x10
    return Scan(
        components,
        dc=[_code(file, name >> 4) if needs_dc else None for name in names],
        ac=[_code(file, 0x10 | name & 15) if last else None for name in names],
        first=first,
        last=last,
        refines=steps >= 0x10,
        restart=file.restart,
        progressive=file.progressive,
    )


def _code(file: File, name: int) -> Code:
    table = file.huffman[name]
    table.used = True
    return table.code

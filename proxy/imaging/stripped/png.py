"""PNG and APNG files (W3C PNG, third edition). Pure."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import count

from PIL.PngImagePlugin import PngImageFile

from proxy.errors import ImageTooLarge, UndecodableImage
from proxy.imaging import png_rows
from proxy.imaging.containers import png
from proxy.imaging.containers.png import SIGNATURE
from proxy.imaging.decoder_errors import decoding
from proxy.imaging.stripped.parts import NotUnderstood, need

_GREY, _COLOR, _INDEXED = 0, 2, 3
_PIECE = 1 << 16
_MOST_AT_ONCE = 32 << 20  # the rows of 8 megapixels with alpha; a frame may claim any size


class _Stream:
    """A zlib stream over several chunks, that inflates to exactly the rows of one frame."""

    def __init__(self, kind: bytes, header: bytes, size: bytes) -> None:
        self.kind = kind
        self.size = size
        self.pieces: list[bytes] = []
        self._length = png.rows_length(size + header[8:])

    def end(self) -> None:
        """Cut off what follows the end of the stream; another number of rows is refused."""
        stream = b"".join(self.pieces)
        if self._length <= _MOST_AT_ONCE and png_rows.ends_exactly(stream, self._length):
            return
        self.pieces = [piece for piece in self._up_to_its_end() if piece]

    def _up_to_its_end(self) -> Iterator[bytes]:
        inflater, left = zlib.decompressobj(), self._length
        for piece in self.pieces:
            if inflater.eof:
                return
            rest = piece
            while rest and not inflater.eof:
                left -= len(inflater.decompress(rest, _PIECE))
                need(left >= 0)
                rest = inflater.unconsumed_tail
            yield piece[: len(piece) - len(inflater.unused_data)]
        while not inflater.eof:
            more = len(inflater.decompress(inflater.unconsumed_tail, _PIECE))
            need(more)
            left -= more
        need(left == 0)


_Part = tuple[bytes, bytes] | _Stream
"""A chunk, or the chunks of a stream."""


def strip(source: bytes, *, still: bool) -> bytes:
    """Keep IHDR, PLTE, tRNS, the image data, and what moves; each stream ends where it says.

    ``pHYs``, ``bKGD`` and the like change nothing that a browser shows.
    """
    header = palette = b""
    kept: list[_Part] = []
    stream: _Stream | None = None
    seen: set[bytes] = set()
    for chunk in png.chunks(source):
        kind, body = chunk.kind, bytes(chunk.body)
        need(chunk.intact and (kind == b"IHDR") != bool(seen))
        need(kind not in seen or kind in (b"IDAT", b"fcTL", b"fdAT") or kind not in _KNOWN)
        match kind:
            case b"IHDR":
                need(len(body) == 13)
                header = body
                kept.append((kind, body))
            case b"PLTE":
                need(len(body) % 3 == 0 and 0 < len(body) <= 3 << 8)
                palette = body
                if header[9] == _INDEXED:  # for others it is only a suggestion
                    kept.append((kind, body))
            case b"tRNS":
                # Behind the pixels it counts for no browser, but for other readers.
                need(b"IDAT" not in seen and _names_transparency(body, header, palette))
                kept.append((kind, body))
            case b"acTL":
                need(len(body) == 8 and not still)
                kept.append((kind, body))
            case b"fcTL":
                need(len(body) == 26 and b"acTL" in seen)
                stream = _next(
                    stream, _Stream(b"fdAT" if b"IDAT" in seen else b"IDAT", header, body[4:12])
                )
                kept += [(kind, body), stream]
            case b"IDAT":
                if stream is None:
                    stream = _Stream(kind, header, header[:8])
                    kept.append(stream)
                need(stream.kind == kind)
                stream.pieces.append(body)
            case b"fdAT":
                need(stream is not None and stream.kind == kind and len(body) >= 4)
                if stream is not None:
                    stream.pieces.append(body[4:])
            case b"IEND":
                need(not body)
            case _:
                # One that is critical may say how to read the others.
                need(kind[0] & 0x20)
        seen.add(kind)
    need({b"IHDR", b"IDAT", b"IEND"} <= seen and (palette or header[9] != _INDEXED))
    if stream is not None:
        stream.end()
    if header[9] == _INDEXED:
        kept = _without_spare_entries(kept, header, palette)
    return SIGNATURE + b"".join(_chunks(kept))


_KNOWN = frozenset({b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"IDAT", b"fdAT", b"IEND"})


def _next(before: _Stream | None, after: _Stream) -> _Stream:
    if before is not None:
        before.end()
    return after


def _names_transparency(body: bytes, header: bytes, palette: bytes) -> bool:
    depth, color = header[8], header[9]
    if color == _INDEXED:
        return 0 < len(body) <= len(palette) // 3
    if len(body) != {_GREY: 2, _COLOR: 6}.get(color):
        return False
    if depth not in (1, 8):  # decoders differ
        return False
    return all(value < 1 << depth for value in struct.unpack(f">{len(body) // 2}H", body))


def _without_spare_entries(kept: list[_Part], header: bytes, palette: bytes) -> list[_Part]:
    """Make the entries of the palette that no frame names black, and opaque."""
    used: set[int] = set()
    for part in kept:
        if isinstance(part, _Stream):
            data = b"".join(part.pieces)
            frame = [(b"IHDR", part.size + header[8:]), (b"PLTE", palette), (b"IDAT", data)]
            used |= _entries(SIGNATURE + b"".join(_chunks([*frame])))
    return [_only(used, part) for part in kept]


def _entries(picture: bytes) -> set[int]:
    """Return the entries of the palette that the pixels of a PNG name."""
    try:
        with decoding(), PngImageFile(BytesIO(picture)) as image:
            image.load()
            return {number for number, count in enumerate(image.histogram()) if count}
    except (ImageTooLarge, UndecodableImage) as error:
        raise NotUnderstood from error


def _only(used: set[int], part: _Part) -> _Part:
    if isinstance(part, tuple) and part[0] in (b"PLTE", b"tRNS"):
        kind, body = part
        step, spare = (3, b"\0\0\0") if kind == b"PLTE" else (1, b"\xff")
        entries = (body[at : at + step] for at in range(0, len(body), step))
        return kind, b"".join(
            entry if number in used else spare for number, entry in enumerate(entries)
        )
    return part


def _chunks(kept: list[_Part]) -> Iterator[bytes]:
    """Yield the chunks of the file; those of an animation are numbered from 0."""
    number = count()
    for part in kept:
        if isinstance(part, tuple):
            kind, body = part
            if kind == b"fcTL":
                body = next(number).to_bytes(4, "big") + body[4:]
            yield _chunk(kind, body)
            continue
        for piece in part.pieces:
            more = b"" if part.kind == b"IDAT" else next(number).to_bytes(4, "big")
            yield _chunk(part.kind, more + piece)
    yield _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)))

"""WebP files (RFC 9649). Pure."""

from __future__ import annotations

from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from proxy.imaging.containers import webp
from proxy.imaging.containers.webp import VP8X_ALPHA, VP8X_ANIMATION, Chunk
from proxy.imaging.stripped import tails
from proxy.imaging.stripped.parts import need

_PICTURES = ([b"VP8 "], [b"VP8L"], [b"ALPH", b"VP8 "])
_FRAME_HEADER = 16


def strip(source: bytes, *, still: bool, shown: Image.Image | None = None) -> bytes:
    """Keep VP8X, ANIM, ANMF, ALPH, VP8 and VP8L; what follows the file's end goes.

    Args:
        still: refuse what moves.
        shown: the pixels of a still, if they are at hand: then its data must be needed to its end.
    """
    copy = _copied(source, still=still)
    if shown is not None:
        data = [chunk for chunk in webp.chunks(copy) if chunk.kind in (b"ALPH", b"VP8 ", b"VP8L")]
        ends = [chunk.start + 8 + len(chunk.body) for chunk in data]
        need(tails.are_needed(WebPImageFile, copy, ends, shown))
    return copy


def _copied(source: bytes, *, still: bool) -> bytes:
    chunks = list(webp.chunks(source))
    end = 8 + int.from_bytes(source[4:8], "little")
    need(chunks and end <= len(source) + 1 and chunks[-1].end >= end - 1)
    first = chunks[0]
    if first.kind in (b"VP8 ", b"VP8L"):
        return _file([_plain(first)])
    need(first.kind == b"VP8X" and len(first.body) == 10)
    animated = bool(first.body[0] & VP8X_ANIMATION)
    flags = first.body[0] & (VP8X_ALPHA | VP8X_ANIMATION)
    kept = [_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + first.body[4:])]
    if animated:
        need(not still)
        kept += _moving(chunks[1:])
    else:
        kept += _still([chunk for chunk in chunks[1:] if chunk.kind in (b"ALPH", b"VP8 ", b"VP8L")])
    return _file(kept)


def _moving(chunks: list[Chunk]) -> list[bytes]:
    control = [chunk for chunk in chunks if chunk.kind == b"ANIM"]
    need(len(control) == 1 and len(control[0].body) == 6)
    kept = [_plain(control[0])]
    for chunk in chunks:
        if chunk.kind == b"ANMF":
            need(len(chunk.body) >= _FRAME_HEADER)
            header = bytes(chunk.body[:_FRAME_HEADER])
            inner = list(_inner(chunk.body[_FRAME_HEADER:]))
            picture = [part for part in inner if part.kind in (b"ALPH", b"VP8 ", b"VP8L")]
            # Of the last byte, two bits say how the frame is blended and disposed of.
            frame = header[:-1] + bytes([header[-1] & 0b11]) + b"".join(_still(picture))
            kept.append(_chunk(b"ANMF", frame))
    need(len(kept) > 1)
    return kept


def _inner(body: memoryview) -> list[Chunk]:
    # As a file of its own, so that there is one reader of chunks.
    return list(webp.chunks(b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body))


def _still(chunks: list[Chunk]) -> list[bytes]:
    need([chunk.kind for chunk in chunks] in _PICTURES)
    return [_plain(chunk) for chunk in chunks]


def _plain(chunk: Chunk) -> bytes:
    return _chunk(chunk.kind, bytes(chunk.body))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(4, "little") + body + bytes(len(body) & 1)


def _file(chunks: list[bytes]) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + len(body).to_bytes(4, "little") + body

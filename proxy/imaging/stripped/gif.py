"""GIF files (GIF89a specification). Pure."""

from __future__ import annotations

import struct
from collections.abc import Container
from itertools import chain, repeat

from proxy.imaging.containers.facts import MAX_PARTS
from proxy.imaging.stripped import lzw
from proxy.imaging.stripped.parts import NotUnderstood, need

_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


def strip(source: bytes, *, still: bool) -> bytes:
    """Keep the screen, palettes, control extensions, the count of loops, and the frames.

    Comments, plain text and the extensions of applications go, and what follows the trailer. A
    control extension before a plain text counts for the frame behind it, as in browsers.
    """
    need(len(source) > 13)
    # The ratio of the pixels' sides (the last byte) is ignored by browsers.
    kept = [source[:12], b"\0", b""]
    at = 13 + _palette_size(source[10])
    palette, colors = source[13:at], {source[11]}
    control = b""
    frames = loops_at = 0
    for _ in range(MAX_PARTS):
        introducer = source[at]
        if introducer == 0x3B:
            need(frames == 1 if still else frames)
            kept[2] = _used(palette, colors)
            return b"".join((*kept, b";"))
        if introducer == 0x2C:
            flags = source[at + 9]
            end = at + 10 + _palette_size(flags)
            descriptor = source[at : at + 9] + bytes([flags & 0b1110_0111])
            width, height = struct.unpack_from("<HH", source, at + 5)
            data, after = _blocks(source, end + 1)
            walked = lzw.walk(b"".join(data), source[end], width * height)
            own = _used(source[at + 10 : end], walked.colors)
            colors |= frozenset() if own else walked.colors
            kept += [control, descriptor, own, source[end : end + 1], _joined(data, walked.data)]
            control = b""
            frames += 1
            at = after
            continue
        need(introducer == 0x21)
        label = source[at + 1]
        data, at = _blocks(source, at + 2)
        match label:
            case 0xF9:
                need(len(data) == 1 and len(data[0]) == 4)
                # Of the flags, disposal and transparency; a browser waits for no key.
                fields = bytes([data[0][0] & 0b0001_1101]) + data[0][1:]
                control = b"!\xf9\4" + fields + b"\0"
            case 0xFF if data and data[0] in _LOOPS:
                if len(data) > 1 and len(data[1]) == 3 and data[1][0] & 7 == 1:
                    loops_at = loops_at or len(kept)
                    # In place of those before it: of several the last counts, as in browsers.
                    kept[loops_at:] = [
                        b"!\xff\x0bNETSCAPE2.0\3\1" + data[1][1:] + b"\0",
                        *kept[loops_at + 1 :],
                    ]
    raise NotUnderstood


def _palette_size(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks(source: bytes, at: int) -> tuple[list[bytes], int]:
    """Return the data blocks from ``at`` on, and the offset after the empty one that ends them."""
    found = []
    while length := source[at]:
        block = source[at + 1 : at + 1 + length]
        need(len(block) == length)
        found.append(block)
        at += 1 + length
    return found, at + 1


def _joined(blocks: list[bytes], data: bytes) -> bytes:
    """Return ``data``, which begins as ``blocks`` do, in blocks as long as those."""
    out = bytearray()
    at = 0
    for length in chain(map(len, blocks), repeat(255)):
        piece = data[at : at + length]
        if not piece:
            break
        out += bytes([len(piece)]) + piece
        at += length
    return bytes(out) + b"\0"


def _used(palette: bytes, colors: Container[int]) -> bytes:
    """Return the palette with black for the entries that no pixel has."""
    entries = (palette[at : at + 3] for at in range(0, len(palette), 3))
    return b"".join(
        entry if number in colors else b"\0\0\0" for number, entry in enumerate(entries)
    )

"""GIF files (GIF89a specification). Pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

from proxy.imaging.containers.facts import MAX_PARTS, Facts, Place
from proxy.model.presets import Size


class Head(NamedTuple):
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


def head_of(data: bytes) -> Head:
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
    return Head(palette_end, control, at, min(blocks, MAX_PARTS))


def inspect(data: bytes) -> Facts:
    """Read the canvas. If the first frame exceeds it, enlarge it, as the decoder does.

    Comments and other extensions before the first frame are not for the decoder. As in browsers, a
    first frame without pixels shows nothing, and one without any palette is black.
    """
    if len(data) < 13:
        return Facts(data)
    width, height = struct.unpack_from("<HH", data, 6)
    head = head_of(data)
    at = head.frame
    if data[at : at + 1] != b"," or at + 10 > len(data):
        return Facts(data, Size(width, height))
    left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
    size = Size(max(width, left + across), max(height, top + down))
    if not (across and down) and min(size):
        return Facts(_NOTHING, size, place=Place(0, 0, size))
    screen = data[: head.palette_end]
    if not (data[10] | data[at + 9]) & _HAS_PALETTE:
        screen = data[:10] + b"\xf7" + data[11:13] + bytes(3 << 8)
    return Facts(b"".join((screen, head.control, memoryview(data)[at:])), size)


_HAS_PALETTE = 0x80
"""A flag of the screen, and of a frame."""

_NOTHING = (
    b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + b"!\xf9\4\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;"
)
"""One transparent pixel."""

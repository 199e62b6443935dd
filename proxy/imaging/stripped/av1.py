"""Units of AV1 streams (AV1 specification, 5.3 to 5.5). Pure."""

from __future__ import annotations

from proxy.imaging.containers.av1 import leb128
from proxy.imaging.stripped.parts import need

_SEQUENCE_HEADER, _TEMPORAL_DELIMITER, _FRAME_HEADER, _TILES, _FRAME, _AGAIN = 1, 2, 3, 4, 6, 7
_PADDING = 15
_KNOWN = frozenset({_SEQUENCE_HEADER, _TEMPORAL_DELIMITER, _FRAME_HEADER, _TILES, _FRAME, _AGAIN})

_MOST_OF_SEQUENCE_HEADER = 16
"""Maximum bytes of a sequence header: one without operating points has about ten."""


def without_notes(data: bytes, *, still: bool) -> bytes:
    """Return the units, of the same length: those that hold no picture become padding.

    Args:
        still: whether there must be exactly one frame.

    Raises:
        NotUnderstood: the units do not fill ``data``, or are not those of a picture.
    """
    out = bytearray(data)
    frames = at = 0
    while at < len(data):
        header = data[at]
        need(not header & 0b1000_0001)
        kind, body = header >> 3 & 15, at + (2 if header & 0b100 else 1)
        end = len(data)
        if header & 0b10:
            length, body = leb128(data, body)
            end = body + length
        need(body <= end <= len(data))
        if kind not in _KNOWN:
            out[at] = header & 0b111 | _PADDING << 3
            out[body:end] = (bytes(end - body - 1) + b"\x80") if end > body else b""
        need(kind != _TEMPORAL_DELIMITER or body == end)
        need(kind != _SEQUENCE_HEADER or end - body <= _MOST_OF_SEQUENCE_HEADER)
        frames += kind in (_FRAME_HEADER, _FRAME)
        at = end
    need(frames == 1 if still else frames)
    return bytes(out)


def is_configuration(body: bytes) -> bool:
    """Whether an ``av1C`` has four bytes, and after them at most one sequence header."""
    more = body[4:]
    if not more:
        return len(body) == 4
    at = 1
    if more[0] & 0b1111_1101 != _SEQUENCE_HEADER << 3:
        return False
    length = len(more) - 1
    if more[0] & 0b10:
        length, at = leb128(more, 1)
    return length <= _MOST_OF_SEQUENCE_HEADER and at + length == len(more)

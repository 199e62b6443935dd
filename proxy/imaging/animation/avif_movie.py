"""What Pillow neither reads nor sets of an AVIF sequence: loops and times (ISO/IEC 14496-12).

A track that repeats lasts as long as all repetitions of its one edit (8.6.6); one of unknown
duration repeats for ever, as does a file without an edit list.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from proxy.imaging.animation.film import FOREVER

_HOLDERS = frozenset({b"moov", b"trak", b"edts", b"mdia"})
_DURATIONS = {b"mvhd": (16, 24), b"tkhd": (20, 28), b"elst": (8, 8)}
"""Where the duration stands in the body, in versions 0 and 1."""

_TIMED = frozenset({b"mvhd", b"tkhd", b"mdhd"})
"""The boxes whose body begins with the times of creation and modification."""

_MOST_BOXES = 1000


class _Box(NamedTuple):
    """A full box: ``start`` is the offset of its version."""

    kind: bytes
    long: bool
    flags: int
    start: int
    end: int


def plays_of(data: bytes) -> int:
    """Return how often the frames are shown; total for any bytes."""
    whole: int | None = None
    for box in _full_boxes(data):
        start, end = _duration(box)
        if start == end:
            continue
        value = int.from_bytes(data[start:end], "big")
        if box.kind == b"tkhd":
            whole = None if value == _endless(box) else value
        elif box.kind == b"elst":
            if not box.flags & 1:
                return 1
            return max(-(-whole // value), 1) if whole and value else FOREVER
    return FOREVER


def finished(data: bytes, plays: int) -> bytes:
    """Return an endless sequence, as libavif writes it, that is shown ``plays`` times.

    The times at which it was written are removed: one result has one sequence of bytes.
    """
    changed = bytearray(data)
    boxes = list(_full_boxes(data))
    edits = (_duration(box) for box in boxes if box.kind == b"elst")
    once = next((int.from_bytes(data[start:end], "big") for start, end in edits), 0)
    for box in boxes:
        if box.kind in _TIMED:
            length = 16 if box.long else 8
            changed[box.start + 4 : box.start + 4 + length] = bytes(length)
        start, end = _duration(box)
        if plays != FOREVER and start < end and box.kind != b"elst":
            changed[start:end] = (once * plays).to_bytes(end - start, "big")
    return bytes(changed)


def _duration(box: _Box) -> tuple[int, int]:
    """Return where the duration begins and ends; nowhere for a box without one."""
    if box.kind not in _DURATIONS:
        return 0, 0
    start = box.start + _DURATIONS[box.kind][box.long]
    end = start + (8 if box.long else 4)
    return (start, end) if end <= box.end else (0, 0)


def _endless(box: _Box) -> int:
    return (1 << (64 if box.long else 32)) - 1


def _full_boxes(data: bytes) -> Iterator[_Box]:
    """Yield the boxes that have a duration or times, in the order of the file."""
    left = _MOST_BOXES
    ranges = [(0, len(data))]
    while ranges and left:
        left -= 1
        at, end = ranges.pop()
        if at + 8 > end:
            continue
        length = int.from_bytes(data[at : at + 4], "big") or end - at
        if length < 8 or at + length > end:
            continue
        kind = data[at + 4 : at + 8]
        ranges.append((at + length, end))
        if kind in _HOLDERS:
            ranges.append((at + 8, at + length))
        elif kind in _DURATIONS or kind in _TIMED:
            flags = int.from_bytes(data[at + 9 : at + 12], "big")
            yield _Box(kind, data[at + 8 : at + 9] == b"\1", flags, at + 8, at + length)

"""JPEG files (ITU-T T.81). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from proxy.imaging.containers import exif
from proxy.imaging.containers.facts import MAX_PARTS, MAX_PROFILE, Facts
from proxy.model.presets import Size

MAX_FILL = 1 << 16
"""Maximum bytes in a row that may stand before a marker, and belong to nothing."""

_ICC = b"ICC_PROFILE\0"


class Segment(NamedTuple):
    """A marker segment: ``data[start:end]`` is all of it, ``body`` the part after its length."""

    marker: int
    start: int
    end: int
    body: bytes


SOI, EOI, SOS, APP0, APP1, APP2, APP14, COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})

PROGRESSIVE = frozenset({0xC2, 0xCA})
ARITHMETIC = frozenset({0xC9, 0xCA})
UNSUPPORTED = SOF - {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
"""Frames that no browser shows: lossless and hierarchical ones."""

AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The marker that ends a scan. In one, only 0, a restart marker, or a fill byte follows 0xFF."""

_MARKER = re.compile(rb"\xff[^\x00\xff]")


def segments(data: bytes, at: int) -> Iterator[Segment]:
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


def inspect(data: bytes) -> Facts:
    kept = [data[:2]]
    chunks: list[bytes] = []
    orientation, size = None, None
    rest = 2
    for segment in segments(data, 2):
        marker, body = segment.marker, segment.body
        if marker in (SOS, EOI):
            break
        rest = segment.end
        if marker == APP1 and exif.is_block(body):
            orientation = orientation or exif.orientation_of(body)
        elif marker == APP2 and body.startswith(_ICC):
            chunks.append(body[len(_ICC) :])
        elif marker in SOF and len(body) >= 6:
            size = Size(int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"))
        # JFIF and Adobe define the colour space of the components, so they belong to the picture.
        # libjpeg ignores those that are too short, and Pillow fails.
        named = (marker == APP0 and len(body) >= 14 and body.startswith(b"JFIF\0")) or (
            marker == APP14 and len(body) >= 12 and body.startswith(b"Adobe")
        )
        if named or not (marker == COM or APP0 <= marker <= 0xEF):
            kept.append(data[segment.start : segment.end])
    kept.append(data[rest:])
    return Facts(b"".join(kept), size, orientation or 1, _join_profile(chunks))


def _join_profile(chunks: list[bytes]) -> bytes | None:
    """Join the numbered parts of a profile (ICC.1:2010, B.4) until none is missing, as browsers do.

    None if a part comes twice before that, or one says another number of parts.
    """
    parts: dict[int, bytes] = {}
    for chunk in chunks:
        if len(chunk) < 2 or chunk[0] in parts or chunk[1] != chunks[0][1]:
            return None
        parts[chunk[0]] = chunk[2:]
        if len(parts) == chunk[1]:
            break
    if not parts or sorted(parts) != list(range(1, chunks[0][1] + 1)):
        return None
    profile = b"".join(part for _, part in sorted(parts.items()))
    return profile if len(profile) <= MAX_PROFILE else None


class Layout(NamedTuple):
    """Where the scans of a JPEG are, and what they bring.

    Attributes:
        scan_ends: the offset after the data of each scan, before fill bytes and the next marker.
        in_one_scan: whether a single scan brings all components, each block at once.
        arithmetic: whether the data is in arithmetic coding.
        brings_everything: whether the headers of the scans name each bit of each coefficient.
    """

    scan_ends: list[int]
    in_one_scan: bool
    arithmetic: bool
    brings_everything: bool


def layout_of(data: bytes) -> Layout:
    """Read the headers of all scans; ``bounds`` limits their number."""
    ends: list[int] = []
    frame = 0
    in_one_scan = False
    missing: dict[int, set[int]] = {}  # of each component: coefficients that lack bits
    at = 2
    while at < len(data):
        segment = None
        for segment in segments(data, at):
            if segment.marker in SOF and not frame:
                frame = segment.marker
                missing = {component: set(range(64)) for component in segment.body[6::3]}
        if segment is None or segment.marker != SOS:
            break
        _take(segment.body, missing, progressive=frame in PROGRESSIVE)
        in_one_scan |= not ends and frame not in PROGRESSIVE and not any(missing.values())
        after = AFTER_SCAN.search(data, segment.end)
        at = len(data) if after is None else after.start()
        fill = data[max(at - MAX_FILL, segment.end) : at]
        ends.append(at - len(fill) + len(fill.rstrip(b"\xff")))
    return Layout(ends, in_one_scan, frame in ARITHMETIC, not any(missing.values()))


def _take(scan: bytes, missing: dict[int, set[int]], *, progressive: bool) -> None:
    """Take out of ``missing`` what a scan brings, by the body of its SOS (T.81, B.2.3 and G.1)."""
    count = scan[0] if scan else 0
    components, parameters = scan[1 : 1 + 2 * count : 2], scan[1 + 2 * count :]
    if len(parameters) != 3:
        return  # the decoder refuses it
    first, last, bits = parameters if progressive else (0, 63, 0)
    for component in components:
        if bits & 15 == 0:
            missing.get(component, set()).difference_update(range(first, last + 1))

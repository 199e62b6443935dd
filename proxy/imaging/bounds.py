"""Bounds on the structure of a file: a few bytes in it can make a decoder work for minutes.

Checked before decoding. No real picture reaches these bounds. The CPU limit of a worker (see
``workers.client``) bounds what a file costs in other ways.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from proxy.errors import UndecodableImage
from proxy.imaging import containers
from proxy.imaging.containers import EOI, MAX_FILL, MAX_PARTS, SOS
from proxy.model.formats import Format

MAX_SCANS = 32
"""Maximum scans of a JPEG. Encoders write at most 18 (libjpeg, progressive CMYK). A scan without
any data takes 80 bytes, and each costs a walk over all coefficients of the picture."""

# In entropy-coded data, only 0, a restart marker, or 0xFF as a fill byte follows 0xFF.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def check(format_: Format, source: bytes) -> None:
    """Check the structure of ``source``; ``format_`` is the result of ``formats.sniff``.

    Raises:
        UndecodableImage: it has more scans or parts than any real picture.
    """
    match format_:
        case Format.JPEG:
            _check_jpeg(source)
        case Format.GIF:
            _check_gif(source)
        case Format.PNG:
            _check_count(containers.png_chunks(source))
        case Format.WEBP:
            _check_count(containers.riff_chunks(source))
        case Format.AVIF | Format.HEIC:
            _check_count(containers.iso_boxes(source))


def _check_jpeg(data: bytes) -> None:
    at, scans, parts = 2, 0, 0
    while at < len(data):
        marker = None
        for segment in containers.jpeg_segments(data, at):
            marker, at = segment.marker, segment.end
            parts += 1
        _check_parts(parts)
        if marker == EOI:
            return
        if marker != SOS:
            # The decoder stops at an invalid segment, but walks through fill bytes one by one.
            _check_fill(len(data) - at)
            return
        scans += 1
        if scans > MAX_SCANS:
            raise UndecodableImage(f"more than {MAX_SCANS} scans")
        after = _AFTER_SCAN.search(data, at)
        at = len(data) if after is None else after.start()


def _check_gif(data: bytes) -> None:
    if len(data) < 13:
        return
    head = containers.gif_head(data)
    _check_parts(head.blocks)
    if data[head.frame : head.frame + 1] not in (b",", b";"):
        _check_fill(len(data) - head.frame)


def _check_count(parts: Iterable[object]) -> None:
    _check_parts(sum(1 for _ in parts))


def _check_parts(parts: int) -> None:
    if parts >= MAX_PARTS:
        raise UndecodableImage(f"more than {MAX_PARTS - 1} parts")


def _check_fill(length: int) -> None:
    if length > MAX_FILL:
        raise UndecodableImage(f"{length} bytes that no part describes")

"""Bounds on the structure of a file: a few bytes in it can make a decoder work for minutes.

Checked before decoding. No real picture reaches these bounds. The CPU limit of a worker (see
``workers.client``) bounds what a file costs in other ways.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.errors import UndecodableImage
from proxy.imaging.containers import gif, isobmff, jpeg, png, webp
from proxy.imaging.containers.facts import MAX_PARTS
from proxy.imaging.containers.jpeg import EOI, MAX_FILL, SOS
from proxy.model.formats import Format

MAX_SCANS = 32
"""Maximum scans of a JPEG. Encoders write at most 18 (libjpeg, progressive CMYK). A scan without
any data takes 80 bytes, and each costs a walk over all coefficients of the picture."""


def check(format_: Format, source: bytes) -> None:
    """Check the structure of ``source``; ``format_`` is the result of ``formats.sniff``.

    Raises:
        UndecodableImage: it has more scans or parts than any real picture, is a JPEG of a kind
            that no browser shows, or a HEIC that was cut.
    """
    match format_:
        case Format.JPEG:
            _check_jpeg(source)
        case Format.GIF:
            _check_gif(source)
        case Format.PNG:
            _check_count(png.chunks(source))
        case Format.WEBP:
            _check_count(webp.chunks(source))
        case Format.AVIF | Format.HEIC:
            _check_count(isobmff.boxes(source))
            if format_ is Format.HEIC and isobmff.is_cut(source):
                raise UndecodableImage("the data of a picture ends early")


def _check_jpeg(data: bytes) -> None:
    at, scans, parts = 2, 0, 0
    while at < len(data):
        marker = None
        for segment in jpeg.segments(data, at):
            marker, at = segment.marker, segment.end
            parts += 1
            if marker in jpeg.UNSUPPORTED:
                raise UndecodableImage(f"a JPEG of the process {marker - 0xC0}")
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
        after = jpeg.AFTER_SCAN.search(data, at)
        at = len(data) if after is None else after.start()


def _check_gif(data: bytes) -> None:
    if len(data) < 13:
        return
    head = gif.head_of(data)
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

"""How much memory a transform may take, by its picture's header, and what all of it adds up to.

Pure arithmetic. The figures per pixel are the largest growth of a worker that was measured over
the kinds of each format, rounded up; ``tests/imaging/test_memory_estimate.py`` holds the
pipeline to them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from proxy.config import Config
from proxy.imaging import containers
from proxy.imaging.encode import MAX_SIDES
from proxy.model import formats
from proxy.model.formats import OUTPUTS, Format
from proxy.model.presets import Preset, Size, place

MIB = 1 << 20

SOURCE_BYTES: dict[Format, int] = {
    Format.JPEG: 9,  # progressive CMYK: two bytes for each coefficient
    Format.PNG: 16,  # a transparent colour: its bands, and a mask of each
    Format.WEBP: 18,  # the animation's canvases
    Format.GIF: 12,
    Format.AVIF: 26,  # ten bits, 4:4:4, with alpha
    Format.HEIC: 36,  # likewise
}
"""Bytes for each pixel of a source, while it is decoded and scaled."""

SCALED_BYTES = 8
"""Bytes for each pixel of a result beside the source that it is scaled from: RGBA, twice."""

RESULT_BYTES: dict[Format, int] = {
    Format.JPEG: 28,
    Format.PNG: 26,
    Format.WEBP: 56,  # what cannot be compressed, with alpha
    Format.AVIF: 52,
}
"""Bytes for each pixel of a result, while it is encoded."""

KEPT_BYTES = 6
"""Bytes for each pixel of a source that is kept decoded for the next result, while one is made:
RGBA and a palette's indices, or a JPEG at every fraction of its size."""

COPIES = 3
"""Of the source's bytes: as received, without its metadata, and joined for the decoder."""

FIXED = 16 * MIB
"""What a transform of a single pixel takes: its tables and buffers, and a colour profile's."""

RESULT_FILE = 8
"""Bytes of a result's file for each of its pixels, more than any encoder writes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a transform may take.

    Attributes:
        pixels: of the source; a decoder that finds more is not what was estimated.
        memory: bytes, at most.
        kept: bytes more where the decoded picture is kept for another result.
        result: bytes of the result's file, at most.
    """

    pixels: int
    memory: int
    kept: int
    result: int


def estimate(
    source: bytes, preset: Preset, output: Format | None, *, max_pixels: int, trusting: bool = True
) -> Estimate:
    """What transforming ``source`` by ``preset`` may take; total and quick for any bytes.

    Args:
        max_pixels: of a source; larger ones are refused before they are decoded.
        trusting: whether the header's size is believed. If not, or if the header names none, it
            is the most that a source of the format may take.
    """
    format_ = formats.sniff(source)
    if format_ is None:
        return Estimate(max_pixels, FIXED + COPIES * len(source), 0, len(source) + MIB)
    target = output or formats.output_for(format_, animated=preset.animated)
    # A GIF that is passed on as it is: its first frame is decoded all the same.
    target = target if target in RESULT_BYTES else Format.JPEG
    size = declared_size(format_, source) if trusting else None
    result = _most_of_result(preset, target, max_pixels)
    if size is None or _area(size) > max_pixels:
        pixels = max_pixels
    else:
        pixels = _area(size)
        turned = Size(size.height, size.width)
        result = min(result, max(_area(place(preset, canvas).size) for canvas in (size, turned)))
    memory = FIXED + COPIES * len(source) + _of_pixels(format_, target, pixels, result)
    return Estimate(pixels, memory, KEPT_BYTES * pixels, len(source) + RESULT_FILE * result + MIB)


def together(estimates: Sequence[Estimate]) -> int:
    """Bytes that results of one source take when they are made one after the other."""
    most = max(estimate.memory for estimate in estimates)
    return most if len(estimates) == 1 else most + max(estimate.kept for estimate in estimates)


def budget(config: Config) -> int:
    """Bytes that all transforms share: what the costliest single one that is allowed may take."""
    pixels = config.process.max_pixels
    costliest = max(
        _of_pixels(source, target, pixels, _most_of_result(preset, target, pixels))
        for preset in config.presets.values()
        for target in OUTPUTS
        for source in Format
    )
    return FIXED + COPIES * config.fetch.max_source_bytes + costliest


def waiting_room(config: Config) -> int:
    """Bytes of sources that may wait for a transform; more are refused as busy."""
    return config.fetch.workers * config.fetch.max_source_bytes


SERVICE = 160 * MIB
"""The service itself under load: Python, its libraries, connections."""

WORKER = 192 * MIB
"""A worker between two jobs: Python and the codecs, and what the last jobs left behind."""


def ceiling(config: Config, cpus: int) -> int:
    """Bytes of resident memory that the service and its workers stay below.

    Args:
        cpus: that this process may use; as many workers run where ``process.threads`` is 0.

    Not in it: results on their way to slow clients and to a slow disk.
    """
    workers = config.process.threads or cpus
    # A body is held twice at its end: as it was received, and as one piece.
    fetches = 2 * config.fetch.workers * config.fetch.max_source_bytes
    return (
        SERVICE
        + fetches
        + waiting_room(config)
        + int(config.cache.memory_mb * MIB)
        + workers * WORKER
        + budget(config)
    )


def _of_pixels(source: Format, target: Format, pixels: int, result: int) -> int:
    """The larger of two phases: the decoded source is given back before the encoder starts."""
    decoding = SOURCE_BYTES[source] * pixels + SCALED_BYTES * result
    return max(decoding, RESULT_BYTES[target] * result)


def _most_of_result(preset: Preset, target: Format, pixels: int) -> int:
    """Pixels of the largest result that a source of so many pixels can have."""
    if preset.fit == "cover":
        return preset.width * preset.height
    height = preset.height or MAX_SIDES.get(target, pixels)
    return min(pixels, preset.width * height)


def _area(size: Size) -> int:
    return size.width * size.height


# Sizes from headers. The decoder, which alone knows for certain, is held to what is found here.

_MOST_SEGMENTS = 64
_MOST_OF_HEAD = 1 << 16
"""Bytes; a hostile file must not keep the event loop busy."""


def declared_size(format_: Format, source: bytes) -> Size | None:
    """The size of the canvas by the first part of the file, or None; total for any bytes."""
    sizes: Iterator[Size]
    match format_:
        case Format.JPEG:
            segments = islice(containers.jpeg_segments(source, 2), _MOST_SEGMENTS)
            sizes = (
                Size(*struct.unpack_from(">HH", segment.body, 1)[::-1])
                for segment in segments
                if segment.marker in containers.SOF and len(segment.body) >= 6
            )
        case Format.AVIF | Format.HEIC:
            sizes = _spatial_extents(source[:_MOST_OF_HEAD])
        case Format.PNG:
            first = next(containers.png_chunks(source[:64]), None)
            known = first is not None and first.kind == b"IHDR" and len(first.body) >= 8
            sizes = iter([Size(*struct.unpack_from(">II", first.body))] if first and known else [])
        case Format.GIF:
            size = containers.inspect(format_, source[: _MOST_OF_HEAD // 4]).size
            sizes = iter([size] if size else [])
        case Format.WEBP:
            sizes = _webp_sizes(source[:64])
    return max((size for size in sizes if _area(size)), key=_area, default=None)


def _spatial_extents(head: bytes) -> Iterator[Size]:
    """Every ``ispe`` property (ISO/IEC 23008-12, 6.5.3): of the picture, its tiles, its alpha.

    None for a sequence of pictures: its track has a size of its own.
    """
    at = -1 if b"moov" in head else head.find(b"ispe")
    while at >= 0 and at + 16 <= len(head):
        yield Size(*struct.unpack_from(">II", head, at + 8))
        at = head.find(b"ispe", at + 4)


def _webp_sizes(head: bytes) -> Iterator[Size]:
    """The one of the first chunk (RFC 9649, 2.5 to 2.7), which has to name the canvas."""
    # Ends with the head, whatever length the chunk claims.
    length = max(len(head) - 20, 0).to_bytes(4, "little")
    size = containers.inspect(Format.WEBP, head[:16] + length + head[20:]).size
    if size is not None:
        yield size

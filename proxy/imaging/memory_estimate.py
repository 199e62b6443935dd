"""Estimates the memory of a transform from the header of its picture, and the total memory.

It also limits the CPU time of a transform, by the same numbers of pixels.

Pure arithmetic. The figures per pixel are the largest measured growth of a worker over the kinds
of each format, rounded up; ``tests/imaging/test_memory_estimate.py`` checks that the pipeline stays
below them.
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
    Format.JPEG: 9,  # progressive CMYK: two bytes per coefficient
    Format.PNG: 16,  # with a transparent colour: the bands, and a mask for each
    Format.WEBP: 18,  # the animation's canvases
    Format.GIF: 12,
    Format.AVIF: 26,  # ten bits, 4:4:4, with alpha
    Format.HEIC: 36,  # likewise
}
"""Bytes per pixel of a source, while it is decoded and scaled."""

SCALED_BYTES = 8
"""Bytes per pixel of a result, in addition to its source, while it is scaled: RGBA, twice."""

RESULT_BYTES: dict[Format, int] = {
    Format.JPEG: 28,
    Format.PNG: 26,
    Format.WEBP: 56,  # incompressible, with alpha
    Format.AVIF: 52,
}
"""Bytes per pixel of a result, while it is encoded."""

KEPT_BYTES = 6
"""Bytes per pixel of a decoded source that is kept for the next result, while one is made: RGBA
and a palette's indices, or a JPEG at every fraction of its size."""

COPIES = 3
"""Copies of the source file: as received, without metadata, and joined for the decoder."""

FIXED = 16 * MIB
"""Bytes for a transform of one pixel: tables and buffers, including a colour profile's."""

SOURCE_SECONDS: dict[Format, float] = {
    Format.JPEG: 0.3,
    Format.PNG: 0.1,
    Format.WEBP: 0.3,
    Format.GIF: 0.05,
    Format.AVIF: 0.5,
    Format.HEIC: 0.8,
}
"""Maximum seconds of CPU time for each megapixel of a source: four times what noise takes to decode
and scale, which is ten times what a photograph takes."""

RESULT_SECONDS: dict[Format, float] = {
    Format.JPEG: 0.1,
    Format.PNG: 0.5,
    Format.WEBP: 1.0,
    Format.AVIF: 2.5,
}
"""Maximum seconds of CPU time for each megapixel of a result, likewise."""

LEAST_SECONDS, MOST_SECONDS = 1.0, 10.0
"""Seconds of CPU time that each transform may take, and that none may exceed. A photograph of 50
megapixels in AVIF, the costliest result that the default presets allow, takes 2.5."""

RESERVE = 256 * MIB
"""Bytes of the budget that only transforms of at most so many may use: a JPEG of 20 megapixels."""

RESULT_FILE = 8
"""Bytes of a result file per pixel: more than any encoder writes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The limits of a transform.

    Attributes:
        pixels: of the source; if the decoder finds more, the estimate is not valid.
        memory: maximum bytes.
        kept: additional bytes if the decoded picture is kept for another result.
        result: maximum bytes of the result file.
        cpu: maximum seconds of CPU time.
    """

    pixels: int
    memory: int
    kept: int
    result: int
    cpu: float


def estimate(
    source: bytes, preset: Preset, output: Format | None, *, max_pixels: int, trusting: bool = True
) -> Estimate:
    """Estimate the transform of ``source`` by ``preset``; total and quick for any bytes.

    Args:
        max_pixels: of a source; a larger one is refused before it is decoded.
        trusting: whether to trust the size in the header. If not, or if the header has no size, the
            result is the maximum for a source of this format.
    """
    format_ = formats.sniff(source)
    if format_ is None:
        memory = FIXED + COPIES * len(source)
        return Estimate(max_pixels, memory, 0, len(source) + MIB, LEAST_SECONDS)
    target = output or formats.output_for(format_, animated=preset.animated)
    # The first frame of a GIF is decoded even if the file is served unchanged.
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
    return Estimate(
        pixels,
        memory,
        kept=KEPT_BYTES * pixels,
        result=len(source) + RESULT_FILE * result + MIB,
        cpu=_seconds_of_pixels(format_, target, pixels, result),
    )


def together(estimates: Sequence[Estimate]) -> int:
    """Return the bytes for several results of one source that are made one after the other."""
    most = max(estimate.memory for estimate in estimates)
    return most if len(estimates) == 1 else most + max(estimate.kept for estimate in estimates)


def budget(config: Config) -> int:
    """Return the bytes that all transforms share.

    Enough for the costliest allowed transform, and ``RESERVE`` for small ones beside it.
    """
    pixels = config.process.max_pixels
    costliest = max(
        _of_pixels(source, target, pixels, _most_of_result(preset, target, pixels))
        for preset in config.presets.values()
        for target in OUTPUTS
        for source in Format
    )
    return FIXED + COPIES * config.fetch.max_source_bytes + costliest + RESERVE


def waiting_room(config: Config) -> int:
    """Return how many bytes of sources may wait for a transform; more are refused as busy."""
    return config.fetch.workers * config.fetch.max_source_bytes


def _of_pixels(source: Format, target: Format, pixels: int, result: int) -> int:
    """The larger of two phases: the decoded source is freed before the encoder starts."""
    decoding = SOURCE_BYTES[source] * pixels + SCALED_BYTES * result
    return max(decoding, RESULT_BYTES[target] * result)


def _seconds_of_pixels(source: Format, target: Format, pixels: int, result: int) -> float:
    work = SOURCE_SECONDS[source] * pixels + RESULT_SECONDS[target] * result
    return min(LEAST_SECONDS + work / 1e6, MOST_SECONDS)


def _most_of_result(preset: Preset, target: Format, pixels: int) -> int:
    """Return the pixels of the largest result of a source with ``pixels`` pixels."""
    if preset.fit == "cover":
        return preset.width * preset.height
    height = preset.height or MAX_SIDES.get(target, pixels)
    return min(pixels, preset.width * height)


def _area(size: Size) -> int:
    return size.width * size.height


# Sizes from headers. Only the decoder knows the exact size, and it may not exceed these.

# Read on the event loop: a hostile file must not keep it busy.
_MOST_SEGMENTS = 64
_MOST_OF_HEAD = 1 << 16
_MOST_OF_GIF = 1 << 12
_MOST_SIZES = 256


def declared_size(format_: Format, source: bytes) -> Size | None:
    """Return the canvas size from the first part of the file, or None; total for any bytes."""
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
            size = containers.inspect(format_, source[:_MOST_OF_GIF]).size
            sizes = iter([size] if size else [])
        case Format.WEBP:
            sizes = _webp_sizes(source[:64])
    return max((size for size in sizes if _area(size)), key=_area, default=None)


def _spatial_extents(head: bytes) -> Iterator[Size]:
    """Yield each ``ispe`` property (ISO/IEC 23008-12, 6.5.3): of picture, tiles and alpha.

    Yields nothing for a sequence of pictures: its track has its own size. Yields nothing either for
    more sizes than any picture has.
    """
    at = -1 if b"moov" in head or head.count(b"ispe") > _MOST_SIZES else head.find(b"ispe")
    while at >= 0 and at + 16 <= len(head):
        yield Size(*struct.unpack_from(">II", head, at + 8))
        at = head.find(b"ispe", at + 4)


def _webp_sizes(head: bytes) -> Iterator[Size]:
    """Yield the canvas size, which must be in the first chunk (RFC 9649, 2.5 to 2.7)."""
    # The chunk ends with the head, regardless of the length that it declares.
    length = max(len(head) - 20, 0).to_bytes(4, "little")
    size = containers.inspect(Format.WEBP, head[:16] + length + head[20:]).size
    if size is not None:
        yield size

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
from proxy.imaging.animation.detect import may_move
from proxy.imaging.containers import gif, jpeg, png, webp
from proxy.imaging.limits import ENCODES, MAX_CANVAS, MAX_SIDES, MOST_ELSE
from proxy.model import formats
from proxy.model.animation import DEFAULT_BOUNDS, AnimationBounds
from proxy.model.formats import MOVING, OUTPUTS, SOURCES, Format
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
    Format.JSON: 512,  # numbers of Python, of a very small picture
}
"""Bytes per pixel of a result, while it is encoded."""

MOVING_SOURCE_BYTES = 40
"""Bytes per pixel of a canvas of what moves: that before a frame, that after, and the frame."""

MOVING_RESULT_BYTES: dict[Format, int] = {
    Format.GIF: 60,
    Format.WEBP: 60,
    Format.PNG: 60,
    Format.AVIF: 90,  # its encoder keeps frames of its own, with alpha
}
"""Bytes per pixel of a result that moves: the frame before, and masks of what differs. Frames go
one by one, so that their number does not count."""

KEPT_BYTES = 6
"""Bytes per pixel of a decoded source that is kept for the next result, while one is made: RGBA
and a palette's indices, or a JPEG at every fraction of its size."""

COPIES, MOVING_COPIES = 3, 5
"""Copies of the source file: as received, without metadata, and joined for the decoder. If it
moves, also the parts of the result, which is no larger, and the whole of it."""

ELSE_BYTES = 3 * MOST_ELSE
"""Bytes of a moving result in another format, which may be larger: its parts, and copies of all."""

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
    Format.JSON: 100.0,  # likewise: 0.1 s for the whole of it
}
"""Maximum seconds of CPU time for each megapixel of a result, likewise."""

STRIP_SECONDS = 0.6
"""Maximum seconds of CPU time for each megabyte of a source whose own coded pixels may be served:
four times what a GIF takes."""

COSTLIEST = Format.AVIF
"""A frame of any format takes no longer than a still of this one."""

COPY_SECONDS = 0.02
"""Maximum seconds of CPU time for each megapixel of all frames that are copied as they are."""

LEAST_SECONDS, MOST_SECONDS = 1.0, 10.0
"""Seconds of CPU time that each transform may take, and that none may exceed: so many for its
steps, and as many for attempts to be no larger than the source. A photograph of 50
megapixels in AVIF, the costliest result that the default presets allow, takes 2.5."""

POSTER_MEMORY, POSTER_RESULT, POSTER_SECONDS = 512 * MIB, 32 * MIB, 30.0
"""Bytes and CPU time for the poster of a video: 17 reference frames of 4K are 210 MB, the frame as
RGB and as a PNG 25 MB each; its result has the pixels of a frame at most."""

RESERVE = 256 * MIB
"""Bytes of the budget that only transforms of at most so many may use: a JPEG of 20 megapixels."""

SERVICE = 160 * MIB
"""Bytes of the service itself under load: Python, its libraries, connections."""

WORKER = 192 * MIB
"""Bytes of a worker between two jobs: Python, the codecs, and remains of earlier jobs."""

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
    source: bytes,
    preset: Preset,
    output: Format | None,
    *,
    max_pixels: int,
    trusting: bool = True,
    animation: AnimationBounds = DEFAULT_BOUNDS,
) -> Estimate:
    """Estimate the transform of ``source`` by ``preset``; total and quick for any bytes.

    Args:
        max_pixels: of a source; a larger one is refused before it is decoded.
        trusting: whether to trust the size in the header. If not, or if the header has no size, the
            result is the maximum for a source of this format.
        animation: the bounds of a moving result.
    """
    format_ = formats.sniff(source)
    if format_ is None:
        memory = FIXED + COPIES * len(source)
        return Estimate(max_pixels, memory, 0, len(source) + MIB, LEAST_SECONDS)
    target = output or formats.output_for(format_)
    size = declared_size(format_, source) if trusting else None
    result = _most_of_result(preset, target, max_pixels)
    if size is None or _area(size) > max_pixels:
        pixels = max_pixels
    else:
        pixels = _area(size)
        turned = Size(size.height, size.width)
        result = min(result, max(_area(place(preset, canvas).size) for canvas in (size, turned)))
    memory = COPIES * len(source) + _of_pixels(format_, target, pixels, result)
    if target is Format.PNG and output is None and preset.png != "keep":
        memory = max(
            memory, COPIES * len(source) + _of_pixels(format_, Format.JPEG, pixels, result)
        )
    cpu = _seconds(len(source), _seconds_of_pixels(format_, target, pixels, result))
    if target is format_:
        cpu += _seconds_again(target, result)
    moving = formats.moving_output(format_, output) if preset.animated else None
    most = len(source) + RESULT_FILE * result + MIB
    if moving is not None and may_move(format_, source):
        files = MOVING_COPIES * len(source)
        if moving is not format_:
            files += ELSE_BYTES
            most = max(most, MOST_ELSE)
        memory = max(memory, files + _of_canvases(moving, pixels, result))
        # If the moving result is not ready in time, the first frame is made as a still.
        a_frame = _seconds_of_pixels(format_, COSTLIEST, pixels, result)
        cpu += _moving_seconds(animation) + _seconds(len(source), a_frame)
    return Estimate(
        pixels,
        FIXED + memory,
        kept=KEPT_BYTES * pixels,
        result=most,
        cpu=cpu,
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
        for source in SOURCES
    )
    moving = max(
        (
            _of_canvases(target, pixels, _most_of_result(preset, target, pixels))
            for preset in config.presets.values()
            for target in MOVING
            if preset.animated
        ),
        default=0,
    )
    source = config.fetch.max_source_bytes
    files = MOVING_COPIES * source + ELSE_BYTES
    return FIXED + max(COPIES * source + costliest, files + moving) + RESERVE


def budget_within(config: Config, workers: int, available: int) -> int:
    """Return the bytes that all transforms share, where there is less memory than ``budget``.

    What is left when each process of the service does little; but at least the reserve, and as
    much again for one transform that needs more.

    Args:
        workers: image workers of each process.
        available: bytes that all processes of the service may use together.
    """
    left = available // config.server.workers - at_rest(config, workers)
    return min(budget(config), max(left, 2 * RESERVE))


def at_rest(config: Config, workers: int) -> int:
    """Return the bytes of one process of the service and its image workers while it does little."""
    return SERVICE + int(config.cache.memory_mb * MIB) + workers * WORKER


def most_seconds(config: Config) -> float:
    """Return the largest CPU time of an estimate."""
    return _moving_seconds(config.animation) + 3 * MOST_SECONDS


def waiting_room(config: Config) -> int:
    """Return how many bytes of sources may wait for a transform; more are refused as busy."""
    return config.fetch.workers * config.fetch.max_source_bytes


def _of_pixels(source: Format, target: Format, pixels: int, result: int) -> int:
    """The larger of two phases: the decoded source is freed before the encoder starts."""
    decoding = SOURCE_BYTES[source] * pixels + SCALED_BYTES * result
    return max(decoding, RESULT_BYTES[target] * result)


def _of_canvases(target: Format, pixels: int, result: int) -> int:
    pixels, result = min(pixels, MAX_CANVAS), min(result, MAX_CANVAS)
    return MOVING_SOURCE_BYTES * pixels + MOVING_RESULT_BYTES[target] * result


def _moving_seconds(animation: AnimationBounds) -> float:
    """Return the CPU time of a moving result until it is given up, but for its last frame.

    The time is looked at between frames; that of copying the frames as they are is not.
    """
    return animation.max_seconds + COPY_SECONDS * animation.max_megapixels


def _seconds_of_pixels(source: Format, target: Format, pixels: int, result: int) -> float:
    return (SOURCE_SECONDS[source] * pixels + RESULT_SECONDS[target] * result) / 1e6


def _seconds_again(target: Format, result: int) -> float:
    """Return the CPU time of all attempts to be no larger than a source of the same format."""
    return min(ENCODES * RESULT_SECONDS[target] * result / 1e6, MOST_SECONDS)


def _seconds(length: int, of_pixels: float) -> float:
    return min(LEAST_SECONDS + STRIP_SECONDS * length / 1e6 + of_pixels, MOST_SECONDS)


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
            segments = islice(jpeg.segments(source, 2), _MOST_SEGMENTS)
            sizes = (
                Size(*struct.unpack_from(">HH", segment.body, 1)[::-1])
                for segment in segments
                if segment.marker in jpeg.SOF and len(segment.body) >= 6
            )
        case Format.AVIF | Format.HEIC:
            sizes = _spatial_extents(source[:_MOST_OF_HEAD])
        case Format.PNG:
            first = next(png.chunks(source[:64]), None)
            known = first is not None and first.kind == b"IHDR" and len(first.body) >= 8
            sizes = iter([Size(*struct.unpack_from(">II", first.body))] if first and known else [])
        case Format.GIF:
            size = gif.inspect(source[:_MOST_OF_GIF]).size
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
    size = webp.inspect(head[:16] + length + head[20:]).size
    if size is not None:
        yield size

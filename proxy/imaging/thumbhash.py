"""ThumbHash: a small picture in about 25 bytes (https://evanw.github.io/thumbhash/).

The picture is split into lightness, two differences of colours, and alpha. Of each the lowest
waves of its cosine transform are kept, in four bits each. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_SIDE = 100
"""Pixels; a larger picture takes longer, and gives the same."""


_NOISE = 2.0**-40
"""Waves below it come of rounding, each machine in its way. A decoder shows none of them."""


class Average(NamedTuple):
    """The average colour, weighted by alpha, and the average alpha; each from 0 to 1."""

    red: float
    green: float
    blue: float
    alpha: float


@dataclass(frozen=True, slots=True)
class _Channel:
    """The constant of a channel, the waves from 0 to 1, and what 1 stands for."""

    constant: float
    waves: Sequence[float]
    scale: float


def average(rgba: bytes) -> Average:
    """Return the average of pixels of four bytes each; all 0 if none can be seen."""
    alpha = rgba[3::4]
    total = sum(alpha)
    if total == 0:
        return Average(0, 0, 0, 0)
    red, green, blue = (
        sum(value * weight for value, weight in zip(rgba[band::4], alpha, strict=True))
        / (255 * total)
        for band in range(3)
    )
    return Average(red, green, blue, total / (255 * len(alpha)))


def thumbhash(width: int, height: int, rgba: bytes) -> bytes:
    """Return the hash of a picture of at most ``MAX_SIDE`` pixels each way.

    Args:
        rgba: the pixels, row by row, of four bytes each; colours are not multiplied by alpha.
    """
    mean = average(rgba)
    alpha = [value / 255 for value in rgba[3::4]]
    # On the average colour, as a decoder sees it.
    red, green, blue = (
        [
            behind * (1 - weight) + weight * value / 255
            for value, weight in zip(rgba[band::4], alpha, strict=True)
        ]
        for band, behind in enumerate(mean[:3])
    )
    light = [(r + g + b) / 3 for r, g, b in zip(red, green, blue, strict=True)]
    yellow = [(r + g) / 2 - b for r, g, b in zip(red, green, blue, strict=True)]
    reddish = [r - g for r, g in zip(red, green, strict=True)]

    has_alpha = min(alpha) < 1
    most = 5 if has_alpha else 7
    across = max(1, _round(most * width / max(width, height)))
    down = max(1, _round(most * height / max(width, height)))
    size = (width, height)
    shape = _channel(light, size, max(3, across), max(3, down))
    colors = [_channel(each, size, 3, 3) for each in (yellow, reddish)]
    opacity = [_channel(alpha, size, 5, 5)] if has_alpha else []
    y, r = colors

    is_wide = width > height
    first = (
        _round(63 * shape.constant)
        | _round(31.5 + 31.5 * y.constant) << 6
        | _round(31.5 + 31.5 * r.constant) << 12
        | _round(31 * shape.scale) << 18
        | has_alpha << 23
    )
    second = (
        (down if is_wide else across)
        | _round(63 * y.scale) << 3
        | _round(63 * r.scale) << 9
        | is_wide << 15
    )
    head = first.to_bytes(3, "little") + second.to_bytes(2, "little")
    for each in opacity:
        head += bytes([_round(15 * each.constant) | _round(15 * each.scale) << 4])
    return head + _nibbles(
        _round(15 * wave) for each in (shape, *colors, *opacity) for wave in each.waves
    )


def _channel(values: Sequence[float], size: tuple[int, int], nx: int, ny: int) -> _Channel:
    """Return the waves of a channel that lie in the triangle below ``nx`` and ``ny``."""
    width, height = size
    columns, rows = _cosines(width, nx), _cosines(height, ny)
    # Row by row first: each row is needed for every wave down.
    lines = [values[at : at + width] for at in range(0, width * height, width)]
    along = [
        [sum(v * c for v, c in zip(line, wave, strict=True)) for line in lines] for wave in columns
    ]
    found = [
        sum(v * c for v, c in zip(along[cx], rows[cy], strict=True)) / (width * height)
        for cy in range(ny)
        for cx in range(nx)
        if cx * ny < nx * (ny - cy)
    ]
    constant, *waves = found
    scale = max(map(abs, waves), default=0.0)
    if scale < _NOISE:
        return _Channel(constant, [0.0] * len(waves), 0.0)
    return _Channel(constant, [0.5 + 0.5 / scale * wave for wave in waves], scale)


def _cosines(length: int, count: int) -> list[list[float]]:
    return [
        [math.cos(math.pi / length * wave * (at + 0.5)) for at in range(length)]
        for wave in range(count)
    ]


def _nibbles(values: Iterator[int]) -> bytes:
    """Pack numbers of four bits, the low half of a byte first."""
    return bytes(low | next(values, 0) << 4 for low in values)


def _round(value: float) -> int:
    """Round half up, as the published algorithm does."""
    return math.floor(value + 0.5)

"""Tells photographs from screenshots and drawings by their pixels. Pure."""

from __future__ import annotations

from itertools import product

from PIL import Image, ImageChops

TILE = 64
"""Pixels each way of what is looked at in one place; a smaller picture is no photograph."""

_TILES = 8  # each way, spread over the picture

_PLAIN = 0.5
"""Where this share of neighbours is equal, there is no grain."""

_HARD = 48
"""Steps of 255 between neighbours at a hard edge."""

_DRAWN = 0.02
"""The share of equal neighbours times that of hard edges, from which a place looks drawn. Letters
have 0.04 and more, also scaled or out of a JPEG; photographs seldom more than 0.015."""

_MOST_DRAWN = 16
"""At most one place in so many may look drawn: a lamp before a black sky does."""


def is_photograph(image: Image.Image) -> bool:
    """Whether the picture is opaque and has the grain of a camera nearly everywhere.

    In a photograph neighbours seldom have the very same colour. In what is drawn most do, also
    beside the hard edges of letters and lines, where a JPEG would show. A plain area of a
    photograph, such as a sky, has no such edges. A page with photographs in it is none.

    Args:
        image: of mode L, LA, RGB or RGBA, at the size at which it was made.
    """
    if min(image.size) < TILE or not _is_opaque(image):
        return False
    found = [_look_at(image.crop(box)) for box in _boxes(image)]
    grained = sum(plain < _PLAIN for plain, _ in found)
    drawn = sum(plain * hard >= _DRAWN for plain, hard in found)
    return 2 * grained >= len(found) and _MOST_DRAWN * drawn <= len(found)


def _is_opaque(image: Image.Image) -> bool:
    return "A" not in image.getbands() or image.getchannel("A").getextrema() == (255, 255)


def _boxes(image: Image.Image) -> list[tuple[int, int, int, int]]:
    lefts, tops = (_starts(side) for side in image.size)
    return [(left, top, left + TILE, top + TILE) for left, top in product(lefts, tops)]


def _starts(side: int) -> list[int]:
    count = min(side // TILE, _TILES)
    return [(side - TILE) * number // max(count - 1, 1) for number in range(count)]


def _look_at(tile: Image.Image) -> tuple[float, float]:
    """Return which shares of neighbours are equal, and differ as at a hard edge."""
    equal = hard = count = 0
    colors = tile.convert("RGB")
    for across, down in ((1, 0), (0, 1)):
        here = colors.crop((0, 0, TILE - across, TILE - down))
        there = colors.crop((across, down, TILE, TILE))
        red, green, blue = ImageChops.difference(here, there).split()
        steps = ImageChops.lighter(ImageChops.lighter(red, green), blue).histogram()
        equal += steps[0]
        hard += sum(steps[_HARD:])
        count += sum(steps)
    return equal / count, hard / count

"""What differs between two frames. Pure."""

from __future__ import annotations

from functools import reduce

from PIL import Image, ImageChops

Region = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""


def changed(before: Image.Image, after: Image.Image) -> Image.Image:
    """Return a mask (L) that is 255 where two pictures of one mode and size differ."""
    bands = ImageChops.difference(before, after).split()
    return reduce(ImageChops.lighter, bands).point([0, *[255] * 255])


def union(first: Region | None, second: Region | None) -> Region | None:
    """Return the smallest region around both; None is an empty one."""
    if first is None or second is None:
        return first or second
    return (*map(min, first[:2], second[:2]), *map(max, first[2:], second[2:]))  # type: ignore[return-value]


def share(mask: Image.Image) -> float:
    """Return the share of a mask that is 255."""
    return mask.histogram()[255] / (mask.width * mask.height)

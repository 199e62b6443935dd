"""Converts colours to sRGB. Pure."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from itertools import product

from PIL import Image, ImageChops, ImageCms

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}

DISPLAY_GAMMA = 2.2
"""The display gamma that PNG's gAMA is relative to, as in browsers and libpng."""

_GAMMA_RANGE = (0.1, 5.0)  # other values are mistakes of the writer
_GAMMA_TOLERANCE = 0.05  # libpng's threshold: a smaller difference is not visible


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert ``image`` (L, LA, RGB, RGBA or CMYK) from ``profile``; CMYK becomes RGB in any case.

    A profile that is corrupt, or made for another number of components, is ignored. The picture is
    then treated as sRGB, as in browsers.
    """
    color = {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
    transform = _transform(profile, color) if profile else None
    if transform is None:
        return image.convert("RGB") if color == "CMYK" else image
    if color == image.mode:
        return _apply(transform, image)
    converted = _apply(transform, image.convert(color))
    converted.putalpha(image.getchannel("A"))
    return converted


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = transform.apply(image)
    # A grey picture stays grey: its three bands are equal, and one band is a third of the work.
    return converted.convert("L") if image.mode == "L" else converted


@lru_cache(maxsize=8)  # most pictures use one of a few profiles
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB, or None if there is none or it would change nothing."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if _SPACES.get(source.profile.xcolor_space) != mode:
            return None
        # As in printing and in most viewers, so that black stays black.
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return transform if _changes_anything(transform, mode) else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_anything(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a grid of colours changes by more than 1 of 255; if not, the profile is sRGB."""
    if mode == "CMYK":
        return True
    probe = _probe(mode)
    moved = ImageChops.difference(transform.apply(probe), probe.convert("RGB"))
    return any(any(band.histogram()[2:]) for band in moved.split())


def _probe(mode: str) -> Image.Image:
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    steps = range(0, 256, 17)
    grid = bytes(value for color in product(steps, steps, steps) for value in color)
    return Image.frombytes("RGB", (len(steps) ** 3, 1), grid)


def from_gamma(image: Image.Image, gamma: float | None) -> Image.Image:
    """Convert a PNG's samples (L, LA, RGB or RGBA) from its file gamma to the display gamma.

    Browsers apply gAMA if there is no profile and no sRGB chunk. cHRM without a profile is ignored,
    because the writers that add it write the primaries of sRGB.
    """
    if gamma is None or not _GAMMA_RANGE[0] <= gamma <= _GAMMA_RANGE[1]:
        return image
    exponent = 1 / (gamma * DISPLAY_GAMMA)
    if abs(exponent - 1) <= _GAMMA_TOLERANCE:
        return image
    curve = [round(255 * (value / 255) ** exponent) for value in range(256)]
    bands = image.getbands()
    table = [entry for band in bands for entry in (range(256) if band == "A" else curve)]
    return image.point(table)

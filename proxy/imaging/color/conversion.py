"""Converts pictures to sRGB. Pure."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from itertools import product
from typing import NamedTuple

from PIL import Image, ImageChops, ImageCms

from proxy.errors import UndecodableImage
from proxy.imaging.color import profiles
from proxy.imaging.decoder_errors import decoding

_MODES = {"GRAY": ("L",), "RGB ": ("RGB", "L"), "CMYK": ("CMYK",)}
"""What a profile of each colour space is applied to, as in browsers: RGB also to grey."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert ``image`` (1, P, L, LA, RGB, RGBA or CMYK) from ``profile``; CMYK becomes RGB anyway.

    Every other mode stays: of a palette only the colours change, and grey remains grey. Black and
    white are the same in every profile.

    A profile that is corrupt, or made for another number of components, is ignored. The picture is
    then treated as sRGB, as in browsers.
    """
    color = {"P": "RGB", "LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
    conversion = _conversion(profile, color) if profile and color != "1" else None
    if conversion is None:
        return image.convert("RGB") if color == "CMYK" else image
    match image.mode:
        case "P":
            return _with_palette(image, conversion)
        case "L" | "LA":
            return image.point(conversion.greys + list(range(256)) * (image.mode == "LA"))
        case "RGBA":
            converted = conversion.apply(image.convert("RGB"))
            converted.putalpha(image.getchannel("A"))
            return converted
        case _:
            return conversion.apply(image)


class _Conversion(NamedTuple):
    """The transforms to sRGB, one after another.

    Attributes:
        greys: for grey, the result for each of the 256 samples; else empty.
    """

    steps: list[ImageCms.ImageCmsTransform]
    greys: list[int]

    def apply(self, image: Image.Image) -> Image.Image:
        for step in self.steps:
            image = step.apply(image)
        return image


def _with_palette(image: Image.Image, conversion: _Conversion) -> Image.Image:
    colors = bytes(image.getpalette("RGB") or ())
    if not colors:
        return image
    row = Image.frombytes("RGB", (len(colors) // 3, 1), colors)
    converted = image.copy()
    converted.putpalette(conversion.apply(row).tobytes(), "RGB")
    return converted


@lru_cache(maxsize=8)  # most pictures use one of a few profiles
def _conversion(profile: bytes, mode: str) -> _Conversion | None:
    """Return the way to sRGB, or None if there is none or it would change nothing."""
    named = profiles.code_points_of(profile)
    if named is not None:
        own = profiles.of_code_points(*named)
        return None if own is None else _conversion(own, mode)
    try:
        with decoding():
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            space = source.profile.xcolor_space
            if mode not in _MODES.get(space, ()):
                return None
            samples = mode if space != "RGB " else "RGB"
            srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            if space == "RGB " and not source.profile.is_matrix_shaper:
                # lcms reduces a table and all that follows it to one coarse table. The edge of
                # sRGB's gamut must not be in it, because all colours near it would be wrong.
                wide = ImageCms.ImageCmsProfile(BytesIO(profiles.wide()))
                is_space = source.profile.device_class == "spac"
                flags = ImageCms.Flags.NOWHITEONWHITEFIXUP if is_space else ImageCms.Flags.NONE
                steps = [_transform(source, wide, "RGB", flags), _transform(wide, srgb, "RGB")]
            else:
                steps = [_transform(source, srgb, samples)]
            conversion = _Conversion(steps, [])
            if mode == "L":
                grey = conversion.apply(_probe("L").convert(samples)).convert("L")
                conversion = _Conversion([], list(grey.tobytes()))
            return conversion if _changes_anything(conversion, mode) else None
    except UndecodableImage:
        return None


def _transform(
    source: ImageCms.ImageCmsProfile,
    target: ImageCms.ImageCmsProfile,
    mode: str,
    flags: ImageCms.Flags = ImageCms.Flags.NONE,
) -> ImageCms.ImageCmsTransform:
    # As in printing and in most viewers, so that black stays black.
    return ImageCms.buildTransform(
        source,
        target,
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION | flags,
    )


def _changes_anything(conversion: _Conversion, mode: str) -> bool:
    """Whether a grid of colours changes by more than 1 of 255; if not, the profile is sRGB."""
    if mode == "CMYK":
        return True
    if mode == "L":
        return any(abs(grey - value) > 1 for value, grey in enumerate(conversion.greys))
    probe = _probe(mode)
    moved = ImageChops.difference(conversion.apply(probe), probe)
    return any(any(band.histogram()[2:]) for band in moved.split())


def _probe(mode: str) -> Image.Image:
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    steps = range(0, 256, 17)
    grid = bytes(value for color in product(steps, steps, steps) for value in color)
    return Image.frombytes("RGB", (len(steps) ** 3, 1), grid)

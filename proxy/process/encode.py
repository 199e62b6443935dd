"""Results to bytes. Raise ``presets.ENCODER_REVISION`` with any change of a setting here."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image

from proxy.formats import Format

# Beyond these sides, in pixels, the format or its encoder gives up.
MAX_SIDES = {Format.JPEG: 65_500, Format.WEBP: 16_383, Format.AVIF: 32_768}

# libwebp's own default; 6 took up to half as long again for a picture that looks the same.
_WEBP_METHOD = 4

# Of 0 (slowest) to 10: a result is made while somebody waits, and at 6 the wait is twice as long.
_AVIF_SPEED = 8

# libavif's scale lies lower than JPEG's: its 60 shows what a JPEG's 80 does, in half the bytes.
_AVIF_QUALITY_OFFSET = -20

# Of zlib-ng's levels the last before time doubles; 6 saves less than a tenth of the bytes.
_PNG_LEVEL = 4


def encode(image: Image.Image, format_: Format, quality: int, *, flat: bool) -> bytes:
    """Encode an upright sRGB picture; nothing but its pixels is written.

    Args:
        image: of mode L, LA, RGB, RGBA, and for PNG also 1, P and I;16.
        quality: 1 to 100, for the lossy formats.
        flat: few colours and hard edges, where coarser chroma would show.
    """
    clean = _without_info(image, keep_transparency=format_ is Format.PNG)
    options: dict[str, Any]
    match format_:
        case Format.JPEG:
            clean = _on_white(clean)
            # Optimised Huffman tables save a tenth of the bytes for a few percent of the whole
            # time; progressive scans would double the encoder's and save little more.
            subsampling = "4:4:4" if flat else "4:2:0"
            options = {"quality": quality, "subsampling": subsampling, "optimize": True}
        case Format.PNG:
            options = {"compress_level": _PNG_LEVEL}
        case Format.WEBP:
            clean = _rgb(clean)
            options = {"quality": quality, "method": _WEBP_METHOD}
        case Format.AVIF:
            # One thread: the pool already keeps every core busy.
            level = max(quality + _AVIF_QUALITY_OFFSET, 1)
            options = {"quality": level, "speed": _AVIF_SPEED, "max_threads": 1}
        case _:
            raise ValueError(f"{format_} is never encoded")
    try:
        return _save(clean, format_, options)
    except OSError:
        if "optimize" not in options:
            raise
        # Pillow buffers an optimised JPEG in a byte or two per pixel: noise can need more.
        return _save(clean, format_, options | {"optimize": False})


def _save(image: Image.Image, format_: Format, options: dict[str, Any]) -> bytes:
    out = BytesIO()
    image.save(out, format_.name, **options)
    return out.getvalue()


def _without_info(image: Image.Image, *, keep_transparency: bool) -> Image.Image:
    """A picture whose ``info`` no encoder can find a comment, profile or resolution in."""
    clean = image.copy()
    key = image.info.get("transparency") if keep_transparency and image.mode == "P" else None
    clean.info = {} if key is None else {"transparency": key}
    return clean


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands():
        return image
    mode = "L" if image.mode == "LA" else "RGB"
    page = Image.new(mode, image.size, "white")
    page.paste(image.convert(mode), mask=image.getchannel("A"))
    return page


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGBA" if "A" in image.getbands() else "RGB")

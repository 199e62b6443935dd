"""Encodes results. If a setting here changes, raise ``presets.ENCODER_REVISION``. Pure."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image, ImageFile

from proxy.model.formats import Format

# The longest sides, in pixels, that the format and its encoder support.
MAX_SIDES = {Format.JPEG: 65_500, Format.WEBP: 16_383, Format.AVIF: 32_768}

# The divisors of the coefficients at quality 50. Luma is the geometric mean of Annex K of
# ITU-T T.81 and a table that rises steadily with frequency (by N. Robidoux): the same SSIM and PSNR
# as Annex K with a few percent fewer bytes. Chroma is from Annex K.
_LUMA = (
    16, 13, 13, 17, 24, 38, 53, 72, 14, 14, 17, 23, 30, 48, 56, 64,
    15, 16, 20, 27, 42, 59, 79, 87, 16, 21, 26, 34, 52, 80, 92, 98,
    21, 27, 40, 54, 68, 101, 116, 121, 30, 37, 58, 69, 87, 114, 138, 148,
    52, 58, 84, 96, 116, 143, 165, 177, 78, 83, 113, 124, 146, 154, 179, 203,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip

# Optimised Huffman tables save 3 to 4 percent of the bytes, and double the encoder's time, which
# is a quarter of the total for large results. The saved bytes are used for a finer luma table.
_OPTIMIZED_PIXELS = 500_000
_FINER_OPTIMIZED, _FINER = 0.86, 0.9

# The default of libwebp; 6 takes nearly twice as long for a picture that looks the same.
_WEBP_METHOD = 4

# From 0 (slowest) to 10. A client waits for the result, and at 6 the wait is three times as long.
_AVIF_SPEED = 8

# The scale of libavif is lower than JPEG's: its 60 looks like a JPEG's 80, with half the bytes.
_AVIF_QUALITY_OFFSET = -20

# The highest level of zlib-ng before the time doubles; 6 saves less than a tenth of the bytes.
_PNG_LEVEL = 4


def encode(image: Image.Image, format_: Format, quality: int, *, flat: bool) -> bytes:
    """Encode an upright sRGB picture; only its pixels are written.

    Args:
        image: of mode L, LA, RGB, RGBA, and for PNG also 1, P and I;16.
        quality: 1 to 100, for the lossy formats.
        flat: whether it has few colours and hard edges, where coarse chroma would be visible.
    """
    clean = _without_info(image, keep_transparency=format_ is Format.PNG)
    options: dict[str, Any]
    match format_:
        case Format.JPEG:
            clean = _on_white(clean)
            if flat:
                options = {"quality": quality, "subsampling": "4:4:4", "optimize": True}
            else:
                small = clean.width * clean.height <= _OPTIMIZED_PIXELS
                luma = _scaled(_LUMA, quality, _FINER_OPTIMIZED if small else _FINER)
                tables = [luma, _scaled(_CHROMA, quality)]
                options = {"qtables": tables, "subsampling": "4:2:0", "optimize": small}
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
        if not options.get("optimize"):
            raise
        # Pillow's buffer for an optimised JPEG has one or two bytes per pixel; noise can need more.
        return _save(clean, format_, options | {"optimize": False})


def _scaled(table: tuple[int, ...], quality: int, factor: float = 1) -> list[int]:
    """Return a quantisation table for ``quality``, scaled as in libjpeg."""
    percent = (5000 / quality if quality < 50 else 200 - 2 * quality) * factor
    return [min(max(round(step * percent / 100), 1), 255) for step in table]


def _save(image: Image.Image, format_: Format, options: dict[str, Any]) -> bytes:
    out = BytesIO()
    image.save(out, format_.name, **options)
    return out.getvalue()


def _without_info(image: Image.Image, *, keep_transparency: bool) -> Image.Image:
    """Remove ``info``, so that no encoder writes a comment, profile or resolution from it."""
    # Saving an ImageFile looks for the folder of its file, which a sandbox cannot do.
    if not image.info and not isinstance(image, ImageFile.ImageFile):
        return image
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

"""Encodes results. If a setting changes, raise its revision in ``model.presets``. Pure."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image, ImageFile

from proxy.imaging import palettes, png_rows
from proxy.imaging.encoder_errors import encoding
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_WEBP_EFFORT

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

# SSIMULACRA2 weighs chroma more than SSIM does: a finer table for it costs fewer bytes than a finer
# one for luma that would please it as much.
_FINER_CHROMA = 0.75

# Optimised Huffman tables double the encoder's time. They save 3 to 4 percent of the bytes of a
# large result, and more of a small one, whose tables are a part of it.
_OPTIMIZED_PIXELS = 100_000

# From 0 (slowest) to 10. A client waits for the result, and at 6 the wait is three times as long.
_AVIF_SPEED = 8

# The scale of libavif is lower than JPEG's: its 60 looks like a JPEG's 80, with half the bytes.
_AVIF_QUALITY_OFFSET = -20

# Of libdeflate: 1 takes as long for a tenth more bytes of a drawing, 5 a quarter longer for 4
# percent fewer.
_PNG_LEVEL = 2


def encode(
    image: Image.Image,
    format_: Format,
    quality: int,
    *,
    flat: bool,
    had_palette: bool = False,
    webp_effort: int = DEFAULT_WEBP_EFFORT,
) -> bytes:
    """Encode an upright sRGB picture; only its pixels are written.

    Args:
        image: of mode L, LA, RGB, RGBA, and for PNG also 1, P and I;16.
        quality: 1 to 100, for the lossy formats.
        flat: whether it has few colours and hard edges, where coarse chroma would be visible.
        had_palette: whether the source had a palette, or was black and white: then so may a PNG.
        webp_effort: 0 to 6, libwebp's method.
    """
    clean = prepared(image, format_)
    options: dict[str, Any]
    match format_:
        case Format.JPEG:
            if flat:
                options = {"quality": quality, "subsampling": "4:4:4", "optimize": True}
            else:
                small = clean.width * clean.height <= _OPTIMIZED_PIXELS
                tables = [_scaled(_LUMA, quality), _scaled(_CHROMA, quality, _FINER_CHROMA)]
                options = {"qtables": tables, "subsampling": "4:2:0", "optimize": small}
        case Format.PNG:
            return _png(clean, had_palette=had_palette)
        case Format.WEBP:
            level = quality if flat else _webp_quality(quality)
            options = {"quality": level, "method": webp_effort}
        case Format.AVIF:
            # One thread: the pool already keeps every core busy.
            options = {"quality": avif_level(quality), "speed": _AVIF_SPEED, "max_threads": 1}
            if flat:
                options["subsampling"] = "4:4:4"
        case _:
            raise ValueError(f"{format_} is never encoded")
    return save(clean, format_, options)


def prepared(image: Image.Image, format_: Format) -> Image.Image:
    """Return the picture as the encoder of ``format_`` takes it, without anything but pixels."""
    clean = _without_info(image, keep_transparency=format_ is Format.PNG)
    match format_:
        case Format.JPEG:
            return _on_white(clean)
        case Format.WEBP:
            return _rgb(clean)
        case _:
            return clean


def save(image: Image.Image, format_: Format, options: dict[str, Any]) -> bytes:
    """Write a file of what ``prepared`` returned, by Pillow's encoder with its options.

    Raises:
        ImageTooLarge: there is not enough memory for it.
    """
    with encoding():
        try:
            return _written(image, format_, options)
        except OSError:
            if not options.get("optimize"):
                raise
            # Pillow's buffer for an optimised JPEG has one or two bytes per pixel; noise can need
            # more.
            return _written(image, format_, options | {"optimize": False})


def _png(image: Image.Image, *, had_palette: bool) -> bytes:
    image = palettes.without_color(palettes.without_spare_entries(image))
    form = palettes.with_palette(image, had_palette=had_palette) or image
    with encoding():
        if form.mode not in png_rows.MODES:
            return png_rows.packed(_written(form, Format.PNG, {"compress_level": 0}), _PNG_LEVEL)
        filtered = png_rows.gains_by_filters(form)
        return png_rows.file_of(form, _PNG_LEVEL, filtered=filtered)


def _webp_quality(quality: int) -> float:
    """Spend the bytes that the softer kernel of photographs saves."""
    return quality + (100 - quality) / 25


def avif_level(quality: int) -> int:
    """Return what libavif calls the quality of a preset."""
    return max(quality + _AVIF_QUALITY_OFFSET, 1)


def _scaled(table: tuple[int, ...], quality: int, factor: float = 1) -> list[int]:
    """Return a quantisation table for ``quality``, scaled as in libjpeg."""
    percent = (5000 / quality if quality < 50 else 200 - 2 * quality) * factor
    return [min(max(round(step * percent / 100), 1), 255) for step in table]


def _written(image: Image.Image, format_: Format, options: dict[str, Any]) -> bytes:
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

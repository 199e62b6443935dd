"""Reduces the colours of a frame. Pure."""

from __future__ import annotations

from PIL import Image

_SAMPLES = 1 << 14
"""Pixels of a frame that its palette is made of."""


def quantized(image: Image.Image, where: Image.Image, colors: int) -> Image.Image:
    """Return ``image`` (RGB) with a palette made for the pixels at which the mask is 255.

    It is exact if those have few colours. No dithering: it would flicker, and costs bytes.
    """
    seen = Image.new("RGB", image.size)
    seen.paste(image, mask=where)
    if seen.getcolors(colors) is not None:
        return seen.quantize(colors, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    # The palette of a sample is as good, and takes a tenth of the time.
    shrink = max(int((image.width * image.height / _SAMPLES) ** 0.5), 1)
    sides = (-(-image.width // shrink), -(-image.height // shrink))
    palette = seen.resize(sides, Image.Resampling.NEAREST).quantize(
        colors, Image.Quantize.MEDIANCUT
    )
    return seen.quantize(palette=palette, dither=Image.Dither.NONE)

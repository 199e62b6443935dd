"""What is told of a decoded picture. Pure."""

from __future__ import annotations

import base64

from PIL import Image

from proxy.imaging.thumbhash import average, thumbhash


def is_see_through(image: Image.Image) -> bool:
    """Whether any pixel of a picture in L, LA, RGB, RGBA or CMYK is not opaque."""
    if image.mode not in ("LA", "RGBA"):
        return False
    # Of several bands Pillow gives a pair for each.
    least, _ = image.getextrema()[-1]  # type: ignore[misc]
    return bool(least < 255)


def placeholder_of(small: Image.Image) -> tuple[str, str]:
    """Return the hash in Base64, and the average colour, of a small upright picture in sRGB."""
    rgba = small.convert("RGBA").tobytes()
    color = "".join(f"{int(255 * value + 0.5):02x}" for value in average(rgba)[:3])
    return base64.b64encode(thumbhash(*small.size, rgba)).decode(), f"#{color}"

"""What a result should look like, made by libvips, and how near another picture comes.

Everything here avoids the code under test and Pillow's resampling; geometry is computed afresh.
"""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from proxy.model.presets import Preset
from tests.imaging.sources import Pixels

Plane = NDArray[np.float64]


def size_of(preset: Preset, width: int, height: int) -> tuple[int, int]:
    """The size of the result of an upright source."""
    if preset.fit == "cover":
        return preset.width, preset.height
    scale = min(Fraction(preset.width, width), Fraction(1))
    if preset.height:
        scale = min(scale, Fraction(preset.height, height))
    half = Fraction(1, 2)
    return max(int(width * scale + half), 1), max(int(height * scale + half), 1)


def load(data: bytes) -> pyvips.Image:
    """A file, decoded and turned upright; the first frame of an animation."""
    image = pyvips.Image.new_from_buffer(data, "", access="random")
    return image.autorot().copy_memory()


def to_srgb(image: pyvips.Image) -> pyvips.Image:
    """8 bit sRGB by the embedded profile, which is relative colorimetric with black kept black."""
    if image.get_typeof("icc-profile-data"):
        return image.icc_transform(
            "srgb", embedded=True, intent="relative", black_point_compensation=True
        )
    if image.interpretation == "cmyk":
        inks = 255 - image
        return (inks[0:3] * inks[3] / 255).rint().cast("uchar").copy(interpretation="srgb")
    return image.colourspace("srgb")


def expected(source: bytes | pyvips.Image, preset: Preset, *, kernel: str = "lanczos3") -> Pixels:
    """The result as libvips makes it: RGB, or RGBA where the source has alpha."""
    image = load(source) if isinstance(source, bytes) else source
    image = to_srgb(image)
    width, height = size_of(preset, image.width, image.height)
    if preset.fit == "cover":
        scale = max(Fraction(width, image.width), Fraction(height, image.height))
        across = min(max(round(width / scale), 1), image.width)
        down = min(max(round(height / scale), 1), image.height)
        left, top = (image.width - across) // 2, (image.height - down) // 2
        image = image.extract_area(left, top, across, down)
    if (image.width, image.height) != (width, height):
        translucent = image.hasalpha()
        if translucent:
            image = image.premultiply()
        image = image.resize(width / image.width, vscale=height / image.height, kernel=kernel)
        if translucent:
            image = image.unpremultiply()
    if image.bands < 3:
        image = image[0].bandjoin([image[0], image[0], *image[1:].bandsplit()])
    pixels: Pixels = image.rint().cast("uchar").numpy()
    assert pixels.shape[:2] == (height, width)
    return pixels


def decode(data: bytes) -> Pixels:
    """A result, as an array of RGB or RGBA."""
    with Image.open(BytesIO(data)) as image:
        translucent = "A" in image.mode or "transparency" in image.info
        return np.asarray(image.convert("RGBA" if translucent else "RGB"))


def on_white(pixels: Pixels) -> Plane:
    """RGB as floats, whatever is transparent on white."""
    values = pixels.astype(np.float64)
    if pixels.shape[2] == 3:
        return values
    opacity = values[..., 3:] / 255
    return values[..., :3] * opacity + 255 * (1 - opacity)


def ssim(one: Pixels, other: Pixels) -> float:
    """Structural similarity (Wang et al. 2004) of the lumas, uniform windows of 7 x 7."""
    a, b = (on_white(pixels) @ np.array([0.299, 0.587, 0.114]) for pixels in (one, other))
    mean_a, mean_b = _windows(a), _windows(b)
    var_a, var_b = _windows(a * a) - mean_a**2, _windows(b * b) - mean_b**2
    covariance = _windows(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float((top / bottom).mean())


def _windows(plane: Plane, side: int = 7) -> Plane:
    sums = np.pad(plane, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    areas: Plane = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side]
    means: Plane = (areas + sums[:-side, :-side]) / side**2
    return means


def color_error(one: Pixels, other: Pixels) -> float:
    """Mean absolute difference of the samples, on white, in steps of 255."""
    return float(np.abs(on_white(one) - on_white(other)).mean())


def assert_alike(data: bytes, wanted: Pixels, *, error: float = 3.0) -> None:
    """Same size, SSIM of at least 0.97 where there is room for a window, and the same colours."""
    got = decode(data)
    assert got.shape[:2] == wanted.shape[:2]
    assert color_error(got, wanted) <= error
    if min(got.shape[:2]) >= 16:
        assert ssim(got, wanted) >= 0.97

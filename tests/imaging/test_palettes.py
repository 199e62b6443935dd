"""PNGs of few colours: as small as a palette makes them, and how far off that may be."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from proxy.imaging import color_numbers, palettes
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.reference import color_error, decode, ssim

HALF = Preset(width=320, fit="contain", quality=80)
SAME = Preset(width=640, fit="contain", quality=80)


def rendered(source: bytes, preset: Preset, output: Format | None = Format.PNG) -> bytes:
    return render(source, preset, output, max_pixels=10**7).data


def depth_and_color(data: bytes) -> tuple[int, int]:
    """The bits of a sample, and the colour type (PNG, 11.2.2)."""
    return data[24], data[25]


def drawing() -> Image.Image:
    """Circles of 250 colours: a palette is full, and scaling makes new colours."""
    y, x = np.mgrid[0:480, 0:640]
    rings = (np.hypot(x - 320, y - 240) / 3).astype(int) % 250
    random = np.random.default_rng(4)
    palette = random.integers(0, 256, (250, 3), dtype=np.uint8)
    return Image.fromarray(palette[rings]).quantize(256)


def text() -> Image.Image:
    """Black on white, in one bit."""
    random = np.random.default_rng(5)
    strokes = np.kron(random.integers(0, 5, (60, 80)) > 0, np.ones((8, 8), bool))
    return Image.fromarray((255 * strokes).astype(np.uint8)).convert("1")


def test_a_scaled_palette_stays_one_where_that_is_smaller() -> None:
    """Catches a drawing that becomes ten times as large in true colour."""
    source = sources.encoded(Image.fromarray(sources.pixel_art(640, 480)).quantize(6), "PNG")
    result = rendered(source, HALF.model_copy(update={"width": 333}))
    assert depth_and_color(result) == (8, 3)
    true = sources.encoded(Image.open(BytesIO(result)).convert("RGB"), "PNG", compress_level=4)
    assert len(result) < len(true) / 1.5


def test_a_palette_is_no_further_off_than_stated() -> None:
    """Catches a palette that is chosen for its size alone."""
    plain = Image.fromarray(sources.pixel_art(640, 480))
    for width in (320, 333, 500):
        preset = HALF.model_copy(update={"width": width})
        wanted = decode(rendered(sources.encoded(plain, "PNG"), preset))
        shown = decode(rendered(sources.encoded(plain.quantize(6), "PNG"), preset))
        assert color_error(shown, wanted) <= palettes.MEAN_ERROR
        assert ssim(shown, wanted) >= 0.99


def test_a_photograph_of_256_colours_is_not_made_of_worse_ones() -> None:
    """Catches a second palette on top of the first one's noise: bands in a sky."""
    photo = Image.fromarray(sources.photo(640, 480)).quantize(256)
    source = sources.encoded(photo, "PNG")
    wanted = decode(rendered(sources.encoded(photo.convert("RGB"), "PNG"), HALF))
    shown = decode(rendered(source, HALF))
    assert color_error(shown, wanted) <= palettes.MEAN_ERROR


def test_black_and_white_becomes_a_few_greys() -> None:
    """Catches a scanned page in eight bits, or in three bands."""
    result = rendered(sources.encoded(text(), "PNG"), HALF.model_copy(update={"width": 250}))
    assert depth_and_color(result) == (4, 3)
    wanted = decode(
        rendered(
            sources.encoded(text().convert("L"), "PNG"), HALF.model_copy(update={"width": 250})
        )
    )
    assert color_error(decode(result), wanted) <= palettes.MEAN_ERROR


@pytest.mark.parametrize(("colors", "bits"), [(2, 1), (4, 2), (16, 4), (200, 8)])
def test_few_colours_take_few_bits_without_a_loss(colors: int, bits: int) -> None:
    """Catches true colour for a drawing whose source happened to be true colour."""
    random = np.random.default_rng(6)
    palette = random.integers(0, 256, (colors, 3), dtype=np.uint8)
    squares = np.kron(random.integers(0, colors, (60, 80)), np.ones((8, 8), int))
    pixels = palette[squares]
    result = rendered(sources.png(pixels, compress_level=0), SAME)
    assert depth_and_color(result) == (bits, 3)
    assert np.array_equal(decode(result), pixels)


def test_few_colours_with_alpha_lose_nothing() -> None:
    """Catches a palette of colours whose alpha is that of their neighbours."""
    random = np.random.default_rng(7)
    palette = random.integers(0, 256, (180, 4), dtype=np.uint8)
    palette[:20, 3] = 0
    squares = np.kron(random.integers(0, 180, (60, 80)), np.ones((8, 8), int))
    result = rendered(sources.png(palette[squares], compress_level=0), SAME)
    assert depth_and_color(result) == (8, 3)
    shown, wanted = decode(result), palette[squares]
    assert np.array_equal(shown[..., 3], wanted[..., 3])
    assert np.array_equal(shown[shown[..., 3] > 0], wanted[shown[..., 3] > 0])


def test_a_scaled_palette_keeps_its_alpha() -> None:
    """Catches a palette that lost what made the picture transparent."""
    image = Image.fromarray(sources.pixel_art(640, 480)).quantize(6)
    options = {"transparency": bytes([255, 0, 128, 255, 9, 1])}
    preset = HALF.model_copy(update={"width": 333})
    shown = decode(rendered(sources.encoded(image, "PNG", **options), preset))
    with Image.open(BytesIO(sources.encoded(image, "PNG", **options))) as opened:
        true = sources.encoded(opened.convert("RGBA"), "PNG")
    wanted = decode(rendered(true, preset))
    assert shown.shape == wanted.shape
    assert color_error(shown, wanted) <= palettes.MEAN_ERROR
    assert float(np.abs(shown[..., 3].astype(int) - wanted[..., 3]).mean()) <= palettes.MEAN_ERROR


def test_grey_in_three_bands_becomes_one() -> None:
    """Catches a grey photograph that takes three times the samples."""
    grey = sources.grey(640, 480)
    result = rendered(sources.png(np.dstack([grey, grey, grey])), HALF)
    assert depth_and_color(result) == (8, 0)
    coloured = np.dstack([grey, grey, grey])
    coloured[100, 333] = (255, 0, 0)  # a single pixel
    assert np.array_equal(decode(rendered(sources.png(coloured), SAME)), coloured)


@pytest.mark.parametrize("grid", [False, True])
def test_numbers_of_colours_are_exact(grid: bool) -> None:
    """Catches two colours that share a number, and a grid of shades that gets wrong ones."""
    if grid:  # no value of a band belongs to one colour alone
        palette = np.array(list(np.ndindex(6, 6, 6)), np.uint8) * 51
    else:
        palette = np.random.default_rng(8).integers(0, 256, (256, 3), dtype=np.uint8)
    pixels = np.resize(palette, (40, 64, 3))
    numbered = color_numbers.with_numbers(Image.fromarray(pixels), 256)
    if grid:
        assert numbered is None
    else:
        assert numbered is not None
        assert np.array_equal(np.asarray(numbered.convert("RGB")), pixels)
    result = rendered(sources.png(pixels, compress_level=0), SAME)
    assert depth_and_color(result) == (8, 3)
    assert np.array_equal(decode(result), pixels)


def test_photographs_take_no_palette() -> None:
    """Catches a palette tried for every picture, and its time."""
    photo = Image.fromarray(sources.photo(640, 480))
    assert palettes.with_palette(photo, had_palette=False) is None

"""Sizes at the edges of what presets and formats allow, and pictures that are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import pyvips
from PIL import Image

from proxy.errors import ImageTooLarge
from proxy.imaging.encode import encode
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS, Preset
from tests.imaging import sources
from tests.imaging.reference import assert_alike, color_error, decode, expected, on_white, size_of

pytestmark = pytest.mark.slow

COVER = Preset(width=120, height=90, fit="cover", quality=90)
CONTAIN = Preset(width=120, height=90, fit="contain", quality=90)
BY_WIDTH = Preset(width=120, fit="contain", quality=90)
PRESETS = [COVER, CONTAIN, BY_WIDTH]


@pytest.mark.parametrize("preset", PRESETS, ids=["cover", "contain", "by_width"])
@pytest.mark.parametrize(
    "size",
    [
        (1, 1), (1, 500), (500, 1), (20_000, 1), (1, 3000), (2, 3), (7, 5), (121, 91), (119, 89),
        (120, 90), (121, 90), (120, 91), (119, 90), (120, 89), (240, 180), (241, 179), (333, 250),
        (360, 270), (961, 721), (97, 1409), (1000, 13),
    ],
    ids=lambda size: f"{size[0]}x{size[1]}",
)  # fmt: skip
@pytest.mark.parametrize("format_", ["jpeg", "png"])
def test_every_size_comes_out_as_computed_and_looks_right(
    format_: str, size: tuple[int, int], preset: Preset
) -> None:
    """Catches a side of 0, sizes off by one, a box outside the picture, too small a draft."""
    pixels = sources.photo(*size, grain=0)
    source = sources.jpeg(pixels, subsampling=0) if format_ == "jpeg" else sources.png(pixels)
    shown = decode(render(source, preset, Format.PNG, max_pixels=10**7).data)
    assert shown.shape[1::-1] == size_of(preset, *size)
    if size != (2, 3):  # the reference crops whole pixels, which are too large here
        assert color_error(shown, expected(source, preset)) <= 6


@pytest.mark.parametrize(
    ("name", "source", "result"),
    [
        ("avatar", (2000, 1500), (1000, 1000)),
        ("avatar_small", (200, 100), (360, 360)),
        ("banner", (4000, 300), (640, 300)),
        ("content_preview", (1601, 1067), (800, 533)),
        ("content_preview", (799, 4000), (799, 4000)),
        ("content_full", (1601, 1067), (1600, 1066)),
        ("embed_thumbnail", (720, 360), (720, 360)),
        ("feed_thumbnail", (1500, 3001), (500, 1000)),
        ("feed_fullsize", (2000, 2001), (1999, 2000)),
    ],
)
def test_default_presets_give_the_sizes_written_here(
    name: str, source: tuple[int, int], result: tuple[int, int]
) -> None:
    """Catches geometry that is wrong the same way in the code and in the reference."""
    blob = sources.jpeg(np.full((source[1], source[0]), 128, np.uint8), quality=50)
    shown = decode(render(blob, DEFAULT_PRESETS[name], None, max_pixels=10**8).data)
    assert shown.shape[1::-1] == result


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    """Catches a needless pass that blurs, for the whole picture and for a crop at its own scale."""
    pixels = sources.photo(120, 90)
    noted = sources.with_chunks(sources.png(pixels), [(b"tEXt", b"Comment\0hello")])
    for preset in PRESETS:
        result = render(noted, preset, None, max_pixels=10**6)
        assert np.array_equal(decode(result.data), pixels)
    odd = sources.photo(151, 90)
    cropped = decode(render(sources.png(odd), COVER, None, max_pixels=10**6).data)
    assert np.array_equal(cropped, odd[:, 15:135])


@pytest.mark.parametrize("scale", [2, 3, 4, 6, 8, 11, 16])
def test_a_jpeg_decoded_at_a_fraction_shows_the_same_region(scale: int) -> None:
    """Catches a crop box left in full-size pixels, and one that is off by the rounding."""
    pixels = sources.photo(121 * scale + 3, 61 * scale + 5, grain=0)
    source = sources.jpeg(pixels)
    for preset in PRESETS:
        shown = render(source, preset, Format.PNG, max_pixels=10**7).data
        assert_alike(shown, expected(source, preset), error=2)


@pytest.mark.parametrize(
    ("output", "longest"),
    [(Format.JPEG, 65_500), (Format.WEBP, 16_383), (Format.AVIF, 32_768), (Format.PNG, 65_501)],
)
def test_a_result_longer_than_its_format_allows_is_too_large(output: Format, longest: int) -> None:
    """Catches an encoder's exception, a 500, for a very tall source that is fitted by width."""
    fits = sources.png(np.zeros((longest, 1), np.uint8))
    assert decode(render(fits, BY_WIDTH, output, max_pixels=10**6).data).shape[0] == longest
    if output is not Format.PNG:
        with pytest.raises(ImageTooLarge):
            render(
                sources.png(np.zeros((longest + 1, 1), np.uint8)),
                BY_WIDTH,
                output,
                max_pixels=10**6,
            )


# Drawn pictures


def overshoot(shown: sources.Pixels, low: int = 40, high: int = 215) -> int:
    """How far samples leave the range of the pixel art's colours."""
    return max(low - int(shown.min()), int(shown.max()) - high, 0)


@pytest.mark.parametrize(
    "preset",
    [Preset(width=150, fit="contain", quality=90), Preset(width=700, height=500, fit="cover",
                                                          quality=90)],
    ids=["smaller", "larger"],
)  # fmt: skip
def test_pixel_art_gets_no_halo(preset: Preset) -> None:
    """Catches the overshoot of Lanczos beside hard edges, as the reference has it."""
    source = sources.png(sources.pixel_art(400, 300))
    shown = decode(render(source, preset, None, max_pixels=10**7).data)
    assert overshoot(shown) <= 1
    assert overshoot(expected(source, preset)) >= 10


def test_a_screenshot_gets_no_halo_even_with_a_photograph_in_it() -> None:
    """Catches a test for few colours in all, which any embedded picture fails."""
    page = np.full((900, 1600, 3), 200, np.uint8)
    page[::24, 100:1100] = 60
    page[:, 100:1100:17][::3] = 60
    page[500:700, 1200:1500] = np.clip(sources.photo(300, 200), 60, 200)
    source = sources.png(page)
    shown = decode(render(source, DEFAULT_PRESETS["content_preview"], None, max_pixels=10**7).data)
    assert overshoot(shown, 60, 200) <= 1


@pytest.mark.parametrize(
    "name", [name for name, p in DEFAULT_PRESETS.items() if p.fit == "contain"]
)
def test_contain_never_enlarges(name: str) -> None:
    """Catches small pixel art blown up and blurred."""
    pixels = sources.pixel_art(48, 32)
    shown = decode(render(sources.png(pixels), DEFAULT_PRESETS[name], None, max_pixels=10**6).data)
    assert np.array_equal(shown, pixels)


def test_a_photograph_keeps_the_sharper_filter() -> None:
    """Catches a guess that takes photographs, or grey ones, for drawings and softens them."""
    y, x = np.mgrid[0:600, 0:800]
    fine = 60 * np.sin((x * x + y * y) / 2500)
    for plain in (sources.photo(800, 600), sources.grey(800, 600)):
        detail = fine[..., None] if plain.ndim == 3 else fine
        pixels = np.clip(plain * 0.5 + 64 + detail, 0, 255).astype(np.uint8)
        preset = Preset(width=300, fit="contain", quality=90)
        shown = decode(render(sources.png(pixels), preset, None, max_pixels=10**7).data)
        image = pyvips.Image.new_from_array(pixels)
        to_sharp = color_error(shown, expected(image, preset))
        to_soft = color_error(shown, expected(image, preset, kernel="linear"))
        assert to_sharp < 0.5 * to_soft


def test_red_text_keeps_its_colour_in_a_jpeg() -> None:
    """Catches coarse chroma on drawings, where it washes thin coloured lines out."""
    page = np.full((200, 120, 3), 255, np.uint8)
    page[::7, 10:110] = (220, 0, 0)
    shown = decode(render(sources.png(page), BY_WIDTH, Format.JPEG, max_pixels=10**6).data)
    assert np.abs(on_white(shown)[::7, 20:100] - (220, 0, 0)).mean() < 12


@pytest.mark.parametrize("quality", [80, 94, 100])
def test_noise_is_encoded_all_the_same(quality: int) -> None:
    """Catches an encoder whose buffer is sized for ordinary pictures, and fails for others."""
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    data = encode(Image.fromarray(pixels), Format.JPEG, quality, flat=True)
    assert decode(data).shape == pixels.shape

"""The fast resampler and Pillow's own: the same matrix over both, and how near they are."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from typing import Final

import numpy as np
import pytest
from PIL import Image

from proxy.errors import UndecodableImage
from proxy.imaging import resample
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS, Box, Preset, Size
from tests.imaging import sources
from tests.imaging.reference import assert_alike, color_error, decode, expected, size_of, ssim

pytestmark = pytest.mark.slow

MAX_PIXELS = 50_000_000
COVER = Preset(width=150, height=110, fit="cover", quality=90)
CONTAIN = Preset(width=170, fit="contain", quality=90)
PRESETS = pytest.mark.parametrize("preset", [COVER, CONTAIN], ids=["cover", "contain"])
PHOTO = sources.photo(611, 407)

LANCZOS: Final = Image.Resampling.LANCZOS
BICUBIC: Final = Image.Resampling.BICUBIC

needs_fast = pytest.mark.skipif(
    find_spec("cykooz_resizer") is None, reason="cykooz_resizer is missing"
)


@pytest.fixture(params=[pytest.param("fast", marks=needs_fast), "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which resampler is there."""
    name: str = request.param
    if name == "plain":
        monkeypatch.setattr(resample, "_resize", None)
    return name


def rendered(source: bytes, preset: Preset, output: Format | None = None) -> bytes:
    return render(source, preset, output, max_pixels=MAX_PIXELS).data


@PRESETS
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: sources.jpeg(PHOTO, subsampling="4:4:4"), id="444"),
        pytest.param(lambda: sources.jpeg(PHOTO, subsampling="4:2:2"), id="422"),
        pytest.param(lambda: sources.jpeg(PHOTO, subsampling="4:2:0"), id="420"),
        pytest.param(lambda: sources.jpeg(PHOTO, progressive=True), id="progressive"),
        pytest.param(lambda: sources.jpeg(sources.grey(611, 407)), id="grey"),
        pytest.param(lambda: sources.cmyk_jpeg(sources.cmyk(PHOTO)), id="cmyk"),
        pytest.param(lambda: sources.png(sources.with_alpha(PHOTO)), id="alpha"),
        pytest.param(
            lambda: sources.jpeg(PHOTO, icc_profile=sources.builtin_profile("p3")), id="p3"
        ),
    ],
)
@pytest.mark.usefixtures("path")
def test_each_source_looks_as_libvips_shows_it(make: Callable[[], bytes], preset: Preset) -> None:
    """Catches a region of the full picture that is applied to one decoded at a fraction."""
    source = make()
    assert_alike(rendered(source, preset), expected(source, preset))


@PRESETS
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.usefixtures("path")
def test_each_orientation_is_turned_upright(orientation: int, preset: Preset) -> None:
    """Catches a crop in upright coordinates of a picture that lies on its side."""
    stored = sources.stored(PHOTO, orientation)
    source = sources.jpeg(stored, exif=sources.exif(orientation))
    assert_alike(rendered(source, preset), expected(source, preset))


@PRESETS
@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 300), (300, 1), (3, 5), (149, 109), (150, 110), (151, 111), (170, 113),
     (171, 97), (301, 203), (1201, 799), (4001, 3)],
    ids=str,
)  # fmt: skip
@pytest.mark.usefixtures("path")
def test_every_size_comes_out_as_computed(size: tuple[int, int], preset: Preset) -> None:
    """Catches a box that ends past the picture by a rounding error, and a plane of no pixels."""
    source = sources.jpeg(sources.photo(*size, grain=0))
    got = decode(rendered(source, preset, Format.JPEG))
    assert (got.shape[1], got.shape[0]) == size_of(preset, *size)
    if min(size) >= 32:
        assert ssim(got, expected(source, preset)) >= 0.97


@pytest.mark.parametrize("name", DEFAULT_PRESETS)
@pytest.mark.usefixtures("path")
def test_a_camera_picture_survives_every_preset(name: str) -> None:
    """Catches a fraction so small that the loss shows: decoding stops at the result's size."""
    source = sources.jpeg(sources.photo(2000, 1333), quality=90, subsampling="4:2:0")
    assert_alike(rendered(source, DEFAULT_PRESETS[name]), expected(source, DEFAULT_PRESETS[name]))


@pytest.mark.usefixtures("path")
def test_truncated_and_corrupt_data_do_not_decode() -> None:
    """Catches a grey lower half, and an error that is not in the table."""
    source = sources.jpeg(sources.photo(640, 480))
    for length in (len(source) * 3 // 4, len(source) // 3, 700):
        with pytest.raises(UndecodableImage):
            rendered(source[:length], CONTAIN)


@pytest.mark.usefixtures("path")
def test_no_metadata_is_left() -> None:
    """Catches ``info`` that a resampled picture keeps and an encoder writes."""
    source = sources.jpeg(
        PHOTO, exif=sources.exif(1), comment=b"secret", icc_profile=sources.builtin_profile("p3")
    )
    for output, allowed in ((Format.JPEG, {"jfif", "jfif_version", "jfif_unit", "jfif_density"}),
                            (Format.PNG, set()), (Format.WEBP, {"loop", "background", "timestamp",
                                                                "duration"})):  # fmt: skip
        result = rendered(source, COVER, output)
        assert b"secret" not in result
        assert b"Camera" not in result
        with Image.open(BytesIO(result)) as image:
            assert set(image.info) <= allowed


@pytest.mark.parametrize("quality", [90, 75])
@pytest.mark.usefixtures("path")
def test_a_drawing_in_a_jpeg_gets_no_ringing_from_its_fraction(quality: int) -> None:
    """Catches hard edges scaled by libjpeg down to the result's size."""
    art = sources.pixel_art(960, 960, 60)
    source = sources.jpeg(art, quality=98, subsampling="4:4:4")
    preset = Preset(width=480, fit="contain", quality=quality)
    got = decode(rendered(source, preset)).astype(int)
    shown = sources.pixel_art(480, 480, 30).astype(int)
    # Away from the encoder's own blocks, the middle of a square has its colour.
    middles = np.abs(got[15::30, 15::30] - shown[15::30, 15::30])
    assert middles.max() <= 6


@needs_fast
def test_a_photograph_is_decoded_at_one_fraction_by_either_resampler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches Pillow left with a decode in full, of which it makes another picture in more time."""
    source = sources.jpeg(sources.photo(1400, 900, grain=8), quality=95)
    preset = Preset(width=500, fit="contain", quality=95)
    fast = decode(rendered(source, preset, Format.PNG))
    monkeypatch.setattr(resample, "_resize", None)
    plain = decode(rendered(source, preset, Format.PNG))
    assert color_error(fast, plain) <= 0.5


@needs_fast
@pytest.mark.parametrize("mode", sorted(resample.MODES))
@pytest.mark.parametrize("size", [Size(150, 110), Size(611, 300), Size(900, 700), Size(1, 1)])
@pytest.mark.parametrize("kernel", [LANCZOS, BICUBIC])
def test_both_resamplers_give_the_same_picture(
    mode: str, size: Size, kernel: resample.Kernel
) -> None:
    """Catches another kernel, and a box that starts half a pixel aside."""
    image = Image.fromarray(PHOTO).convert(mode)
    box = Box(3.25, 7.5, 600.125, 400.75)
    fast = resample.convolved(image, size, box, kernel)
    assert fast is not None
    assert not fast.info
    plain = image.resize(size, kernel, box=box)
    near = [np.asarray(one.convert("RGB")) for one in (fast, plain)]
    assert color_error(*near) <= 0.5
    assert np.abs(near[0].astype(int) - near[1].astype(int)).max() <= 2


@needs_fast
def test_a_box_past_the_edge_by_a_rounding_error_is_taken() -> None:
    """Catches an exception for sizes whose quotient is not exact in binary."""
    image = Image.fromarray(PHOTO)
    box = Box(-1e-12, 0, 611 + 1e-10, 407 + 1e-10)
    assert resample.convolved(image, Size(50, 40), box, LANCZOS) is not None


def test_other_modes_are_left_to_pillow() -> None:
    """Catches alpha that colours are not weighted by, and palettes averaged by number."""
    for mode in ("1", "P", "LA", "RGBA", "CMYK", "I;16"):
        image = Image.new(mode, (8, 8))
        assert resample.convolved(image, Size(4, 4), Box(0, 0, 8, 8), LANCZOS) is None


def screenshot(width: int, height: int) -> Image.Image:
    """Squares of colours that are neither black nor white, with hard edges, on a grey page."""
    random = np.random.default_rng(4)
    page = Image.new("RGB", (width, height), (90, 100, 110))
    for _ in range(200):
        left, top = int(random.integers(width)), int(random.integers(height))
        across, down = (int(side) for side in random.integers(1, 60, 2))
        color = tuple(int(level) for level in random.integers(40, 216, 3))
        page.paste(color, (left, top, left + across, top + down))
    return page


@needs_fast
@pytest.mark.parametrize("scale", [2.15, 2.5, 3.3, 6.7])
def test_a_drawing_scaled_fast_is_as_hamming_makes_it(scale: float) -> None:
    """Catches softer edges, and a picture that starts half a pixel aside."""
    image = screenshot(900, 700)
    box = Box(30.0, 20.0, 830.0, 620.0)
    size = Size(round(800 / scale), round(600 / scale))
    fast = resample.averaged(image, size, box)
    assert fast is not None
    plain = image.resize(size, Image.Resampling.HAMMING, box=box)
    near = np.asarray(fast), np.asarray(plain)
    assert color_error(*near) <= 1.5
    assert ssim(*near) >= 0.99


@needs_fast
@pytest.mark.parametrize("scale", [2.15, 2.4, 3.7, 9])
def test_a_drawing_scaled_fast_has_no_halos(scale: float) -> None:
    """Catches Lanczos or Catmull-Rom: they leave the range of the colours beside an edge."""
    image = Image.new("RGB", (720, 540), (200, 180, 60))
    image.paste((70, 90, 150), (331, 0, 720, 540))
    fast = resample.averaged(image, Size(int(720 / scale), int(540 / scale)), Box(0, 0, 720, 540))
    assert fast is not None
    assert fast.getextrema() == ((70, 200), (90, 180), (60, 150))


@pytest.mark.parametrize("size", [Size(60, 40), Size(50, 50), Size(45, 49)])
def test_a_drawing_of_half_its_size_or_more_is_left_to_pillow(size: Size) -> None:
    """Catches thin strokes lost to an average of four, and a triangle as wide as two pixels."""
    image = Image.new("RGB", (100, 100))
    assert resample.averaged(image, size, Box(0, 0, 100, 100)) is None

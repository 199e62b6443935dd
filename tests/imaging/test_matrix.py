"""Every kind of source through cover and contain, each against libvips."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO

import numpy as np
import pytest
import pyvips
from PIL import Image

from proxy.imaging.pipeline import render
from proxy.imaging.recipes import Rendered
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.reference import assert_alike, color_error, decode, expected, ssim

pytestmark = pytest.mark.slow

MAX_PIXELS = 50_000_000
COVER = Preset(width=150, height=110, fit="cover", quality=90)
CONTAIN = Preset(width=170, fit="contain", quality=90)
PRESETS = pytest.mark.parametrize("preset", [COVER, CONTAIN], ids=["cover", "contain"])

PHOTO = sources.photo(611, 407)
GREY = sources.grey(611, 407)
CMYK = sources.cmyk(PHOTO)


def few_levels(bits: int) -> sources.Pixels:
    """Samples of so many bits, without grain: rounding would make hard edges of it."""
    return (sources.grey(611, 407, grain=0) >> (8 - bits)).astype(np.uint8)


def rendered(source: bytes, preset: Preset, output: Format | None = None) -> Rendered:
    return render(source, preset, output, max_pixels=MAX_PIXELS)


def named(**makers: Callable[[], bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", makers.values(), ids=makers.keys())


def quantized(transparency: bool = False) -> bytes:
    image = Image.fromarray(PHOTO).quantize(200)
    levels = bytes(range(0, 250, 10)) + bytes([255] * 175)
    return sources.encoded(image, "PNG", **({"transparency": levels} if transparency else {}))


@PRESETS
@named(
    baseline_444=lambda: sources.jpeg(PHOTO, subsampling="4:4:4"),
    baseline_422=lambda: sources.jpeg(PHOTO, subsampling="4:2:2"),
    baseline_420=lambda: sources.jpeg(PHOTO, subsampling="4:2:0"),
    progressive=lambda: sources.jpeg(PHOTO, progressive=True),
    restart_markers=lambda: sources.jpeg(PHOTO, restart_marker_rows=1),
    grey=lambda: sources.jpeg(GREY),
    cmyk_inverted=lambda: sources.cmyk_jpeg(CMYK),
    ycck_inverted=lambda: sources.ycck_jpeg(CMYK),
)
def test_each_jpeg_looks_as_libvips_shows_it(make: Callable[[], bytes], preset: Preset) -> None:
    """Catches a negative from inverted inks, and a draft that is mapped onto the wrong region."""
    source = make()
    result = rendered(source, preset)
    assert result.format is Format.JPEG
    assert_alike(result.data, expected(source, preset))


@PRESETS
@named(
    grey_1=lambda: sources.vips_png(few_levels(1), bitdepth=1),
    grey_2=lambda: sources.vips_png(few_levels(2), bitdepth=2),
    grey_4=lambda: sources.vips_png(few_levels(4), bitdepth=4),
    grey_8=lambda: sources.png(GREY),
    grey_16=lambda: sources.vips_png(sources.wide(GREY)),
    grey_alpha_8=lambda: sources.png(sources.with_alpha(GREY)),
    grey_alpha_16=lambda: sources.vips_png(sources.wide(sources.with_alpha(GREY))),
    rgb_8=lambda: sources.png(PHOTO),
    rgb_16=lambda: sources.vips_png(sources.wide(PHOTO)),
    rgba_8=lambda: sources.png(sources.with_alpha(PHOTO)),
    rgba_16=lambda: sources.vips_png(sources.wide(sources.with_alpha(PHOTO))),
    interlaced=lambda: sources.vips_png(PHOTO, interlace=True),
    palette=quantized,
    palette_alpha=lambda: quantized(transparency=True),
)
def test_each_png_looks_as_libvips_shows_it(make: Callable[[], bytes], preset: Preset) -> None:
    """Catches 16 bits clipped to white, 2 bits left nearly black, fringes of unweighted alpha."""
    source = make()
    result = rendered(source, preset)
    assert result.format is Format.PNG
    assert_alike(result.data, expected(source, preset))


@PRESETS
@named(
    lossy=lambda: sources.webp(PHOTO),
    lossless=lambda: sources.webp(PHOTO, lossless=True),
    lossy_alpha=lambda: sources.webp(sources.with_alpha(PHOTO)),
    lossless_alpha=lambda: sources.webp(sources.with_alpha(PHOTO), lossless=True),
    animated=lambda: sources.animation("WEBP", [PHOTO, PHOTO[::-1]]),
    avif_8=lambda: sources.avif(PHOTO),
    avif_10=lambda: sources.ten_bit_avif(PHOTO),
    avif_grey=lambda: sources.avif(GREY),
    avif_alpha=lambda: sources.avif(sources.with_alpha(PHOTO)),
    gif=lambda: sources.gif(PHOTO),
    gif_animated=lambda: sources.animation("GIF", [PHOTO, PHOTO[::-1]]),
)
def test_each_other_format_gives_the_first_frame_as_a_jpeg(
    make: Callable[[], bytes], preset: Preset
) -> None:
    """Catches a black background behind alpha, and a later frame."""
    source = make()
    result = rendered(source, preset)
    assert result.format is Format.JPEG
    assert_alike(result.data, expected(source, preset))


@PRESETS
@pytest.mark.parametrize("output", [Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF])
@pytest.mark.parametrize("translucent", [False, True], ids=["opaque", "alpha"])
def test_every_format_that_a_url_asks_for_keeps_what_it_can(
    output: Format, translucent: bool, preset: Preset
) -> None:
    """Catches lost alpha in PNG, WebP and AVIF, and alpha that reaches the JPEG encoder."""
    source = sources.png(sources.with_alpha(PHOTO) if translucent else PHOTO)
    result = rendered(source, preset, output)
    assert result.format is output
    assert_alike(result.data, expected(source, preset))
    bands = decode(result.data).shape[2]
    assert bands == (4 if translucent and output is not Format.JPEG else 3)


@PRESETS
def test_heic_is_decoded_where_its_decoder_is_installed(preset: Preset) -> None:
    """Catches a source taken for AVIF, since both are ISO media, and a phone's profile dropped."""
    pillow_heif = pytest.importorskip("pillow_heif")
    profile = sources.builtin_profile("p3")
    for options in ({}, {"icc_profile": profile}, {"exif": sources.exif(6)}):
        out = BytesIO()
        pillow_heif.from_pillow(Image.fromarray(PHOTO)).save(out, quality=95, **options)
        shown = np.rot90(PHOTO, -1) if "exif" in options else PHOTO
        wanted = expected(sources.png(np.ascontiguousarray(shown)), preset)
        if "icc_profile" in options:
            wanted = expected(sources.png(PHOTO, icc_profile=profile), preset)
        result = rendered(out.getvalue(), preset)
        assert result.format is Format.JPEG
        assert_alike(result.data, wanted, error=2)


# Orientation


@cache
def upright_result(preset: Preset) -> bytes:
    return rendered(sources.png(PHOTO), preset, Format.PNG).data


@PRESETS
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_turned_upright(orientation: int, preset: Preset) -> None:
    """Catches a mirrored turn, a box that is fitted before turning, and a crop of the wrong end."""
    pixels = sources.stored(PHOTO, orientation)
    source = sources.jpeg(pixels, exif=sources.exif(orientation))
    result = rendered(source, preset)
    assert_alike(result.data, expected(source, preset))
    assert ssim(decode(result.data), decode(upright_result(preset))) >= 0.97


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["png", "webp", "avif"])
def test_orientation_is_honoured_in_other_formats_too(format_: str, orientation: int) -> None:
    """Catches reading EXIF from JPEG alone, and big-endian EXIF read as little."""
    make = {"png": sources.png, "webp": sources.webp, "avif": sources.avif}[format_]
    small = sources.photo(151, 97)
    source = make(sources.stored(small, orientation), exif=sources.exif(orientation, endian=">"))
    result = rendered(source, Preset(width=60, fit="contain", quality=90), Format.PNG)
    wanted = expected(pyvips.Image.new_from_array(small), CONTAIN.model_copy(update={"width": 60}))
    assert_alike(result.data, wanted)


def test_an_orientation_out_of_range_or_damaged_is_upright() -> None:
    """Catches an index error, and a blob refused for notes that do not concern its picture."""
    wanted = expected(pyvips.Image.new_from_array(PHOTO), COVER)
    for notes in (
        sources.exif(9),
        sources.exif(0),
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0garbage that is no TIFF",
    ):
        assert_alike(rendered(sources.jpeg(PHOTO, exif=notes), COVER).data, wanted)


# Colour


@PRESETS
@named(
    display_p3=lambda: sources.jpeg(PHOTO, icc_profile=sources.builtin_profile("p3")),
    adobe_rgb=lambda: sources.jpeg(PHOTO, icc_profile=sources.ADOBE_RGB),
    srgb=lambda: sources.jpeg(PHOTO, icc_profile=sources.builtin_profile("srgb")),
    grey=lambda: sources.jpeg(GREY, icc_profile=sources.DARK_GREY),
    cmyk=lambda: sources.cmyk_jpeg(CMYK, icc_profile=sources.builtin_profile("cmyk")),
    ycck=lambda: sources.ycck_jpeg(CMYK, icc_profile=sources.builtin_profile("cmyk")),
    png=lambda: sources.png(PHOTO, icc_profile=sources.ADOBE_RGB),
    png_alpha=lambda: sources.png(sources.with_alpha(PHOTO), icc_profile=sources.ADOBE_RGB),
    webp=lambda: sources.webp(PHOTO, icc_profile=sources.ADOBE_RGB),
    avif=lambda: sources.avif(PHOTO, icc_profile=sources.ADOBE_RGB),
)
def test_an_embedded_profile_is_converted_to_srgb(
    make: Callable[[], bytes], preset: Preset
) -> None:
    """Catches a profile that is dropped: the same numbers would be other colours."""
    source = make()
    assert_alike(rendered(source, preset).data, expected(source, preset), error=2)


def test_the_profiles_of_this_matrix_do_change_colours() -> None:
    """Guards the test above: with a profile near sRGB it would pass without any conversion."""
    plain = expected(pyvips.Image.new_from_array(PHOTO), CONTAIN)
    for profile in (sources.builtin_profile("p3"), sources.ADOBE_RGB):
        converted = expected(sources.jpeg(PHOTO, icc_profile=profile), CONTAIN)
        assert color_error(plain, converted) > 2.5


@named(
    corrupt=lambda: sources.jpeg(PHOTO, icc_profile=b"no profile at all" * 20),
    damaged=lambda: sources.jpeg(PHOTO, icc_profile=sources.ADOBE_RGB[:200]),
    of_grey_in_rgb=lambda: sources.jpeg(PHOTO, icc_profile=sources.DARK_GREY),
    of_cmyk_in_rgb=lambda: sources.jpeg(PHOTO, icc_profile=sources.builtin_profile("cmyk")),
    part_missing=lambda: sources.with_segments(
        sources.jpeg(PHOTO), (0xE2, b"ICC_PROFILE\0\x01\x02" + sources.ADOBE_RGB)
    ),
    png_not_deflated=lambda: sources.with_chunks(sources.png(PHOTO), [(b"iCCP", b"x\0\0junk")]),
    png_empty=lambda: sources.with_chunks(sources.png(PHOTO), [(b"iCCP", b"")]),
)
def test_a_profile_that_does_not_fit_is_ignored(make: Callable[[], bytes]) -> None:
    """Catches a 422 or wrong colours for a picture that every browser shows."""
    wanted = expected(pyvips.Image.new_from_array(PHOTO), CONTAIN)
    assert_alike(rendered(make(), CONTAIN).data, wanted)


def test_a_grey_source_stays_one_channel() -> None:
    """Catches grey that is converted to three bands, which a profile makes easy."""
    for options in ({}, {"icc_profile": sources.DARK_GREY}):
        result = rendered(sources.jpeg(GREY, **options), COVER)
        with Image.open(BytesIO(result.data)) as image:
            assert image.mode == "L"


def gamma_chunk(gamma: float) -> sources.Chunk:
    return b"gAMA", round(gamma * 100_000).to_bytes(4, "big")


@pytest.mark.parametrize("pixels", [PHOTO, GREY, sources.with_alpha(PHOTO)], ids=["rgb", "l", "a"])
def test_png_gamma_is_applied_as_browsers_do(pixels: sources.Pixels) -> None:
    """Catches linear light shown as if it were encoded: far too dark."""
    source = sources.with_chunks(sources.png(pixels), [gamma_chunk(1.0)])
    curve = np.round(255 * (np.arange(256) / 255) ** (1 / 2.2)).astype(np.uint8)
    shown = pixels.copy()
    bands = shown if pixels.ndim == 2 else shown[..., :3]
    bands[...] = curve[bands]
    assert_alike(
        rendered(source, CONTAIN).data, expected(pyvips.Image.new_from_array(shown), CONTAIN)
    )


@pytest.mark.parametrize(
    "chunks",
    [
        [gamma_chunk(0.45455)],
        [gamma_chunk(1.0), (b"sRGB", b"\0")],
        [(b"sRGB", b"\0"), gamma_chunk(1.0)],
        [gamma_chunk(0)],
        [(b"gAMA", b"x")],
    ],
    ids=["2.2", "srgb_wins", "srgb_wins_first", "zero", "short"],
)
def test_png_gamma_gives_way_to_sense(chunks: list[sources.Chunk]) -> None:
    """Catches gamma over an sRGB chunk, and a division by zero."""
    source = sources.with_chunks(sources.png(PHOTO), chunks)
    wanted = expected(pyvips.Image.new_from_array(PHOTO), CONTAIN)
    assert_alike(rendered(source, CONTAIN).data, wanted)


# Transparency


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth_is_the_declared_one(bits: int) -> None:
    """Catches a comparison of scaled samples with the unscaled number of tRNS."""
    halves = np.tile(np.repeat(np.array([0, 255], np.uint8), 32), (64, 1))
    samples = sources.wide(halves) if bits == 16 else halves
    white = (1 << bits) - 1
    source = sources.with_chunks(
        sources.vips_png(samples, bitdepth=bits), [(b"tRNS", white.to_bytes(2, "big"))]
    )
    shown = decode(rendered(source, Preset(width=64, fit="contain", quality=90)).data)
    assert (shown[:, :30, 3] == 255).all()
    assert (shown[:, 34:, 3] == 0).all()


def test_a_transparent_colour_meets_white_in_a_jpeg() -> None:
    """Catches tRNS of truecolour that is lost: the key colour would show."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = (250, 0, 250)
    pixels[:, 32:] = (0, 120, 0)
    key = b"".join(value.to_bytes(2, "big") for value in (250, 0, 250))
    source = sources.with_chunks(sources.png(pixels), [(b"tRNS", key)])
    shown = decode(rendered(source, CONTAIN, Format.JPEG).data)
    assert shown[:, :28].min() > 245
    assert np.abs(shown[:, 36:].astype(int) - (0, 120, 0)).max() < 12


def test_hidden_colour_never_bleeds_over_a_transparent_edge() -> None:
    """Catches resampling of colour without its alpha: black or red fringes around cut-outs."""
    pixels = np.zeros((400, 400, 4), np.uint8)
    pixels[..., 0] = 255  # invisible red
    pixels[100:300, 100:300] = (0, 160, 0, 255)
    source = sources.png(pixels)
    for output in (Format.PNG, Format.WEBP):
        shown = decode(rendered(source, Preset(width=133, fit="contain", quality=90), output).data)
        visible = shown[shown[..., 3] > 40]
        assert visible[:, 0].max() <= 24


def test_an_alpha_channel_that_hides_nothing_is_dropped() -> None:
    """Catches a fourth band written for every opaque RGBA screenshot."""
    opaque = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    assert decode(rendered(sources.png(opaque), COVER).data).shape[2] == 3


# Animation: what moves is in test_animation_*.py


FRAMES = [sources.photo(120, 90, seed) for seed in (1, 2, 3)]
ANIMATED = Preset(width=80, fit="contain", quality=90, animated=True)


@pytest.mark.parametrize("format_", ["GIF", "WEBP"])
def test_an_animation_is_a_still_for_other_presets_and_explicit_formats(format_: str) -> None:
    """Catches originals that reach an avatar, and an animation under a JPEG's name."""
    source = sources.animation(format_, FRAMES, loop=0)
    still = ANIMATED.model_copy(update={"animated": False})
    wanted = expected(source, still)
    for preset, output in ((still, None), (ANIMATED, Format.JPEG), (still, Format.WEBP)):
        result = rendered(source, preset, output)
        assert result.format is (output or Format.JPEG)
        assert_alike(result.data, wanted, error=4)


def test_an_apng_gives_the_picture_that_a_plain_decoder_shows() -> None:
    """Catches a refusal of APNG, and frames left in the output."""
    source = sources.animation("PNG", FRAMES)
    still = ANIMATED.model_copy(update={"animated": False})
    result = rendered(source, still)
    assert result.format is Format.PNG
    assert b"acTL" not in result.data
    assert b"fdAT" not in result.data
    assert_alike(result.data, expected(pyvips.Image.new_from_array(FRAMES[0]), still))


def test_a_broken_animation_header_in_a_png_leaves_the_still() -> None:
    """Catches a 422, or a warning, for two animation headers and a frame outside the canvas."""
    two = [(b"acTL", bytes(8)), (b"acTL", bytes(4)), (b"fcTL", b"\xff" * 26)]
    source = sources.with_chunks(sources.png(PHOTO), two)
    wanted = expected(pyvips.Image.new_from_array(PHOTO), COVER)
    assert_alike(rendered(source, COVER).data, wanted)


def test_a_transparent_gif_meets_white() -> None:
    """Catches the palette's colour behind the transparent index."""
    image = Image.fromarray(sources.pixel_art(64, 64)).quantize(6)
    key = image.getpixel((3, 3))
    source = sources.encoded(image, "GIF", transparency=key)
    shown = decode(rendered(source, CONTAIN).data)
    assert shown[:7, :7].min() > 250
    assert_alike(rendered(source, CONTAIN).data, expected(source, CONTAIN), error=4)


def test_a_gif_frame_that_leaves_its_canvas_is_still_decoded() -> None:
    """Catches a size that is taken from the header only, which the decoder enlarges."""
    data = bytearray(sources.gif(FRAMES[0]))
    data[6:10] = (40).to_bytes(2, "little") * 2
    shown = decode(rendered(bytes(data), Preset(width=500, fit="contain", quality=90)).data)
    assert shown.shape[:2] == (90, 120)

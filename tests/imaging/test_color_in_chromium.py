"""Every kind of colour information, against what Chromium draws."""

from __future__ import annotations

import io
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import pyvips
from PIL import Image
from playwright.sync_api import Browser

from proxy.imaging.color import profiles
from proxy.imaging.pipeline import render
from proxy.model.formats import Format, content_type_of
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.properties import Box, icc, light_level, nclx, with_colors
from tests.imaging.sources import Chunk, Pixels
from tests.imaging.test_color import with_stream_colors
from tests.page import NoBrowser, chromium
from tests.required import skip_unless_required

pytestmark = [pytest.mark.browser, pytest.mark.time_limit(300)]

Draw = Callable[[bytes], Pixels]

WHOLE = Preset(width=4000, fit="contain", quality=90)


@pytest.fixture(scope="module")
def draw() -> Iterator[Draw]:
    """What a page shows of a file, whose pixels are those of the screen; fails if it is nothing."""
    try:
        with chromium("--force-color-profile=srgb") as with_browser:
            yield lambda data: with_browser(lambda browser: _drawn(browser, data))
    except NoBrowser as error:
        skip_unless_required(str(error))


def _drawn(browser: Browser, data: bytes) -> Pixels:
    page = browser.new_page(viewport={"width": 800, "height": 400})
    try:
        page.set_content("<body style='margin: 0'><img style='display: block'>")
        width, height = page.evaluate(
            """async (url) => {
                const image = document.querySelector("img");
                image.src = url;
                await image.decode();
                return [image.naturalWidth, image.naturalHeight];
            }""",
            f"data:{content_type_of(data)};base64,{b64encode(data).decode()}",
        )
        shot = page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": height})
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))
    finally:
        page.close()


def ours(data: bytes) -> Pixels:
    result = render(data, WHOLE, Format.PNG, max_pixels=1_000_000)
    return np.asarray(Image.open(io.BytesIO(result.data)).convert("RGB"))


def assert_as_drawn(draw: Draw, data: bytes, *, off: float = 2) -> None:
    difference = np.abs(ours(data).astype(int) - draw(data).astype(int))
    assert difference.max() <= off


PATCHES = np.array(
    [[(value,) * 3 for value in range(0, 256, 15)],
     [(200, 60, 40), (200, 80, 80), (60, 180, 90), (70, 90, 210), (215, 200, 70), (40, 40, 60),
      (128, 100, 90), (90, 128, 110), (250, 240, 230), (120, 60, 140), (30, 90, 60),
      (230, 150, 130), (180, 180, 120), (100, 160, 200), (160, 120, 180), (60, 50, 50),
      (240, 200, 210), (150, 150, 140)]],
    np.uint8,
)  # fmt: skip
GREYS = np.ascontiguousarray(PATCHES[:1, :, 0])

P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def gamma(value: int) -> Chunk:
    return b"gAMA", value.to_bytes(4, "big")


def cicp(*values: int) -> Chunk:
    return b"cICP", bytes(values)


def iccp(profile: bytes) -> Chunk:
    return b"iCCP", b"x\0\0" + zlib.compress(profile)


CHUNKS: dict[str, list[Chunk]] = {
    "gamma": [gamma(62500)],
    "gamma_of_a_display": [gamma(45455)],
    "gamma_within_tolerance": [gamma(47700)],
    "gamma_beyond_tolerance": [gamma(47800)],
    **{f"gamma_{value}": [gamma(value)] for value in (0, 1, 5000, 1_000_000, 2**31 - 1)},
    "icc_without_a_name": [(b"iCCP", b"\0\0" + zlib.compress(sources.ADOBE_RGB))],
    "gamma_twice": [gamma(62500), gamma(100000)],
    "chrm": [gamma(45455), (b"cHRM", P3)],
    "chrm_and_gamma": [gamma(62500), (b"cHRM", P3)],
    "chrm_alone": [(b"cHRM", P3)],
    "chrm_impossible": [gamma(62500), (b"cHRM", P3[:8] + bytes(24))],
    "srgb_over_gamma": [gamma(62500), (b"cHRM", P3), (b"sRGB", b"\0")],
    "srgb_invalid": [gamma(62500), (b"sRGB", b"\x09")],
    "icc_over_srgb": [(b"sRGB", b"\0"), iccp(sources.ADOBE_RGB)],
    "icc_junk": [gamma(62500), iccp(b"junk" * 60)],
    "icc_of_grey": [iccp(sources.DARK_GREY)],
    "icc_of_cmyk": [iccp(sources.builtin_profile("cmyk"))],
    "cicp_over_icc": [cicp(12, 13, 0, 1), iccp(sources.ADOBE_RGB)],
    "cicp_over_gamma": [gamma(62500), cicp(1, 13, 0, 1)],
    "cicp_limited": [gamma(62500), cicp(12, 13, 0, 0)],
    "cicp_long": [gamma(62500), (b"cICP", b"\x0c\x0d\0\1\0")],
    "cicp_unknown_primaries": [gamma(62500), cicp(99, 13, 0, 1)],
    "cicp_unspecified": [gamma(62500), cicp(2, 2, 0, 1)],
    **{f"transfer_{code}": [gamma(62500), cicp(1, code, 0, 1)] for code in (*range(16), 17, 19)},
    **{f"primaries_{code}": [cicp(code, 13, 0, 1)] for code in (1, *range(4, 13), 22)},
}  # fmt: skip


@pytest.mark.parametrize("name", CHUNKS)
def test_the_chunks_of_a_png_count_as_in_a_browser(draw: Draw, name: str) -> None:
    """Catches another order than cICP, iCCP, sRGB, cHRM and gAMA, and another curve or matrix."""
    assert_as_drawn(draw, sources.with_chunks(sources.png(PATCHES), CHUNKS[name]))


@pytest.mark.parametrize("chunk", [gamma(62500), cicp(12, 8, 0, 1), iccp(sources.ADOBE_RGB)])
def test_what_follows_the_pixels_says_nothing(draw: Draw, chunk: Chunk) -> None:
    """Catches a chunk that is taken wherever it stands."""
    source = sources.with_chunks(sources.png(PATCHES), [chunk], before=b"IEND")
    assert_as_drawn(draw, source, off=0)


@pytest.mark.parametrize("chunks", [[gamma(62500)], [cicp(12, 8, 0, 1)], [iccp(sources.ADOBE_RGB)]])
@pytest.mark.parametrize("before", [b"PLTE", b"IDAT"])
def test_a_palette_is_converted(draw: Draw, chunks: list[Chunk], before: bytes) -> None:
    """Catches indices that are taken for colours, and a cICP that comes too late."""
    picture = Image.fromarray(PATCHES).quantize(64)
    source = sources.with_chunks(sources.encoded(picture, "PNG"), chunks, before=before)
    assert_as_drawn(draw, source)
    with Image.open(io.BytesIO(render(source, WHOLE, None, max_pixels=10_000).data)) as image:
        assert image.mode == "P"


WITH_ALPHA = np.dstack([PATCHES, np.full(PATCHES.shape[:2], 255, np.uint8)])
GREY_WITH_ALPHA = np.dstack([GREYS, np.full(GREYS.shape, 255, np.uint8)])


@pytest.mark.parametrize(
    "chunks",
    [[gamma(62500)], [cicp(9, 13, 0, 1)], [cicp(9, 16, 0, 1)], [iccp(sources.ADOBE_RGB)],
     [iccp(sources.DARK_GREY)]],
    ids=["gamma", "cicp", "pq", "rgb_profile", "grey_profile"],
)  # fmt: skip
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "pixels", [GREYS, GREY_WITH_ALPHA, PATCHES, WITH_ALPHA], ids=["l", "la", "rgb", "rgba"]
)
def test_every_kind_of_png_is_converted(
    draw: Draw, pixels: Pixels, bits: int, chunks: list[Chunk]
) -> None:
    """Catches 16-bit grey with alpha taken for RGB, and an RGB profile that grey has no use for."""
    samples = sources.wide(pixels) if bits == 16 else pixels
    # Saturated colours of PQ and a step of eight bits may differ by more.
    hdr = chunks[0][0] == b"cICP" and chunks[0][1][1] == 16
    off = 12 if hdr and pixels.shape[-1] in (3, 4) else 2
    assert_as_drawn(draw, sources.with_chunks(sources.vips_png(samples), chunks), off=off)


# HDR


def light(kind: bytes, most: int) -> Chunk:
    if kind == b"cLLI":
        return kind, struct.pack(">II", most * 10_000, 1_000_000)
    primaries = (35400, 14600, 8500, 39850, 6550, 2300, 15635, 16450)
    return kind, struct.pack(">8H2I", *primaries, most * 10_000, 100)


RAMP = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3)


@pytest.mark.parametrize("transfer", [16, 18], ids=["pq", "hlg"])
@pytest.mark.parametrize(
    "more",
    [[], [light(b"cLLI", 400)], [light(b"cLLI", 4000)], [light(b"cLLI", 100)],
     [light(b"cLLI", 10_000)], [light(b"cLLI", 0)], [light(b"mDCV", 600)],
     [light(b"mDCV", 4000), light(b"cLLI", 600)]],
    ids=["unsaid", "400", "4000", "100", "10000", "zero", "display", "both"],
)  # fmt: skip
def test_hdr_greys_are_tone_mapped_as_in_chromium(
    draw: Draw, transfer: int, more: list[Chunk]
) -> None:
    """Catches another curve, and a peak that is read elsewhere."""
    source = sources.with_chunks(sources.png(RAMP), [cicp(9, transfer, 0, 1), *more])
    difference = np.abs(ours(source).astype(int) - draw(source).astype(int))
    # At reference white the curve has a corner, which can lie between two points of the table.
    assert (difference > 2).sum() <= 3 * 6
    assert difference.max() <= 8


@pytest.mark.parametrize("transfer", [16, 18], ids=["pq", "hlg"])
@pytest.mark.parametrize("primaries", [1, 9, 12])
def test_hdr_colours_are_tone_mapped_as_in_chromium(
    draw: Draw, transfer: int, primaries: int
) -> None:
    """Catches a curve for each channel, which changes hues, and one within other primaries."""
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    source = sources.with_chunks(sources.png(pixels), [cicp(primaries, transfer, 0, 1)])
    difference = np.abs(ours(source).astype(int) - draw(source).astype(int))
    assert difference.mean() <= (0.8 if primaries == 1 else 0.4)
    assert (difference > 3).mean() <= (0.05 if primaries == 1 else 0.01)


@pytest.mark.parametrize("transfer", [16, 18], ids=["pq", "hlg"])
@pytest.mark.parametrize("peak", [50, 203])
def test_hdr_of_no_more_than_an_sdr_white_is_clipped_as_in_chromium(
    draw: Draw, transfer: int, peak: int
) -> None:
    """Catches colours beyond the stated peak that are scaled as a whole: 22 of 255 in the mean."""
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    chunks = [cicp(9, transfer, 0, 1), light(b"cLLI", peak)]
    source = sources.with_chunks(sources.png(pixels), chunks)
    difference = np.abs(ours(source).astype(int) - draw(source).astype(int))
    assert difference.mean() <= 3


# AVIF


def in_blocks(pixels: Pixels) -> Pixels:
    """Each as 16 x 16, of which a lossy codec keeps the middle."""
    return pixels.repeat(16, axis=0).repeat(16, axis=1)


def patches_in_avif(*properties: Box) -> bytes:
    blocks = in_blocks(PATCHES)
    return with_colors(sources.avif(blocks, quality=100, subsampling="4:4:4"), *properties)


def assert_blocks_as_drawn(draw: Draw, data: bytes, *, off: float = 2) -> None:
    mine, theirs = (pixels[8::16, 8::16].astype(int) for pixels in (ours(data), draw(data)))
    assert np.abs(mine - theirs).max() <= off


AVIF_COLORS: dict[str, list[Box]] = {
    "none": [],
    "srgb": [nclx(1, 13)],
    "p3": [nclx(12, 13)],
    "linear": [nclx(1, 8)],
    "unspecified": [nclx(2, 2)],
    "primaries_alone": [nclx(12, 2)],
    "transfer_alone": [nclx(2, 8)],
    **{f"transfer_{code}": [nclx(1, code)] for code in (1, 3, 4, 5, 6, 7, 14, 15, 17, 19)},
    **{f"primaries_{code}": [nclx(code, 13)] for code in (3, 4, 5, 6, 8, 9, 10, 11, 22)},
    **{f"matrix_{code}": [nclx(1, 13, code)] for code in (0, 1, 2, 4, 5, 6, 7, 8, 9, 12)},
    "icc": [icc(sources.ADOBE_RGB)],
    "icc_before_nclx": [icc(sources.ADOBE_RGB), nclx(12, 8)],
    "icc_after_nclx": [nclx(12, 8), icc(sources.ADOBE_RGB)],
}


@pytest.mark.parametrize("name", AVIF_COLORS)
def test_the_colours_of_an_avif_count_as_in_a_browser(draw: Draw, name: str) -> None:
    """Catches code points that are left to a decoder which does nothing with them."""
    assert_blocks_as_drawn(draw, patches_in_avif(*AVIF_COLORS[name]))


@pytest.mark.parametrize("codes", [(9, 16), (12, 8)], ids=["pq", "p3_linear"])
def test_the_code_points_of_a_stream_count_as_in_a_browser(
    draw: Draw, codes: tuple[int, int]
) -> None:
    """Catches a stream that is not looked into, where no box says its colours."""
    blocks = in_blocks(np.dstack([GREYS] * 3))
    source = with_stream_colors(sources.avif(blocks, quality=100, subsampling="4:4:4"), *codes)
    assert_blocks_as_drawn(draw, source, off=3)


@pytest.mark.parametrize("kind", ["full", "limited"])
@pytest.mark.parametrize("subsampling", ["4:0:0", "4:2:0", "4:4:4"])
def test_an_avif_without_colours_has_the_range_of_its_stream(
    draw: Draw, kind: str, subsampling: str
) -> None:
    """Catches limited range that is shown as it is: grey instead of black and white."""
    blocks = in_blocks(GREYS)
    source = sources.avif(blocks, quality=100, range=kind, subsampling=subsampling)
    assert_blocks_as_drawn(draw, with_colors(source))


def ten_bit_greys(*properties: Box) -> bytes:
    samples = sources.wide(in_blocks(np.dstack([GREYS] * 3)))
    image = pyvips.Image.new_from_array(samples).copy(interpretation="rgb16")
    data = image.heifsave_buffer(
        compression="av1", bitdepth=10, Q=100, effort=0, subsample_mode="off"
    )
    return with_colors(data, *properties)


@pytest.mark.parametrize(
    "properties",
    [[nclx(9, 16)], [nclx(9, 18)], [nclx(9, 16), light_level(400)],
     [nclx(9, 16), light_level(4000)]],
    ids=["pq", "hlg", "400", "4000"],
)  # fmt: skip
def test_an_hdr_avif_is_tone_mapped_as_in_chromium(draw: Draw, properties: list[Box]) -> None:
    """Catches PQ that is shown as if it were sRGB: grey, and far too dark."""
    assert_blocks_as_drawn(draw, ten_bit_greys(*properties), off=3)


# Profiles


@pytest.mark.parametrize("make", [sources.jpeg, sources.webp, sources.png])
@pytest.mark.parametrize(
    "codes", [(9, 16), (9, 18), (12, 8), (1, 13)], ids=["pq", "hlg", "linear", "srgb"]
)
def test_code_points_within_a_profile_come_before_it(
    draw: Draw, codes: tuple[int, int], make: Callable[..., bytes]
) -> None:
    """Catches the matrix and curves of an HDR profile, which are there for old readers."""
    blocks = in_blocks(np.dstack([GREYS] * 3))
    assert_blocks_as_drawn(draw, make(blocks, icc_profile=with_cicp(*codes)), off=3)


def with_cicp(primaries: int, transfer: int) -> bytes:
    body = b"cicp\0\0\0\0" + bytes([primaries, transfer, 0, 1])
    return sources.rgb_profile(
        (0.6734, 0.2790, -0.0019), (0.1656, 0.6753, 0.0299), (0.1251, 0.0456, 0.7970), 2.4,
        {b"cicp": body},
    )  # fmt: skip


def test_a_grey_jpeg_takes_a_profile_for_rgb(draw: Draw) -> None:
    """Catches a profile that is dropped because the decoder gives one band."""
    blocks = in_blocks(GREYS)
    assert_blocks_as_drawn(draw, sources.jpeg(blocks, icc_profile=profiles.wide()))

"""Colours as containers describe them, made into profiles, and converted."""

from __future__ import annotations

import math
import struct
import zlib
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import pyvips
from PIL import Image

from proxy.errors import UndecodableImage
from proxy.imaging.color import profiles, tone_mapping
from proxy.imaging.color.code_points import CURVES, Chromaticities
from proxy.imaging.color.conversion import to_srgb
from proxy.imaging.containers import av1, isobmff_color, jpeg, png
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.isobmff import boxes
from tests.imaging.properties import icc, joined, light_level, nclx, with_colors
from tests.imaging.sources import Chunk, Pixels

WHOLE = Preset(width=4000, fit="contain", quality=90)


def shown(data: bytes) -> Pixels:
    """RGBA, whatever the result holds."""
    result = render(data, WHOLE, Format.PNG, max_pixels=1_000_000)
    return np.asarray(Image.open(BytesIO(result.data)).convert("RGBA"))


def cicp(*values: int) -> Chunk:
    return b"cICP", bytes(values)


GAMMA = (b"gAMA", (62500).to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("chunks", "sample", "wanted"),
    [
        ([GAMMA, cicp(1, 13, 0, 1)], (128, 128, 128), (128, 128, 128)),
        ([GAMMA, cicp(12, 13, 0, 1)], (200, 60, 40), (217, 42, 23)),
        ([GAMMA, cicp(12, 13, 0, 1)], (200, 80, 80), (216, 69, 75)),
        ([GAMMA, cicp(1, 8, 0, 1)], (55, 55, 55), (128, 128, 128)),
        ([GAMMA], (128, 128, 128), (156, 156, 156)),
        ([GAMMA, cicp(1, 13, 0, 0)], (128, 128, 128), (156, 156, 156)),
        ([cicp(9, 16, 0, 1)], (148, 148, 148), (187, 187, 187)),
    ],
    ids=["srgb", "p3_red", "p3_pink", "linear", "gamma", "limited_is_ignored", "reference_white"],
)
def test_a_colour_of_a_png_is_the_one_that_its_code_points_name(
    chunks: list[Chunk], sample: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    """Catches gAMA over cICP, primaries without a matrix, and PQ that is shown as it is."""
    pixels = np.full((4, 4, 3), sample, np.uint8)
    got = shown(sources.with_chunks(sources.png(pixels), chunks))[0, 0, :3].astype(int)
    # What is tone-mapped goes through a table.
    assert np.abs(got - wanted).max() <= (1 if chunks[0][1][1] == 16 else 0)


def test_cicp_needs_no_more_than_its_four_bytes_and_says_nothing_with_another_matrix() -> None:
    """Catches YCbCr code points that are applied to RGB."""
    pixels = np.full((4, 4, 3), 128, np.uint8)
    source = sources.with_chunks(sources.png(pixels), [cicp(12, 8, 1, 1)])
    assert (shown(source)[..., :3] == 128).all()


# Sixteen bits


def test_a_wide_grey_with_alpha_has_the_profile_of_a_grey() -> None:
    """Catches the profile for grey that is dropped, because the decoder gives RGBA."""
    samples = np.dstack([np.full((4, 4), 40 * 257), np.full((4, 4), 65535)]).astype(np.uint16)
    source = sources.vips_png(samples)
    chunk = (b"iCCP", b"x\0\0" + zlib.compress(sources.grey_profile(1.8)))
    with Image.open(BytesIO(render(sources.with_chunks(source, [chunk]), WHOLE, Format.PNG,
                                   max_pixels=100).data)) as image:  # fmt: skip
        assert image.convert("RGB").getcolors() == [(16, (53, 53, 53))]


RAMP = (np.arange(128, dtype=np.uint16) * 512).reshape(8, 16)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize(
    ("key", "hidden"), [(0x8001, 0), (0x8000, 1), (0x80FF, 0), (0, 1)], ids=hex
)
def test_a_wide_transparent_colour_is_compared_in_all_its_bits(
    bands: int, key: int, hidden: int
) -> None:
    """Catches a comparison of the high bytes alone."""
    samples = RAMP if bands == 1 else np.dstack([RAMP] * 3)
    body = key.to_bytes(2, "big") * bands
    image = shown(sources.with_chunks(sources.vips_png(samples), [(b"tRNS", body)]))
    transparent = [16 * y + x for y, x in np.argwhere(image[..., 3] == 0)]
    assert transparent == ([key // 512] if hidden else [])


def test_a_wide_interlaced_transparent_colour_is_compared_likewise() -> None:
    """Catches low bytes that are decoded as rows of a picture that is not interlaced."""
    samples = np.dstack([RAMP, RAMP, RAMP])
    source = sources.vips_png(samples, interlace=True)
    body = (0x8000).to_bytes(2, "big") * 3
    image = shown(sources.with_chunks(source, [(b"tRNS", body)]))
    assert np.argwhere(image[..., 3] == 0).tolist() == [[4, 0]]


# Palettes


def indexed(palette: bytes | None) -> bytes:
    picture = Image.new("P", (8, 8))
    picture.putpalette([200, 60, 40])
    data = sources.encoded(picture, "PNG")
    at = data.index(b"PLTE") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    return (
        data[:at] + (b"" if palette is None else sources.png_chunk(b"PLTE", palette)) + data[end:]
    )


@pytest.mark.parametrize("palette", [None, b""], ids=["missing", "empty"])
def test_indices_into_nothing_are_no_picture(palette: bytes | None) -> None:
    """Catches a palette that is made up: grey, or black."""
    render(indexed(bytes([1, 2, 3])), WHOLE, None, max_pixels=100)
    with pytest.raises(UndecodableImage):
        render(indexed(palette), WHOLE, None, max_pixels=100)


def test_a_palette_is_converted_and_stays_one() -> None:
    """Catches truecolour, several times as large, because a file names its gamma."""
    source = sources.with_chunks(indexed(bytes([200, 60, 40])), [GAMMA], before=b"PLTE")
    result = render(source, WHOLE, None, max_pixels=100)
    with Image.open(BytesIO(result.data)) as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((0, 0)) == (215, 89, 64)


# Code points


def test_a_profile_of_code_points_is_none_only_if_there_is_nothing_to_convert() -> None:
    """Catches a conversion of sRGB to itself, and one that guesses what a number means."""
    assert profiles.of_code_points(1, 13) is None
    assert not profiles.knows(2, 13)
    assert not profiles.knows(1, 2)
    assert profiles.of_code_points(99, 99) is None
    assert profiles.of_code_points(12, 13) is not None


def test_every_curve_leads_from_black_to_white() -> None:
    """Catches a slope or an offset that is mistyped: the parts of a curve would not meet."""
    for code, curve in CURVES.items():
        light = [curve(step / 1000) for step in range(1001)]
        assert light[0] == 0
        assert light[-1] == pytest.approx(1.091 if code == 17 else 1, abs=1e-3)
        assert all(0 <= b - a < 0.01 for a, b in pairwise(light)), code


def test_a_gamma_of_zero_means_nothing_and_every_other_what_it_says() -> None:
    """Catches a division by zero, and an exponent that its field cannot hold."""
    assert profiles.of_gamma(0, None) is None
    grey = Image.new("L", (1, 1), 200)
    assert to_srgb(grey, profiles.of_gamma(1e-5, None)).getpixel((0, 0)) == 0
    assert to_srgb(grey, profiles.of_gamma(2**31 / 1e5, None)).getpixel((0, 0)) == 255


def test_chromaticities_that_are_no_triangle_are_none() -> None:
    """Catches a 500 for a matrix that has no inverse, or does not fit its field."""
    point = (0.3, 0.3)
    for white in ((0.3127, 0.329), (0.0, 0.0)):
        flat = Chromaticities(point, point, point, white)
        assert profiles.of_gamma(0.625, flat) is None


def test_grey_stays_grey_whatever_the_white_of_the_primaries() -> None:
    """Catches a white that is not adapted to that of the connection space."""
    ramp = Image.frombytes("RGB", (256, 1), bytes(value for v in range(256) for value in (v, v, v)))
    for code in (4, 8, 9, 10, 11, 12, 22):
        image = np.asarray(to_srgb(ramp, profiles.of_code_points(code, 13))).astype(int)
        assert np.abs(image - np.asarray(ramp)).max() <= 1, code


# Tone mapping


@pytest.mark.parametrize("peak", [204, 300, 400, 1000, 4000])
def test_tone_mapping_ends_at_white_and_never_turns_back(peak: float) -> None:
    """Catches a jump between the parts of the curve, and clipped highlights."""
    gain = tone_mapping.gain(peak)
    top = peak / tone_mapping.REFERENCE_WHITE
    light = [top * step / 5000 for step in range(5001)]
    mapped = [each * gain(each) for each in light]
    assert mapped[-1] == pytest.approx(1)
    assert all(-1e-9 <= b - a < 0.01 for a, b in pairwise(mapped))
    assert 2 * gain(2 * top) * top == pytest.approx(1), "beyond the peak is white"


def test_reference_white_is_half_the_light_of_an_sdr_white() -> None:
    """Catches reference white at the top, where highlights would have no room."""
    assert tone_mapping.gain(1000)(1) == pytest.approx(0.5)
    assert tone_mapping.gain(10_000)(1) == pytest.approx(0.5)
    strength = math.log(400 / 203) / math.log(1000 / 203)
    assert tone_mapping.gain(400)(0.2) == pytest.approx(1 - strength / 2)


@pytest.mark.parametrize("peak", [50, 203])
def test_content_within_the_range_of_a_display_stays_as_it_is(peak: float) -> None:
    """Catches SDR in a PQ file that is darkened, and a logarithm of 0.

    Also light beyond it that is scaled to white, where browsers clip each component alone.
    """
    gain = tone_mapping.gain(peak)
    assert gain(0) == gain(0.5) == gain(1) == gain(4) == 1


def test_pq_and_hlg_encode_what_their_standards_say() -> None:
    """Catches a mistyped constant (BT.2100, tables 4 and 5; BT.2408 for reference white)."""
    assert tone_mapping.pq(0) == 0
    assert tone_mapping.pq(1) * 203 == pytest.approx(10_000)
    assert tone_mapping.pq(0.58) == pytest.approx(1, abs=0.01)
    assert tone_mapping.hlg(0.5) == pytest.approx(1 / 12)
    assert tone_mapping.hlg(1) == pytest.approx(1, abs=1e-6)
    assert tone_mapping.hlg_display(0) == 0
    assert 203 * tone_mapping.hlg(0.75) * tone_mapping.hlg_display(
        tone_mapping.hlg(0.75)
    ) == pytest.approx(203, abs=1)


# JPEG


def test_the_parts_of_a_profile_are_read_until_none_is_missing() -> None:
    """Catches a profile that is dropped because an editor wrote it twice, or as a mixture."""
    first, second, other = b"first", b"second", b"other"
    for parts, wanted in {
        ((1, 2, first), (2, 2, second)): first + second,
        ((2, 2, second), (1, 2, first)): first + second,
        ((1, 1, first), (1, 1, other)): first,
        ((1, 1, first), (2, 1, other)): first,
        ((1, 2, first), (2, 2, second), (1, 2, first), (2, 2, second)): first + second,
        ((1, 2, first), (1, 2, first), (2, 2, second)): None,
        ((1, 2, first), (2, 3, second)): None,
        ((1, 2, first),): None,
        ((0, 1, first),): None,
        ((2, 1, first),): None,
        ((0, 0, first),): None,
    }.items():
        segments = [(0xE2, b"ICC_PROFILE\0" + bytes(part[:2]) + part[2]) for part in parts]
        source = sources.with_segments(sources.jpeg(np.zeros((8, 8, 3), np.uint8)), *segments)
        assert jpeg.inspect(source).profile == wanted, parts


# ISO media

PATCH = sources.avif(np.full((16, 16, 3), 128, np.uint8))


def test_code_points_are_those_of_the_primary_item() -> None:
    """Catches a profile for sRGB, and code points that are searched for in the whole file."""
    assert isobmff_color.profile_of(PATCH) is None
    source = with_colors(PATCH, nclx(12, 13))
    assert isobmff_color.profile_of(source) == profiles.of_code_points(12, 13)
    assert isobmff_color.profile_of(PATCH + b"\0\0\0\x13colrnclx\0\x0c\0\x0d\0\0\x80") is None


def test_a_peak_is_that_of_the_content() -> None:
    """Catches one curve for all HDR."""
    source = with_colors(PATCH, nclx(9, 16), light_level(400))
    assert isobmff_color.profile_of(source) == profiles.of_code_points(9, 16, 400)
    source = with_colors(PATCH, nclx(9, 16), light_level(0))
    assert isobmff_color.profile_of(source) == profiles.of_code_points(9, 16)


def test_the_transfer_of_cameras_is_that_of_displays_in_avif() -> None:
    """Catches BT.709 that is shown darker: browsers take it for sRGB there, and not in PNG."""
    for code in (1, 2, 6, 9, 14, 15, 99):
        assert isobmff_color.profile_of(with_colors(PATCH, nclx(1, code))) is None
    assert (shown(with_colors(PATCH, nclx(1, 1)))[..., :3] == 128).all()


def test_a_profile_comes_before_code_points() -> None:
    """Catches code points, which such files have for the matrix, over the profile."""
    both = shown(with_colors(PATCH, nclx(12, 8), icc(sources.ADOBE_RGB)))
    assert (both == shown(with_colors(PATCH, icc(sources.ADOBE_RGB)))).all()
    assert not (both == shown(with_colors(PATCH, nclx(12, 8)))).all()


def test_the_code_points_of_a_sequence_are_those_of_its_track() -> None:
    """Catches a moving picture that is shown in other colours than its first frame."""
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (90, 128)]
    source = sources.animation("AVIF", frames)
    assert source[8:12] == b"avis"
    at = source.rindex(b"colrnclx")
    assert at > source.index(b"stsd")
    tagged = source[: at + 8] + struct.pack(">HH", 1, 8) + source[at + 12 :]
    assert isobmff_color.profile_of(tagged) == profiles.of_code_points(1, 8)


def with_stream_colors(data: bytes, primaries: int, transfer: int) -> bytes:
    """An AVIF without ``colr`` whose AV1 stream, as Pillow writes it, says other code points."""
    data = with_colors(data)
    at = data.index(b"mdat") + 8  # after a delimiter, and the header of the sequence header
    header = int.from_bytes(data[at : at + 10], "big")
    said = (1 << 16 | 13 << 8 | 6, primaries << 16 | transfer << 8 | 6)
    (shift,) = (place for place in range(50) if header >> place & 0xFFFFFF == said[0])
    header ^= (said[0] ^ said[1]) << shift
    return data[:at] + header.to_bytes(10, "big") + data[at + 10 :]


def test_the_code_points_of_a_stream_count_without_a_colr() -> None:
    """Catches HDR of an encoder that writes no ``colr``, shown as if it were sRGB."""
    source = with_stream_colors(PATCH, 9, 16)
    assert isobmff_color.profile_of(source) == profiles.of_code_points(9, 16)
    assert (shown(with_stream_colors(PATCH, 1, 8))[..., :3] == 188).all()
    assert isobmff_color.profile_of(with_colors(PATCH)) is None
    at = source.index(b"free")
    tagged = source[:at] + b"colr" + source[at + 4 :]
    assert isobmff_color.profile_of(tagged) == profiles.of_code_points(9, 16), "no property of it"
    assert isobmff_color.profile_of(with_colors(source, nclx(2, 2))) is None


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_the_header_of_every_stream_is_read_to_its_colours(bits: int) -> None:
    """Catches a field that is skipped by a wrong number of bits."""
    image = pyvips.Image.new_from_array(sources.photo(200, 90))
    data = image.heifsave_buffer(compression="av1", bitdepth=bits, effort=0)
    for source in (data, sources.avif(sources.photo(300, 20)), sources.avif(sources.grey(99, 99))):
        at = source.index(b"mdat") + 4
        assert av1.code_points_of(source[at:]) == (1, 13)
        for cut in range(40):
            av1.code_points_of(source[at : at + cut])
    frames = [sources.photo(64, 48), sources.photo(64, 48)[::-1]]
    moving = sources.animation("AVIF", frames)
    assert av1.code_points_of(moving[moving.index(b"mdat") + 4 :]) == (1, 13)


def test_colours_of_a_grid_may_be_those_of_its_first_tile() -> None:
    """Catches a grid whose tiles alone say what their samples mean."""
    source = with_colors(PATCH, nclx(12, 13))
    meta = dict(boxes(source))[b"meta"]
    found = dict(boxes(meta[4:]))
    found[b"pitm"] = bytes(4) + (7).to_bytes(2, "big")
    found[b"iref"] = bytes(4) + joined([(b"dimg", struct.pack(">3H", 7, 1, 1))])
    parts = dict(boxes(found[b"iprp"]))
    ipma = parts[b"ipma"]
    parts[b"ipma"] = bytes(4) + struct.pack(">I", 2) + ipma[8:] + struct.pack(">HB", 7, 0)
    found[b"iprp"] = joined(list(parts.items()))
    grid = joined([(b"ftyp", b"avif"), (b"meta", bytes(4) + joined(list(found.items())))])
    assert isobmff_color.profile_of(grid) == profiles.of_code_points(12, 13)


def test_a_track_without_a_sample_entry_declares_nothing() -> None:
    """Catches a defect of ours by a few bytes of a stranger: a StopIteration."""
    source = bytearray(sources.animation("AVIF", [sources.photo(16, 12)] * 2))
    entry = source.index(b"stsd") + 12
    source[entry : entry + 4] = (4).to_bytes(4, "big")  # shorter than its own head
    assert isobmff_color.profile_of(bytes(source)) is None


def test_damage_to_the_boxes_of_colours_is_no_error() -> None:
    """Catches an IndexError or an endless walk: the decoder is to say what is wrong."""
    source = with_colors(PATCH, nclx(9, 16), light_level(400))
    for cut in range(len(source)):
        isobmff_color.profile_of(source[:cut])
    random = np.random.default_rng(5)
    for _ in range(2000):
        damaged = bytearray(source)
        for at in random.integers(0, 500, 3):
            damaged[min(at, len(source) - 1)] = random.integers(0, 256)
        isobmff_color.profile_of(bytes(damaged))
    assert isobmff_color.profile_of(joined([(b"meta", bytes(4))])) is None


@pytest.mark.parametrize("primaries", [1, 9, 12])
def test_heic_is_converted_from_its_code_points(primaries: int) -> None:
    """Catches code points that only AVIF has a use for."""
    pillow_heif = pytest.importorskip("pillow_heif")
    out = BytesIO()
    picture = Image.new("RGB", (64, 64), (200, 80, 80))
    pillow_heif.from_pillow(picture).save(out, quality=100, chroma=444)
    source = with_colors(out.getvalue(), nclx(primaries, 13))
    wanted = {1: (200, 80, 80), 9: (244, 37, 75), 12: (216, 69, 75)}[primaries]
    assert np.abs(shown(source)[32, 32, :3].astype(int) - wanted).max() <= 4


# PNG


def test_of_two_chunks_of_a_kind_the_first_counts() -> None:
    """Catches a file whose colours depend on what somebody appended."""
    other = (b"gAMA", (100_000).to_bytes(4, "big"))
    source = sources.with_chunks(sources.png(np.zeros((4, 4), np.uint8)), [GAMMA, other])
    assert png.inspect(source).profile == profiles.of_gamma(0.625, None)


def test_a_damaged_chunk_says_nothing() -> None:
    """Catches a checksum that nobody verifies."""
    source = sources.with_chunks(sources.png(np.zeros((4, 4), np.uint8)), [cicp(12, 8, 0, 1)])
    assert png.inspect(source).profile is not None
    at = source.index(b"cICP") + 8
    assert png.inspect(source[:at] + bytes([source[at] ^ 1]) + source[at + 1 :]).profile is None


def test_a_cicp_tag_of_a_profile_is_read_wherever_it_stands() -> None:
    """Catches an offset that leads out of the profile, and another matrix or range."""
    rows = ((0.67, 0.28, 0.0), (0.17, 0.68, 0.03), (0.13, 0.05, 0.8))
    head = b"cicp\0\0\0\0"
    for body, wanted in (
        (bytes([9, 16, 0, 1]), (9, 16)),
        (bytes([9, 16, 9, 1]), None),
        (bytes([9, 16, 0, 0]), None),
        (bytes([2, 16, 0, 1]), None),
        (bytes([9, 16, 0]), None),
    ):
        profile = sources.rgb_profile(*rows, 2.4, {b"cicp": head + body})
        assert profiles.code_points_of(profile) == wanted
        for cut in range(len(profile) - len(head + body)):
            profiles.code_points_of(profile[:cut])
    assert profiles.code_points_of(b"") is None


# Settings


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "photograph"])
def test_an_avif_of_a_drawn_picture_keeps_its_chroma(drawn: bool) -> None:
    """Catches coarse chroma beside the hard edges of pixel art, and bytes lost on photographs."""
    pixels = sources.pixel_art(96, 96) if drawn else sources.photo(96, 96)
    result = render(sources.png(pixels), WHOLE, Format.AVIF, max_pixels=10_000)
    at = result.data.index(b"av1C") + 4
    assert result.data[at + 2] >> 2 & 3 == (0 if drawn else 3)

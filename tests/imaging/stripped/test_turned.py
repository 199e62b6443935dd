"""JPEGs that are turned upright without a loss."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from proxy.imaging.pipeline import render
from proxy.imaging.stripped import jpeg_turn
from proxy.imaging.stripped.copies import strip, turn
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.reference import decode

PHOTO = sources.photo(64, 48)
FITS = Preset(width=64, fit="contain", quality=95)
ANY = 1 << 20

ORIENTATIONS = pytest.mark.parametrize("orientation", range(2, 9))


def coarse(pixels: sources.Pixels, orientation: int, **options: object) -> bytes:
    """A file that the preset cannot make smaller."""
    return sources.jpeg(pixels, exif=sources.exif(orientation), **{"quality": 50, **options})


def luma(data: bytes, *, upright: bool = False) -> sources.Pixels:
    """The first component, which no upsampling changes."""
    with Image.open(BytesIO(data)) as image:
        image.draft("L", image.size)
        shown = ImageOps.exif_transpose(image) if upright else image
        return np.asarray(shown.convert("L"))


@ORIENTATIONS
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_each_orientation_is_turned_without_a_loss(orientation: int, subsampling: str) -> None:
    """Catches blocks in the wrong order, and signs and tables that did not move with them."""
    source = coarse(PHOTO, orientation, subsampling=subsampling)
    copy = turn(source, orientation, most=ANY)
    assert copy is not None
    # Equal but for the rounding of the inverse transform, whose rows and columns changed places.
    wanted, got = luma(source, upright=True).astype(int), luma(copy).astype(int)
    assert wanted.shape == got.shape
    assert np.abs(wanted - got).max() <= 1
    with Image.open(BytesIO(source)) as image:
        shown = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert np.abs(shown - decode(copy)).mean() < 0.5
    assert len(copy) <= len(source)
    assert strip(Format.JPEG, copy) == copy


@ORIENTATIONS
def test_two_turns_lead_back_to_every_coefficient(orientation: int) -> None:
    """Catches a loss that one turn hides."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    source = strip(Format.JPEG, sources.jpeg(PHOTO, quality=50, subsampling=2))
    assert source is not None
    once = turn(source, orientation, most=ANY)
    assert once is not None
    twice = turn(once, back, most=ANY)
    assert twice is not None
    assert np.array_equal(decode(twice), decode(source))


@ORIENTATIONS
def test_grey_and_restarts_are_turned_too(orientation: int) -> None:
    """Catches units that are counted as if there were three components, or one interval."""
    for pixels, options in (
        (sources.grey(64, 48), {}),
        (PHOTO, {"restart_marker_blocks": 3}),
        (PHOTO, {"keep_rgb": True}),
        (PHOTO, {"quality": 100}),
    ):
        source = coarse(pixels, orientation, **options)
        copy = turn(source, orientation, most=ANY)
        assert copy is not None
        wanted, got = luma(source, upright=True).astype(int), luma(copy).astype(int)
        assert np.abs(wanted - got).max() <= 1


@pytest.mark.parametrize(
    ("width", "height", "turned"),
    [
        (60, 48, {4, 5, 6}),
        (64, 45, {2, 5, 8}),
        (64, 48, {2, 3, 4, 5, 6, 7, 8}),
        (61, 45, {5}),
    ],
)
def test_blocks_that_the_edge_cuts_are_not_mirrored(
    width: int, height: int, turned: set[int]
) -> None:
    """Catches the invented pixels beyond the edge, moved into the picture."""
    pixels = sources.photo(width, height)
    found = {
        orientation
        for orientation in range(2, 9)
        if turn(coarse(pixels, orientation), orientation, most=ANY) is not None
    }
    assert found == turned


@ORIENTATIONS
def test_a_turned_source_that_fits_is_not_made_larger(orientation: int) -> None:
    """Catches an orientation that costs a generation, and half of the bytes again."""
    source = coarse(PHOTO, orientation)
    preset = FITS.model_copy(update={"width": 64})
    result = render(source, preset, None, max_pixels=10**6).data
    assert len(result) <= len(source)
    assert b"Exif" not in result
    assert np.abs(luma(result).astype(int) - luma(source, upright=True)).max() <= 1


def test_a_large_picture_is_not_turned_in_python() -> None:
    """Catches a request that takes seconds."""
    source = coarse(sources.photo(2048, 1600), 6)
    assert turn(source, 6, most=ANY) is None
    assert 2048 * 1600 * 1.5 / 64 + len(source) / 2 > jpeg_turn.MOST_STEPS


def test_codes_are_at_most_sixteen_bits_and_none_is_all_ones() -> None:
    """Catches a table that decoders refuse: frequencies that double make the deepest tree."""
    lengths = jpeg_turn.code_lengths({symbol: 2**symbol for symbol in range(40)})
    assert [length for _, length in lengths] == sorted(length for _, length in lengths)
    assert max(length for _, length in lengths) == 16
    assert sum(2.0**-length for _, length in lengths) <= 1 - 2.0**-16
    assert jpeg_turn.code_lengths({7: 1}) == [(7, 1)]


@given(st.integers(2, 8), st.integers(20, 900), st.binary(max_size=6), st.integers(0, 6))
def test_damaged_files_are_turned_or_not(orientation: int, at: int, more: bytes, skip: int) -> None:
    """Catches an exception, which would fail a picture that was encoded already."""
    source = coarse(PHOTO, 1)
    damaged = source[:at] + more + source[at + skip :]
    copy = turn(damaged, orientation, most=ANY)
    assert copy is None or strip(Format.JPEG, copy) == copy

"""The first frame of a GIF, as browsers show it."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.gifs import COLORS, PALETTE, frame, gif

PRESET = Preset(width=1000, fit="contain", quality=95)


def shown(source: bytes) -> sources.Pixels:
    result = render(source, PRESET, Format.PNG, max_pixels=10**6)
    with Image.open(BytesIO(result.data)) as image:
        return np.asarray(image.convert("RGBA"))


def expected(
    size: tuple[int, int], box: tuple[int, int, int, int], color: tuple[int, int, int]
) -> sources.Pixels:
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = (*color, 255)
    return pixels


@pytest.mark.parametrize("background", [0, 1, 2, 200])
@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
@pytest.mark.parametrize("transparent", [None, 0, 2, 200])
def test_all_but_the_first_frame_is_transparent(
    background: int, disposal: int, transparent: int | None
) -> None:
    """Catches the background colour, or the palette's first, around a frame: browsers show none."""
    first = frame(16, 20, 32, 24, disposal=disposal, transparent=transparent)
    source = gif((64, 64), first, background=background)
    assert (shown(source) == expected((64, 64), (16, 20, 48, 44), COLORS[1])).all()


@pytest.mark.parametrize("box", [(0, 0, 64, 30), (0, 34, 64, 64), (0, 0, 20, 64), (63, 63, 64, 64)])
def test_a_frame_at_any_edge_leaves_the_rest_transparent(box: tuple[int, int, int, int]) -> None:
    """Catches a side of the canvas that is forgotten, or a border that is off by one."""
    left, top, right, bottom = box
    source = gif((64, 64), frame(left, top, right - left, bottom - top))
    assert (shown(source) == expected((64, 64), box, COLORS[1])).all()


def test_it_is_so_in_every_kind_of_gif() -> None:
    """Catches a rule for files with a control extension, a global palette, or colours alone."""
    wanted = expected((64, 64), (8, 8, 41, 39), COLORS[1])
    greys = bytes(level for level in range(4) for _ in range(3))
    shape = (8, 8, 33, 31)
    for source in (
        gif((64, 64), frame(*shape, control=False)),
        gif((64, 64), frame(*shape, control=False), version=b"GIF87a"),
        gif((64, 64), frame(*shape, interlaced=True)),
        gif((64, 64), frame(*shape, palette=PALETTE), palette=greys),
        gif((64, 64), frame(*shape, palette=PALETTE), palette=b""),
        gif((64, 64), frame(*shape), frame(0, 0, 64, 64)),
        gif((64, 64), frame(*shape), end=b""),
        gif((64, 64), frame(*shape), frame(0, 0, 64, 64)[:50], end=b""),
        gif((64, 64), frame(*shape), end=b";bytes behind the end"),
    ):
        assert (shown(source) == wanted).all()
    in_grey = shown(gif((64, 64), frame(*shape), palette=greys))
    assert (in_grey == expected((64, 64), (8, 8, 41, 39), (1, 1, 1))).all()


def test_a_frame_outside_its_canvas_enlarges_it_with_nothing() -> None:
    """Catches a canvas that is enlarged with a colour."""
    source = gif((64, 64), frame(40, 50, 64, 20))
    assert (shown(source) == expected((104, 70), (40, 50, 104, 70), COLORS[1])).all()
    source = gif((0, 0), frame(10, 12, 20, 20))
    assert (shown(source) == expected((30, 32), (10, 12, 30, 32), COLORS[1])).all()


def test_what_is_transparent_meets_white_in_a_jpeg() -> None:
    """Catches black, which is what nothing looks like to an encoder."""
    source = gif((64, 64), frame(16, 16, 32, 32))
    result = render(source, PRESET, None, max_pixels=10**6)
    assert result.format is Format.JPEG
    with Image.open(BytesIO(result.data)) as image:
        pixels = np.asarray(image)
    assert pixels[:7].min() > 250
    assert np.abs(pixels[28:36, 28:36].astype(int) - COLORS[1]).max() < 12


def test_a_transparent_grey_of_a_palette_of_greys_is_transparent() -> None:
    """Catches such a palette read as plain grey: then the transparent number is a shade."""
    greys = bytes(level for level in range(4) for _ in range(3))
    source = gif((64, 64), frame(0, 0, 64, 64, transparent=1), palette=greys)
    assert (shown(source)[..., 3] == 0).all()
    opaque = gif((64, 64), frame(0, 0, 64, 64, transparent=2), palette=greys)
    assert (shown(opaque) == expected((64, 64), (0, 0, 64, 64), (1, 1, 1))).all()


def test_a_frame_that_covers_its_canvas_keeps_its_palette() -> None:
    """Catches every GIF made four times larger for a case that few are."""
    source = gif((64, 64), frame(0, 0, 64, 64))
    result = render(source, PRESET, Format.PNG, max_pixels=10**6)
    with Image.open(BytesIO(result.data)) as image:
        assert image.mode == "P"


@pytest.mark.parametrize("shape", [(0, 32), (32, 0), (0, 0)])
@pytest.mark.parametrize("more", [b"", frame(0, 0, 64, 64)], ids=["alone", "first"])
def test_a_first_frame_without_pixels_shows_nothing(shape: tuple[int, int], more: bytes) -> None:
    """Catches a 422 for an empty canvas, which browsers show."""
    source = gif((64, 48), frame(5, 5, *shape), more)
    assert (shown(source) == np.zeros((48, 64, 4), np.uint8)).all()


def test_nothing_is_white_in_a_jpeg() -> None:
    """Catches an empty canvas that is black without alpha, or its one pixel enlarged."""
    source = gif((64, 48), frame(5, 5, 0, 0))
    result = render(source, PRESET, Format.JPEG, max_pixels=10**6)
    with Image.open(BytesIO(result.data)) as image:
        assert image.size == (64, 48)
        assert (np.asarray(image) == 255).all()


@pytest.mark.parametrize("transparent", [None, 0, 1])
def test_a_gif_without_any_palette_is_black(transparent: int | None) -> None:
    """Catches indices that are taken for greys: a still then differs from the frame that moves."""
    picture = shown(gif((64, 64), frame(8, 8, 32, 24, transparent=transparent), palette=b""))
    color = 4 * (0,) if transparent == 1 else (0, 0, 0, 255)
    assert (picture[8:32, 8:40] == color).all()
    assert not picture[:, :8].any()

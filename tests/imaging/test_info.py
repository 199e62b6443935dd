"""What is told of a picture: upright, in sRGB, and the same alone and beside results."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from proxy.errors import UndecodableImage, UnsupportedImage
from proxy.imaging.pipeline import render, render_each
from proxy.imaging.recipes import Recipe, Rendered
from proxy.imaging.workers import client
from proxy.model.formats import Format
from proxy.model.picture_info import INFO_PRESET
from proxy.model.presets import DEFAULT_PRESETS
from tests.imaging import sources
from tests.imaging.moving import saved

MOST = 10_000_000

TOLD = Recipe(preset=INFO_PRESET, output=Format.JSON)


def told(source: bytes) -> dict[str, Any]:
    made = render(source, INFO_PRESET, Format.JSON, max_pixels=MOST)
    assert made.format is Format.JSON
    found = json.loads(made.data)
    assert isinstance(found, dict)
    return found


def plain(color: tuple[int, ...], size: tuple[int, int] = (40, 30)) -> sources.Pixels:
    return np.full((size[1], size[0], len(color)), color, np.uint8)


def test_a_photograph_is_told_of_whole() -> None:
    source = sources.jpeg(sources.photo(300, 200))
    found = told(source)
    assert list(found) == [
        *("width", "height", "type", "bytes", "animated", "frames", "alpha"),
        *("thumbhash", "color"),
    ]
    assert (found["width"], found["height"], found["type"]) == (300, 200, "image/jpeg")
    assert (found["bytes"], found["animated"], found["frames"]) == (len(source), False, 1)
    assert found["alpha"] is False
    assert 5 < len(base64.b64decode(found["thumbhash"], validate=True)) <= 25


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_and_the_placeholder_are_upright(orientation: int) -> None:
    """Catches the stored size, and a placeholder that lies on its side."""
    upright = sources.photo(320, 160)
    turned = sources.png(sources.stored(upright, orientation), exif=sources.exif(orientation))
    expected = told(sources.png(upright))
    found = told(turned)
    assert (found["width"], found["height"]) == (320, 160)
    pairs = zip(
        base64.b64decode(found["thumbhash"]), base64.b64decode(expected["thumbhash"]), strict=True
    )
    # Turned after it is scaled, which rounds in another order: a step of each half at most.
    assert all(abs((a >> 4) - (b >> 4)) <= 1 and abs(a % 16 - b % 16) <= 1 for a, b in pairs)


@pytest.mark.parametrize("make", [sources.png, sources.jpeg, sources.webp, sources.avif])
def test_the_colour_is_the_average_that_is_seen(make: Any) -> None:
    found = told(make(plain((200, 100, 50))))
    parts = bytes.fromhex(found["color"].removeprefix("#"))
    assert all(abs(a - b) <= 3 for a, b in zip(parts, (200, 100, 50), strict=True))


def test_the_colour_is_converted_from_the_profile() -> None:
    """Catches a colour read as sRGB that a profile says otherwise of."""
    grey = np.full((8, 8), 55, np.uint8)
    assert told(sources.png(grey))["color"] == "#373737"
    # Half as much light as sRGB has for 128.
    linear = told(sources.png(grey, icc_profile=sources.grey_profile(1.0)))["color"]
    assert abs(int(linear[1:3], 16) - 128) <= 2


def test_one_pixel_that_is_not_opaque_is_alpha() -> None:
    """Catches alpha that is looked for in a small picture, and a channel that is opaque."""
    pixels = plain((10, 20, 30, 255), (2000, 900))
    assert told(sources.png(pixels))["alpha"] is False
    pixels[700, 1500, 3] = 254
    assert told(sources.png(pixels))["alpha"] is True


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "AVIF"])
def test_frames_are_counted(format_: str) -> None:
    """Catches frames that are only looked for where a preset lets them move."""
    photo = sources.photo(48, 32)
    frames = [Image.fromarray(each) for each in (photo, photo[::-1], photo[:, ::-1])]
    found = told(saved(format_, frames, duration=50))
    assert (found["animated"], found["frames"], found["width"]) == (True, 3, 48)


def test_it_is_the_same_beside_results_in_any_order() -> None:
    """Catches pixels that depend on what else is made of the source."""
    source = sources.jpeg(sources.photo(1200, 800))
    others = [Recipe(preset=each, output=None) for each in DEFAULT_PRESETS.values()][:3]
    alone = render(source, INFO_PRESET, Format.JSON, max_pixels=MOST)
    for recipes in ([TOLD, *others], [*others, TOLD]):
        outcomes = list(render_each(source, recipes, max_pixels=MOST))
        assert outcomes[recipes.index(TOLD)] == alone
    pictures = [render(source, each.preset, None, max_pixels=MOST) for each in others]
    assert outcomes[:3] == pictures


def test_what_is_no_picture_is_refused_as_by_a_preset() -> None:
    with pytest.raises(UnsupportedImage):
        told(b'{"width":1}')
    with pytest.raises(UndecodableImage):
        told(sources.png(sources.photo(64, 64))[:200])


@pytest.mark.parametrize(
    "forged",
    [b"<script>", b'{"width":1}', b"\xff\xd8\xff\xe0", b'{"width":' + b"[" * 10_000],
)
def test_a_worker_cannot_answer_with_anything_else(forged: bytes) -> None:
    """Catches bytes of a worker that a picture controls, passed on as JSON."""
    with pytest.raises(ValueError, match="validation error"):
        client._checked(Format.JSON, forged, TOLD)


def test_a_worker_cannot_add_to_what_is_told() -> None:
    """Catches text of a picture's choice in a field, or in a field of its own."""
    made = render(sources.png(sources.photo(9, 9)), INFO_PRESET, Format.JSON, max_pixels=MOST)
    assert client._checked(Format.JSON, made.data, TOLD) == Rendered(made.data, Format.JSON)
    known = json.loads(made.data)
    for change in ({"color": "red"}, {"type": "text/html"}, {"thumbhash": "<b>"}, {"more": 1}):
        with pytest.raises(ValueError, match="validation error"):
            client._checked(Format.JSON, json.dumps({**known, **change}).encode(), TOLD)


def test_no_picture_is_told_as_json() -> None:
    """Catches JSON in the place of a picture that was asked for."""
    made = render(sources.png(sources.photo(9, 9)), INFO_PRESET, Format.JSON, max_pixels=MOST)
    picture = Recipe(preset=DEFAULT_PRESETS["avatar"], output=None)
    with pytest.raises(ValueError, match="json"):
        client._checked(Format.JSON, made.data, picture)

"""Moving results as Chromium draws them, beside what it draws of their sources."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

import numpy as np
import pytest
import pyvips
from PIL import Image

from proxy.imaging.animation.avif_movie import finished
from proxy.imaging.pipeline import render
from proxy.imaging.recipes import Rendered
from proxy.model import formats
from proxy.model.formats import Format
from proxy.model.presets import Preset
from tests.imaging import moving, sources
from tests.imaging.browser_frames import Film
from tests.imaging.moving import GifFrame, PngFrame, WebpFrame
from tests.imaging.reference import Plane, expected
from tests.imaging.sources import Pixels

pytestmark = [pytest.mark.slow, pytest.mark.browser]

WIDTH, HEIGHT = 160, 120

CONTAIN = Preset(width=80, fit="contain", quality=90, animated=True)
COVER = Preset(width=60, height=60, fit="cover", quality=90, animated=True)
SAME = Preset(width=WIDTH, fit="contain", quality=90, animated=True)

Show = Callable[[bytes, str], Film]


def panning() -> list[Image.Image]:
    """Everything changes."""
    photo = sources.photo(WIDTH, HEIGHT)
    return [Image.fromarray(np.roll(photo, 24 * at, 1)) for at in range(5)]


def bouncing() -> list[Image.Image]:
    """A disc before a photograph: little changes, at two places."""
    return [_disc(Image.fromarray(sources.photo(WIDTH, HEIGHT)), at) for at in range(5)]


def floating() -> list[Image.Image]:
    """Discs of photographs before nothing: what they leave has to be cleared."""
    return [_disc(Image.new("RGBA", (WIDTH, HEIGHT)), at) for at in range(5)]


def drawn() -> list[Image.Image]:
    """Few colours and hard edges; twice the same frame."""
    art = Image.fromarray(sources.pixel_art(WIDTH, HEIGHT, 4))
    return [_disc(art.copy(), at) for at in (0, 1, 1, 3)]


def _disc(image: Image.Image, at: int) -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    inside = np.hypot(x - 30 - 24 * at, y - 40 - 10 * (at % 3)) < 18
    filled = Image.fromarray(sources.photo(WIDTH, HEIGHT, at + 2)).convert(image.mode)
    image.paste(filled, mask=Image.fromarray(inside))
    return image


PICTURES = {"panning": panning, "bouncing": bouncing, "floating": floating, "drawn": drawn}

MILLISECONDS = (50, 0, 120, 10, 70)
"""Browsers show two of them for 100."""


def gif_of(images: list[Image.Image], plays: int) -> bytes:
    frames = []
    for image, milliseconds in zip(images, MILLISECONDS, strict=False):
        few = image.convert("RGB").quantize(255, dither=Image.Dither.NONE)
        palette = np.array(few.getpalette()).reshape(-1, 3)
        colors = [tuple(map(int, color)) for color in palette[:255]]
        colors += [(0, 0, 0)] * (256 - len(colors))
        indices = np.array(few)
        if image.mode == "RGBA":
            indices[np.asarray(image)[..., 3] == 0] = 255
        see_through = 255 if image.mode == "RGBA" else None
        frames.append(
            GifFrame(indices, 0, 0, 2, see_through, milliseconds // 10, tuple(colors))  # type: ignore[arg-type]
        )
    loops = None if plays == 1 else max(plays - 1, 0)
    return moving.gif(frames, (WIDTH, HEIGHT), colors=(), loops=loops)


def webp_of(images: list[Image.Image], plays: int) -> bytes:
    frames = [
        WebpFrame(image, blends=False, duration=milliseconds)
        for image, milliseconds in zip(images, MILLISECONDS, strict=False)
    ]
    return moving.webp(frames, (WIDTH, HEIGHT), plays=plays)


def apng_of(images: list[Image.Image], plays: int) -> bytes:
    frames = [
        PngFrame(image, delay=(milliseconds, 1000))
        for image, milliseconds in zip(images, MILLISECONDS, strict=False)
    ]
    return moving.apng(frames, plays=plays)


def avif_of(images: list[Image.Image], plays: int) -> bytes:
    # Chromium 156 takes the samples of any sequence for those of a limited range.
    options = {"quality": 95, "subsampling": "4:4:4", "range": "limited"}
    durations = list(MILLISECONDS[: len(images)])
    return finished(moving.saved("AVIF", images, duration=durations, **options), plays)


MAKERS = {"gif": gif_of, "webp": webp_of, "apng": apng_of, "avif": avif_of}


def made(source: bytes, preset: Preset, output: Format | None) -> Rendered:
    return render(source, preset, output, max_pixels=10**7)


def at_each_moment(first: Film, second: Film) -> Iterator[tuple[Pixels, ...]]:
    """What both show, between all moments at which either changes."""
    ends = [list(accumulate(frame.duration for frame in film.frames)) for film in (first, second)]
    for begin, end in pairwise(sorted({0.0, *ends[0], *ends[1]})):
        if end - begin < 2:  # rounded durations
            continue
        middle = (begin + end) / 2
        yield tuple(
            film.frames[min(bisect(each, middle), len(each) - 1)].pixels
            for film, each in zip((first, second), ends, strict=True)
        )


def on_grey(pixels: Pixels) -> Plane:
    alpha = pixels[..., 3:] / 255 if pixels.shape[2] == 4 else np.ones((1, 1, 1))
    mixed: Plane = pixels[..., :3] * alpha + 128 * (1 - alpha)
    return mixed


def scaled(pixels: Pixels, preset: Preset) -> Pixels:
    return expected(pyvips.Image.new_from_array(pixels).copy(interpretation="srgb"), preset)


@pytest.mark.parametrize("output", [None, Format.WEBP])
@pytest.mark.parametrize("preset", [CONTAIN, COVER, SAME], ids=["contain", "cover", "same"])
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_result_shows_at_each_moment_what_its_source_does(
    name: str, picture: str, preset: Preset, output: Format | None, show: Show
) -> None:
    """Catches frames out of order, rests of earlier ones, lost time, and colours gone astray."""
    source = MAKERS[name](PICTURES[picture](), 3)
    result = made(source, preset, output)
    format_ = formats.sniff(source)
    assert format_ is not None
    if result.format is format_:
        assert len(result.data) <= len(source)
    assert result.format is (output or format_)
    was = show(source, format_.content_type)
    now = show(result.data, result.format.content_type)
    assert len(now.frames) > 1
    assert (was.plays, now.plays) == (3, 3)
    assert not now.broken
    length = sum(frame.duration for frame in was.frames)
    assert abs(sum(frame.duration for frame in now.frames) - length) < 5
    for number, (wanted, got) in enumerate(at_each_moment(was, now)):
        reference = on_grey(scaled(wanted, preset))
        away = np.abs(on_grey(got) - reference)
        assert away.shape[:2] == got.shape[:2]
        # A palette, lossy coding, and edges that a GIF has to make hard.
        # Where a source is so small that only a lossy WebP is: that has coarse chroma.
        coarse = b"VP8 " in result.data
        most = {"drawn": 20 if coarse else 8}.get(picture, 4)
        assert away.mean() < most, number


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("plays", [1, 2, 0])
@pytest.mark.parametrize("output", [None, Format.WEBP])
def test_a_result_is_shown_as_often_as_its_source(
    name: str, plays: int, output: Format | None, show: Show
) -> None:
    """Catches a GIF that counts repetitions and a WebP that counts plays, and one that stops."""
    result = made(MAKERS[name](panning(), plays), CONTAIN, output)
    assert show(result.data, result.format.content_type).plays == (plays or math.inf)


def test_the_same_source_gives_the_same_bytes() -> None:
    """Catches the time of writing in an AVIF: one ETag would stand for many answers."""
    source = avif_of(panning(), 0)
    result = made(source, CONTAIN, None)
    assert b"ftypavis" in result.data
    for kind in (b"mvhd", b"tkhd", b"mdhd"):
        at = result.data.index(kind)
        assert result.data[at + 8 : at + 24] == bytes(16)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_each_frame_is_turned_upright(orientation: int, show: Show) -> None:
    """Catches a turned first frame alone, and a box for the picture before it is turned."""
    upright = [np.asarray(image) for image in panning()[:2]]
    stored = [Image.fromarray(sources.stored(frame, orientation)) for frame in upright]
    source = moving.saved(
        "WEBP", stored, lossless=True, duration=50, exif=sources.exif(orientation)
    )
    result = made(source, CONTAIN, None)
    shown = show(result.data, "image/webp").frames
    assert len(shown) == 2
    for frame, wanted in zip(shown, upright, strict=True):
        away = np.abs(on_grey(frame.pixels) - on_grey(scaled(wanted, CONTAIN)))
        assert away.mean() < 4


def test_frames_are_converted_to_srgb(show: Show) -> None:
    """Catches frames of Adobe RGB whose profile is dropped: they would be pale."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ((60, 200, 60), (200, 60, 60))]
    profile = {"icc_profile": sources.ADOBE_RGB}
    wanted = show(moving.saved("PNG", frames, **profile), "image/png").frames
    # Of an animated WebP, Chromium 156 ignores the profile; RFC 9649 (2.7.1.4) does not.
    for format_, type_ in (("PNG", "image/png"), ("WEBP", "image/webp")):
        options = {"lossless": True} if format_ == "WEBP" else {}
        source = moving.saved(format_, frames, duration=50, **profile, **options)
        for preset in (SAME, COVER, CONTAIN):
            result = made(source, preset, None)
            for frame, other in zip(show(result.data, type_).frames, wanted, strict=True):
                away = frame.pixels[5, 5].astype(int) - other.pixels[5, 5]
                assert np.abs(away).max() <= 4

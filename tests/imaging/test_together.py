"""Several results of one picture: the bytes of each are those it has alone, for one decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from PIL import Image

from proxy.errors import ImageTooLarge, ResultTooLarge, UndecodableImage, UnsupportedImage
from proxy.imaging import decode
from proxy.imaging.pipeline import render, render_each
from proxy.imaging.recipes import Outcome, Recipe, Rendered
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS, Preset
from tests.imaging import sources

pytestmark = pytest.mark.slow

SEED = ("avatar", "avatar_small", "banner", "content_preview", "content_full", "embed_thumbnail")
SMALL = Preset(width=64, height=48, fit="cover", quality=70)
MOST_PIXELS = 10**7

# A third of all sides, so that the matrix takes seconds.
PRESETS = {
    name: preset.model_copy(update={"width": preset.width // 3, "height": preset.height // 3})
    for name, preset in DEFAULT_PRESETS.items()
}
PHOTO = sources.photo(403, 301)

MAKERS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: sources.jpeg(sources.photo(667, 499), subsampling="4:2:0"),
    "jpeg on its side": lambda: sources.jpeg(
        PHOTO, exif=sources.exif(6), icc_profile=sources.ADOBE_RGB
    ),
    # Decoded at a fraction first, and then once more, nearer to full size.
    "drawn jpeg": lambda: sources.jpeg(sources.pixel_art(534, 401), subsampling=0),
    "progressive cmyk": lambda: sources.cmyk_jpeg(sources.cmyk(PHOTO), progressive=True),
    "png": lambda: sources.png(sources.with_alpha(PHOTO), compress_level=1),
    "palette": lambda: sources.encoded(
        Image.fromarray(sources.pixel_art(268, 201)).quantize(6), "PNG", transparency=2
    ),
    "bilevel": lambda: sources.encoded(Image.fromarray(PHOTO).convert("1"), "PNG"),
    "16 bit": lambda: sources.vips_png(sources.wide(sources.photo(200, 150)), bitdepth=16),
    "colour key": lambda: sources.with_chunks(
        sources.png(np.array(sources.pixel_art(200, 150))), [(b"tRNS", b"\0\x28\0\x28\0\x3c")]
    ),
    "gamma": lambda: sources.with_chunks(
        sources.png(sources.photo(200, 150)), [(b"gAMA", (100_000).to_bytes(4, "big"))]
    ),
    "webp": lambda: sources.webp(PHOTO),
    "animated webp": lambda: sources.animation("WEBP", [PHOTO, 255 - PHOTO], method=0),
    "gif": lambda: sources.gif(PHOTO),
    "animated gif": lambda: sources.animation("GIF", [PHOTO, 255 - PHOTO]),
    "avif": lambda: sources.avif(sources.with_alpha(sources.photo(300, 233))),
    "ten bit avif": lambda: sources.ten_bit_avif(sources.photo(300, 233)),
    "cut off": lambda: sources.jpeg(PHOTO)[:5_000],
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often a picture was decoded, by the fraction of its size."""
    counted: Counter[int] = Counter()
    load = decode.Original._load

    def count(original: decode.Original, fraction: int, keep: bool) -> decode.Decoded:
        counted[fraction] += 1
        return load(original, fraction, keep)

    monkeypatch.setattr(decode.Original, "_load", count)
    return counted


def alone(source: bytes, recipe: Recipe) -> tuple[type[Outcome], object]:
    try:
        outcome: Outcome = render(source, recipe.preset, recipe.output, max_pixels=MOST_PIXELS)
    except Exception as error:
        outcome = error
    return described(outcome)


def described(outcome: Outcome) -> tuple[type[Outcome], object]:
    """What can be compared."""
    return type(outcome), outcome if isinstance(outcome, Rendered) else str(outcome)


@EACH
def test_a_result_is_the_same_bytes_alone_and_in_any_company(make: Callable[[], bytes]) -> None:
    """Catches a strong ETag whose bytes depend on who asked beside it.

    A JPEG decoded at a half for one preset and used for one that alone decodes it at a quarter; a
    shared picture that a result was drawn into, or whose palette or notes an encoder changed.
    """
    source = make()
    outputs = (None, Format.PNG, Format.WEBP)
    recipes = [
        *(Recipe(preset=p, output=o) for p, o in product(PRESETS.values(), outputs)),
        Recipe(preset=SMALL, output=Format.AVIF),
        Recipe(preset=SMALL, output=Format.JPEG),
    ]
    expected = [alone(source, recipe) for recipe in recipes]
    together = [described(o) for o in render_each(source, recipes, max_pixels=MOST_PIXELS)]
    assert together == expected
    turned = [described(o) for o in render_each(source, recipes[::-1], max_pixels=MOST_PIXELS)]
    assert turned == expected[::-1]


@pytest.mark.parametrize("name", ["png", "palette", "webp", "gif", "avif"])
def test_six_presets_of_a_picture_cost_one_decode(name: str, decodes: Counter[int]) -> None:
    """Catches the work that this is for, done six times."""
    recipes = [Recipe(preset=PRESETS[preset], output=None) for preset in SEED]
    outcomes = list(render_each(MAKERS[name](), recipes, max_pixels=MOST_PIXELS))
    assert all(isinstance(outcome, Rendered) for outcome in outcomes)
    assert decodes == {1: 1}


def test_six_presets_of_a_jpeg_cost_a_decode_for_each_fraction(decodes: Counter[int]) -> None:
    """Catches one decode in full for all, which takes longer than those at the fractions."""
    source = MAKERS["jpeg"]()
    recipes = [Recipe(preset=PRESETS[preset], output=None) for preset in SEED]
    for recipe in recipes:
        render(source, recipe.preset, recipe.output, max_pixels=MOST_PIXELS)
    apart = dict(decodes)
    assert sum(apart.values()) == 6
    decodes.clear()
    list(render_each(source, recipes, max_pixels=MOST_PIXELS))
    assert decodes == dict.fromkeys(apart, 1)
    assert len(decodes) == 3


def test_a_picture_that_does_not_decode_is_tried_once(decodes: Counter[int]) -> None:
    """Catches a broken picture that costs as many attempts as there are presets."""
    source = sources.png(PHOTO)[:-2000]
    recipes = [Recipe(preset=PRESETS[preset], output=None) for preset in SEED]
    outcomes = list(render_each(source, recipes, max_pixels=MOST_PIXELS))
    assert [type(outcome) for outcome in outcomes] == [UndecodableImage] * 6
    assert decodes == {1: 1}


def test_what_is_wrong_with_the_file_is_wrong_for_every_recipe() -> None:
    """Catches an error that ends the job, and leaves the other recipes without an answer."""
    large = sources.png(sources.photo(9, 9))[:16] + b"\0\1\0\0\0\1\0\0" + bytes(99)
    recipes = [Recipe(preset=SMALL, output=output) for output in (None, Format.PNG, Format.WEBP)]
    for source, error in ((b"<svg/>", UnsupportedImage), (large, ImageTooLarge)):
        outcomes = list(render_each(source, recipes, max_pixels=MOST_PIXELS))
        assert [type(outcome) for outcome in outcomes] == [error] * 3


def test_a_result_that_is_too_large_is_its_own_recipes_affair() -> None:
    """Catches a tall picture that no preset can show because one of them cannot."""
    tall = sources.encoded(Image.new("L", (2, 70_000), 99), "PNG")
    contain = Preset(width=100, fit="contain", quality=80)
    recipes = [Recipe(preset=contain, output=Format.JPEG), Recipe(preset=SMALL, output=Format.JPEG)]
    first, second = render_each(tall, recipes, max_pixels=MOST_PIXELS)
    assert type(first) is ResultTooLarge
    assert isinstance(second, Rendered)

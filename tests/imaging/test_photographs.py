"""PNGs that are photographs: how they are told from drawings, and what becomes of them."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from proxy.imaging.memory_estimate import RESULT_BYTES, estimate
from proxy.imaging.photographs import TILE, is_photograph
from proxy.imaging.pipeline import render, render_each
from proxy.imaging.recipes import Recipe, Rendered
from proxy.model.formats import OUTPUTS, Format, sniff
from proxy.model.presets import DEFAULT_PRESETS, Preset
from tests.imaging import sources
from tests.processes import ROOT

PREVIEW = DEFAULT_PRESETS["content_preview"]
SETTING = PREVIEW.model_copy(update={"png": "photographs-to-jpeg"})

PHOTO = sources.photo(480, 360)
_MATPLOTLIB = importlib.util.find_spec("matplotlib")
assert _MATPLOTLIB is not None
assert _MATPLOTLIB.origin is not None
# Without an import: old releases warn of what they import themselves.
REAL = Path(_MATPLOTLIB.origin).with_name("mpl-data") / "sample_data/grace_hopper.jpg"
"""A photograph of a person, by a camera."""


def page_of_text(size: tuple[int, int] = (480, 360)) -> Image.Image:
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for top in range(4, size[1], 14):
        draw.text((6, top), "Sphinx of black quartz, judge my vow. " * 3, fill="black")
    return page


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def with_strip() -> Image.Image:
    """A photograph with a strip of letters along its edge."""
    image = Image.fromarray(PHOTO)
    image.paste(page_of_text((480, 96)), (0, 0))
    return image


def made(source: bytes, preset: Preset = SETTING, output: Format | None = None) -> Rendered:
    result = render(source, preset, output, max_pixels=10**8)
    assert sniff(result.data) is result.format
    return result


PHOTOGRAPHS = {
    "grain": Image.fromarray(PHOTO),
    "no grain": Image.fromarray(sources.photo(480, 360, grain=0)),
    "grey": Image.fromarray(sources.grey(480, 360)),
    "alpha that is opaque": Image.fromarray(PHOTO).convert("RGBA"),
    "a camera's": Image.open(REAL).convert("RGB"),
    "a camera's, of a poor JPEG": through_jpeg(Image.open(REAL), 50),
    "a camera's, out of focus": Image.open(REAL).filter(ImageFilter.GaussianBlur(1)).convert("RGB"),
    "a camera's, small": Image.open(REAL).resize((96, 112)).convert("RGB"),
}
OTHERS = {
    "text": page_of_text(),
    "text, scaled": page_of_text().resize((641, 481), Image.Resampling.LANCZOS),
    "text of a JPEG": through_jpeg(page_of_text(), 75),
    "pixel art": Image.fromarray(sources.pixel_art(480, 360)),
    "a gradient": Image.linear_gradient("L").resize((480, 360)).convert("RGB"),
    "one colour": Image.new("RGB", (480, 360), "navy"),
    "a screenshot": Image.open(ROOT / "docs/img/page.png").convert("RGB"),
    "a chart": Image.open(ROOT / "docs/dashboard.png").convert("RGB"),
    "a photograph with a strip of text": with_strip(),
    "see-through": Image.fromarray(sources.with_alpha(PHOTO)),
    "grey, see-through": Image.fromarray(sources.with_alpha(sources.grey(480, 360)), "LA"),
    "one pixel see-through": Image.fromarray(
        np.dstack([PHOTO, np.full((360, 480), 255, np.uint8)])
    ),
    "an icon": Image.fromarray(sources.photo(TILE - 1, 200)),
}
OTHERS["one pixel see-through"].putpixel((0, 0), (1, 2, 3, 254))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_is_told_by_its_grain(name: str) -> None:
    """Catches a rule that only noise passes: blur, old JPEGs and grey are photographs too."""
    assert is_photograph(PHOTOGRAPHS[name])


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_letters_lines_or_holes_is_no_photograph(name: str) -> None:
    """Catches text with a JPEG's rings around it, and transparency that turns white."""
    assert not is_photograph(OTHERS[name])


def png(image: Image.Image) -> bytes:
    return sources.encoded(image, "PNG")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_becomes_a_jpeg_where_that_is_set(name: str) -> None:
    """Catches a setting that is read and not followed, or followed where it is not set."""
    source = png(PHOTOGRAPHS[name])
    assert made(source).format is Format.JPEG
    assert made(source, PREVIEW).format is Format.PNG


@pytest.mark.parametrize("name", OTHERS)
def test_all_other_pngs_are_the_same_to_the_byte(name: str) -> None:
    """Catches a setting that changes what it does not mean."""
    source = png(OTHERS[name])
    assert made(source) == made(source, PREVIEW)


def test_the_jpeg_is_the_one_that_a_url_with_that_format_gets() -> None:
    """Catches pixels that depend on how the format was chosen."""
    wide = png(Image.fromarray(sources.photo(1200, 900)))
    assert made(wide) == made(wide, PREVIEW, Format.JPEG)
    deep = sources.vips_png(sources.wide(PHOTO))
    assert made(deep) == made(deep, PREVIEW, Format.JPEG)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_format_that_is_asked_for_is_what_comes(output: Format) -> None:
    """Catches ``@png`` answered with a JPEG."""
    source = png(PHOTOGRAPHS["grain"])
    assert made(source, SETTING, output) == made(source, PREVIEW, output)


def test_a_palette_is_no_photograph_however_many_colours_it_has() -> None:
    """Catches a picture that its maker has reduced, and that takes fewer bytes as it is."""
    source = png(Image.fromarray(PHOTO).quantize(256))
    assert made(source).format is Format.PNG


@pytest.mark.parametrize("source", [sources.jpeg(PHOTO), sources.webp(PHOTO), sources.avif(PHOTO)])
def test_sources_of_other_formats_are_not_concerned(source: bytes) -> None:
    """Catches an option of PNGs that reaches further."""
    assert made(source) == made(source, PREVIEW)


def test_an_apng_of_a_photograph_goes_on_moving() -> None:
    """Catches a moving picture that ends as a still."""
    frames = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1])]
    out = BytesIO()
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:], duration=100)
    animated = SETTING.model_copy(update={"animated": True})
    result = made(out.getvalue(), animated)
    assert result.format is Format.PNG
    assert Image.open(BytesIO(result.data)).is_animated  # type: ignore[attr-defined]
    assert made(out.getvalue()).format is Format.JPEG  # its first frame, by a preset of stills


def test_a_result_that_no_jpeg_holds_stays_a_png() -> None:
    """Catches a 400 for what was a picture without the setting."""
    source = png(Image.effect_noise((TILE, 66_000), 60))
    assert made(source) == made(source, PREVIEW)


def test_results_that_share_a_decode_are_those_that_are_made_alone() -> None:
    """Catches pixels that are gone when the second result wants them."""
    source = png(Image.fromarray(sources.photo(1200, 900)))
    recipes = [
        Recipe(preset=SETTING, output=None),
        Recipe(preset=PREVIEW, output=None),
        Recipe(preset=SETTING, output=Format.WEBP),
        Recipe(preset=SETTING.model_copy(update={"width": 300}), output=None),
    ]
    together = list(render_each(source, recipes, max_pixels=10**8))
    assert together == [made(source, each.preset, each.output) for each in recipes]


def test_the_memory_of_a_png_that_may_become_a_jpeg_is_that_of_the_dearer() -> None:
    """Catches a transform that is let in with less memory than it takes."""
    source = png(Image.fromarray(sources.photo(64, 64)))
    wide = {"width": 8192, "height": 8192, "fit": "cover", "quality": 80}
    kept = Preset.model_validate(wide)
    other = Preset.model_validate(wide | {"png": "photographs-to-jpeg"})
    of = {
        name: estimate(source, preset, output, max_pixels=10**8).memory
        for name, preset, output in (
            ("kept", kept, None),
            ("jpeg", kept, Format.JPEG),
            ("other", other, None),
            ("named", other, Format.PNG),
        )
    }
    assert RESULT_BYTES[Format.JPEG] > RESULT_BYTES[Format.PNG]
    assert of["other"] == of["jpeg"] > of["kept"] == of["named"]

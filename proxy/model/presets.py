"""Presets and their geometry: pure arithmetic on sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from proxy.model.formats import Format

MAX_SIDE = 8192
"""The longest side that a preset may have, in pixels: larger results are not previews."""

ENCODER_REVISION = 4
ENCODER_REVISIONS: dict[Format, int] = {Format.PNG: 7, Format.JSON: 1}
"""Raise one when an encoder's settings change: ETags and cache entries change with it. A format
can have its own revision. The first one is that of all others, and of URLs without a format: raise
it when any format changes that those give."""

FIRST_OPTIONS = frozenset({"width", "height", "fit", "quality", "animated"})
"""The options of the first release: in every fingerprint, whatever their values."""


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 (what pydantic reports)
    return value


NotBool = BeforeValidator(_refuse_bool)
"""For numbers: refuses ``true``, which is a number in Python but not in TOML."""


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _none_or_more(value: object) -> object:
    return () if value == "" else _comma_separated(value)


CommaSeparated = BeforeValidator(_comma_separated)
"""For lists: in the environment they are written with commas, because it has no lists."""

NoneOrMore = BeforeValidator(_none_or_more)
"""For lists that may be empty: an empty text in the environment is an empty list."""


Side = Annotated[int, NotBool, Field(ge=1, le=MAX_SIDE)]

WebpEffort = Annotated[int, NotBool, Field(ge=0, le=6)]
"""libwebp's method: 0 is the fastest, 6 makes the fewest bytes."""

DEFAULT_WEBP_EFFORT = 4

OfPng = Literal["keep", "photographs-to-jpeg"]
"""What a URL without a format gives of a still PNG: a PNG, or a JPEG where it is a photograph."""


class Contradiction(NamedTuple):
    """What is wrong with a combination of options, and which they are."""

    message: str
    options: tuple[str, ...]


class InconsistentPreset(ValueError):
    """The options of a preset contradict each other."""

    def __init__(self, found: list[Contradiction]) -> None:
        super().__init__("; ".join(each.message for each in found))
        self.found = found


class Preset(BaseModel, frozen=True, extra="forbid"):
    """What a named URL segment does to a picture.

    Attributes:
        width, height: the box in pixels. With a height of 0 only the width counts (contain only).
        fit: ``cover`` fills the box and crops to its centre, enlarging when it must;
            ``contain`` fits inside and never enlarges.
        quality: 1 to 100, for lossy encoders.
        animated: what moves keeps moving: GIF, animated WebP, PNG and AVIF.
        variants: further widths in pixels; each makes a preset of its own (``variants_of``).
        webp_effort: of a WebP that does not move.
        png: what a URL without a format gives of a PNG.
    """

    width: Side
    height: Annotated[int, NotBool, Field(ge=0, le=MAX_SIDE)] = 0
    fit: Literal["cover", "contain"]
    quality: Annotated[int, NotBool, Field(ge=1, le=100)]
    animated: bool = False
    variants: Annotated[tuple[Side, ...], NoneOrMore] = ()
    webp_effort: WebpEffort = DEFAULT_WEBP_EFFORT
    png: OfPng = "keep"

    @model_validator(mode="after")
    def _is_consistent(self) -> Preset:
        if found := list(self._contradictions()):
            raise InconsistentPreset(found)
        return self

    def _contradictions(self) -> Iterator[Contradiction]:
        if self.fit == "cover" and self.height == 0:
            told = "a preset with fit 'cover' needs a height of at least 1"
            yield Contradiction(told, ("fit", "height"))
        if len({self.width, *self.variants}) <= len(self.variants):
            told = "variants must be widths that differ from each other and from width"
            yield Contradiction(told, ("variants", "width"))
        for width in self.variants:
            if _height_at(self, width) > MAX_SIDE:
                told = f"a variant of width {width} would have a height over {MAX_SIDE}"
                yield Contradiction(told, ("variants", "width", "height"))

    def fingerprint(self, format_: Format | None) -> str:
        """Ten hexadecimal digits. They change with anything that changes the result's bytes."""
        # A later option counts only where it is set: a release that adds one re-keys no cache.
        own = self.model_dump_json(include=self._options_that_count(format_))
        revision = ENCODER_REVISIONS.get(format_, ENCODER_REVISION) if format_ else ENCODER_REVISION
        recipe = f"{own}|{format_ or 'source'}|{revision}"
        return hashlib.sha256(recipe.encode()).hexdigest()[:10]

    def _options_that_count(self, format_: Format | None) -> set[str]:
        later = type(self).model_fields.keys() - FIRST_OPTIONS - {"variants"}
        if format_ is not Format.WEBP:  # URLs without a format give no WebP, or one that moves
            later -= {"webp_effort"}
        if format_ is not None:
            later -= {"png"}
        return {*FIRST_OPTIONS, *(name for name in later if not self._is_default(name))}

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == type(self).model_fields[name].get_default())


DEFAULT_PRESETS: dict[str, Preset] = {
    "avatar": Preset(width=1000, height=1000, fit="cover", quality=85),
    "avatar_small": Preset(width=360, height=360, fit="cover", quality=80),
    "banner": Preset(width=640, height=300, fit="cover", quality=85),
    "content_preview": Preset(width=800, fit="contain", quality=80),
    "content_full": Preset(width=1600, fit="contain", quality=90, animated=True),
    "embed_thumbnail": Preset(width=720, height=360, fit="cover", quality=80),
    "avatar_thumbnail": Preset(width=128, height=128, fit="cover", quality=80),
    "feed_thumbnail": Preset(width=1000, height=1000, fit="contain", quality=80),
    "feed_fullsize": Preset(width=2000, height=2000, fit="contain", quality=90),
}


def variant_name(preset: str, width: int) -> str:
    """The name of a variant: ``avatar_w72``."""
    return f"{preset}_w{width}"


def variants_of(name: str, preset: Preset) -> dict[str, Preset]:
    """The presets that ``variants`` declares: like ``preset``, but with these widths.

    Their heights keep the proportions of the box, rounded half up; a height of 0 stays 0.
    """
    return {
        variant_name(name, width): preset.model_copy(
            update={"width": width, "height": _height_at(preset, width), "variants": ()}
        )
        for width in preset.variants
    }


def with_variants(presets: Mapping[str, Preset]) -> dict[str, Preset]:
    """``presets`` and all their variants, each after its preset.

    A preset that has the name of a variant stays as it is.
    """
    found: dict[str, Preset] = {}
    for name, preset in presets.items():
        found[name] = preset
        for variant, made in variants_of(name, preset).items():
            found[variant] = presets.get(variant, made)
    return found


def _height_at(preset: Preset, width: int) -> int:
    if preset.height == 0:
        return 0
    return max(_half_up(preset.height * width, preset.width), 1)


class Size(NamedTuple):
    """Width and height in pixels, both at least 1."""

    width: int
    height: int


class Box(NamedTuple):
    """A region of the source in source pixels; fractions are allowed."""

    left: float
    top: float
    right: float
    bottom: float


class Placement(NamedTuple):
    """The region of the source that becomes the result, and the size of the result."""

    crop: Box
    size: Size


def place(preset: Preset, source: Size) -> Placement:
    """The placement by which ``preset`` maps an upright source onto its result.

    Cover gives exactly the box. Contain rounds half up, to at least 1, in the same way everywhere.
    """
    if preset.fit == "cover":
        return _cover(Size(preset.width, preset.height), source)
    return Placement(Box(0, 0, *source), _contain(preset, source))


def _cover(box: Size, source: Size) -> Placement:
    scale = max(box.width / source.width, box.height / source.height)
    # Never larger than the source: in floats, 3 * (1 / 3) may exceed 1.
    width = min(box.width / scale, source.width)
    height = min(box.height / scale, source.height)
    left, top = (source.width - width) / 2, (source.height - height) / 2
    return Placement(Box(left, top, left + width, top + height), box)


def _contain(preset: Preset, source: Size) -> Size:
    width, height = source
    box_height = preset.height or height
    if width <= preset.width and height <= box_height:
        return source
    # Use only integers, so that every platform rounds in the same way.
    if preset.height == 0 or width * preset.height >= height * preset.width:
        return Size(preset.width, max(_half_up(height * preset.width, width), 1))
    return Size(max(_half_up(width * preset.height, height), 1), preset.height)


def _half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def fits(preset: Preset, source: Size) -> bool:
    """Whether a source already has the size that ``preset`` would give it."""
    return place(preset, source).size == source

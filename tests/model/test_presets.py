"""Presets: the sizes people's layouts depend on, and the arithmetic that makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.model.formats import OUTPUTS, Format
from proxy.model.presets import (
    DEFAULT_PRESETS,
    ENCODER_REVISIONS,
    MAX_SIDE,
    Box,
    Preset,
    Size,
    fits,
    place,
    with_variants,
)

SPECIFIED = {
    "avatar": (1000, 1000, "cover", 85, False),
    "avatar_small": (360, 360, "cover", 80, False),
    "banner": (640, 300, "cover", 85, False),
    "content_preview": (800, 0, "contain", 80, False),
    "content_full": (1600, 0, "contain", 90, True),
    "embed_thumbnail": (720, 360, "cover", 80, False),
    "avatar_thumbnail": (128, 128, "cover", 80, False),
    "feed_thumbnail": (1000, 1000, "contain", 80, False),
    "feed_fullsize": (2000, 2000, "contain", 90, False),
}
SEED_NAMES = list(SPECIFIED)[:6]


@pytest.mark.parametrize("name", SPECIFIED)
def test_a_default_preset_is_exactly_the_specified_one(name: str) -> None:
    """Catches a size, fit or quality that drifted: every published URL would show it."""
    preset = DEFAULT_PRESETS[name]
    assert (
        preset.width,
        preset.height,
        preset.fit,
        preset.quality,
        preset.animated,
    ) == SPECIFIED[name]


def test_there_are_nine_default_presets_and_the_first_six_are_the_seeds() -> None:
    """Catches a preset that was added or lost by accident."""
    assert list(DEFAULT_PRESETS) == list(SPECIFIED)
    assert list(DEFAULT_PRESETS)[:6] == SEED_NAMES


@pytest.mark.parametrize("name", SPECIFIED)
def test_every_default_preset_would_be_accepted_from_a_file(name: str) -> None:
    """Catches defaults that skip the checks which a preset of the operator has to pass."""
    preset = DEFAULT_PRESETS[name]
    assert Preset.model_validate(preset.model_dump()) == preset


@pytest.mark.parametrize(
    "changes",
    [
        {"quality": 1},
        {"quality": 100},
        {"width": 1, "height": 1},
        {"width": MAX_SIDE, "height": MAX_SIDE},
        {"fit": "contain", "height": 0},
        {"fit": "contain"},
        {"animated": True},
        {"webp_effort": 0},
        {"webp_effort": 6},
        {"png": "photographs-to-jpeg"},
    ],
    ids=str,
)
def test_a_preset_at_the_edge_of_what_is_allowed_is_accepted(changes: dict[str, object]) -> None:
    """Catches bounds that are off by one."""
    values = {"width": 160, "height": 160, "fit": "cover", "quality": 85, **changes}
    assert Preset.model_validate(values).model_dump() == {
        "animated": False,
        "variants": (),
        "webp_effort": 4,
        "png": "keep",
        **values,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 0},
        {"width": -100},
        {"width": MAX_SIDE + 1},
        {"width": 99.5},
        {"width": True},
        {"width": None},
        {"height": -1},
        {"height": MAX_SIDE + 1},
        {"height": True},
        {"height": 0},  # of cover
        {"quality": 0},
        {"quality": -1},
        {"quality": 101},
        {"quality": 85.5},
        {"quality": True},
        {"fit": "unknown"},
        {"fit": "COVER"},
        {"fit": ""},
        {"animated": "perhaps"},
        {"png": "jpeg"},
        {"colour": "grey"},
    ],
    ids=str,
)
def test_a_preset_beyond_what_is_allowed_is_refused(changes: dict[str, object]) -> None:
    """Catches a preset that fails with the first request instead of at the start."""
    with pytest.raises(ValidationError):
        Preset.model_validate(
            {"width": 160, "height": 160, "fit": "cover", "quality": 85, **changes}
        )


@pytest.mark.parametrize("missing", ["width", "fit", "quality"])
def test_what_a_preset_cannot_do_without_has_no_default(missing: str) -> None:
    """Catches a preset whose quality or fit nobody chose."""
    values = {"width": 160, "height": 160, "fit": "cover", "quality": 85}
    del values[missing]
    with pytest.raises(ValidationError):
        Preset.model_validate(values)


def cover(width: int, height: int) -> Preset:
    return Preset(width=width, height=height, fit="cover", quality=85)


def contain(width: int, height: int = 0) -> Preset:
    return Preset(width=width, height=height, fit="contain", quality=85)


@pytest.mark.parametrize(
    ("box", "source", "crop"),
    [
        # The seed's cases.
        ((1000, 1000), (800, 600), (100, 0, 700, 600)),
        ((1000, 1000), (600, 800), (0, 100, 600, 700)),
        ((360, 360), (500, 500), (0, 0, 500, 500)),
        ((640, 300), (1920, 1080), (0, 90, 1920, 990)),
        ((720, 360), (1600, 900), (0, 50, 1600, 850)),
        # The same size, the same shape, smaller than the box.
        ((640, 300), (640, 300), (0, 0, 640, 300)),
        ((640, 300), (1280, 600), (0, 0, 1280, 600)),
        ((640, 300), (64, 30), (0, 0, 64, 30)),
        # Halves: the centre of an odd rest is between two pixels.
        ((100, 100), (103, 100), (1.5, 0, 101.5, 100)),
        ((100, 100), (100, 101), (0, 0.5, 100, 100.5)),
        # Extremes.
        ((1000, 1000), (1, 1), (0, 0, 1, 1)),
        ((1000, 1000), (20_000, 1), (9999.5, 0, 10_000.5, 1)),
        ((1000, 1000), (1, 20_000), (0, 9999.5, 1, 10_000.5)),
        ((3, 1), (1, 1), (0, 1 / 3, 1, 2 / 3)),
    ],
)
def test_cover_fills_the_box_from_the_centre(
    box: tuple[int, int], source: tuple[int, int], crop: tuple[float, float, float, float]
) -> None:
    """Catches a crop from a corner, a box left partly empty, and small sources left small."""
    placement = place(cover(*box), Size(*source))
    assert placement.size == box
    assert placement.crop == pytest.approx(crop, abs=1e-9)


@pytest.mark.parametrize(
    ("box", "source", "size"),
    [
        # The seed's cases; the second rounds half up where the seed cut off: 1422.2 either way.
        ((800, 0), (1600, 900), (800, 450)),
        ((800, 0), (900, 1600), (800, 1422)),
        ((1600, 0), (3200, 800), (1600, 400)),
        ((800, 0), (400, 300), (400, 300)),
        # Height 0: by width alone, however tall.
        ((800, 0), (800, 20_000), (800, 20_000)),
        ((800, 0), (801, 20_000), (800, 19_975)),
        ((800, 0), (799, 20_000), (799, 20_000)),
        # A box: the tighter side decides.
        ((1000, 1000), (2000, 1000), (1000, 500)),
        ((1000, 1000), (1000, 2000), (500, 1000)),
        ((1000, 1000), (2000, 2000), (1000, 1000)),
        ((1000, 1000), (1000, 1000), (1000, 1000)),
        ((1000, 1000), (999, 1001), (998, 1000)),
        ((1000, 500), (800, 600), (667, 500)),
        ((1000, 500), (10, 501), (10, 500)),
        # Rounding: half goes up, just below goes down.
        ((100, 0), (200, 3), (100, 2)),
        ((100, 0), (200, 5), (100, 3)),
        ((100, 0), (200, 1), (100, 1)),
        ((100, 0), (300, 4), (100, 1)),
        ((100, 0), (300, 5), (100, 2)),
        ((100, 100), (3, 200), (2, 100)),
        ((100, 100), (5, 200), (3, 100)),
        # Never 0.
        ((800, 0), (20_000, 1), (800, 1)),
        ((1000, 1000), (20_000, 1), (1000, 1)),
        ((1000, 1000), (1, 20_000), (1, 1000)),
        ((1, 1), (20_000, 1), (1, 1)),
        ((1, 0), (1, 20_000), (1, 20_000)),
        ((800, 0), (1, 1), (1, 1)),
    ],
)
def test_contain_fits_inside_and_never_enlarges(
    box: tuple[int, int], source: tuple[int, int], size: tuple[int, int]
) -> None:
    """Catches enlarging, a side of 0, a height of 0 taken as a bound, banker's rounding."""
    placement = place(contain(*box), Size(*source))
    assert placement.size == size
    assert placement.crop == Box(0, 0, *source), "contain shows the whole picture"


@pytest.mark.parametrize(
    ("preset", "source", "answer"),
    [
        (cover(640, 300), (640, 300), True),
        (cover(640, 300), (641, 300), False),
        (cover(640, 300), (640, 299), False),
        (cover(640, 300), (64, 30), False),
        (contain(800), (800, 9000), True),
        (contain(800), (801, 1), False),
        (contain(800), (1, 1), True),
        (contain(1000, 1000), (1000, 1000), True),
        (contain(1000, 1000), (1000, 1001), False),
        (contain(1000, 1000), (1, 1000), True),
    ],
)
def test_a_source_fits_when_the_preset_would_leave_its_size(
    preset: Preset, source: tuple[int, int], answer: bool
) -> None:
    """Catches a source served in place of a smaller result, and one enlarged for nothing."""
    assert fits(preset, Size(*source)) is answer


sides = st.one_of(st.integers(1, MAX_SIDE), st.sampled_from([1, 2, 3, 999, 1000, 1001, MAX_SIDE]))
sources = st.builds(Size, st.integers(1, 100_000), st.integers(1, 100_000))


@given(width=sides, height=sides, source=sources)
def test_a_cover_crop_lies_in_the_source_and_has_the_shape_of_the_box(
    width: int, height: int, source: Size
) -> None:
    """Catches a region that floats push over an edge: a decoder would read beside the picture."""
    placement = place(cover(width, height), source)
    crop = placement.crop
    assert placement.size == (width, height)
    assert 0 <= crop.left < crop.right
    assert 0 <= crop.top < crop.bottom
    assert crop.right <= source.width + 1e-6
    assert crop.bottom <= source.height + 1e-6
    assert crop.left == pytest.approx(source.width - crop.right, abs=1e-6)
    assert crop.top == pytest.approx(source.height - crop.bottom, abs=1e-6)
    aspect = (crop.right - crop.left) / (crop.bottom - crop.top)
    assert aspect == pytest.approx(width / height, rel=1e-6)
    touches_a_side = crop.left < 1e-6 or crop.top < 1e-6
    assert touches_a_side, "more is cropped than has to be"


@given(width=sides, height=st.one_of(st.just(0), sides), source=sources)
def test_a_contained_result_is_within_box_and_source_and_keeps_its_shape(
    width: int, height: int, source: Size
) -> None:
    """Catches a result one pixel over its box, and a shape off by more than rounding."""
    result = place(contain(width, height), source).size
    assert 1 <= result.width <= min(width, source.width)
    assert 1 <= result.height <= source.height
    assert height == 0 or result.height <= height
    scale = min(
        Fraction(1),
        Fraction(width, source.width),
        Fraction(height or source.height, source.height),
    )
    for side, original in zip(result, source, strict=True):
        assert side == 1 or abs(side - original * scale) <= Fraction(1, 2)
    if scale < 1:
        assert result.width == width or result.height == height, "smaller than it has to be"


@given(width=sides, height=st.one_of(st.just(0), sides), source=sources)
def test_contain_is_idempotent(width: int, height: int, source: Size) -> None:
    """Catches a result that would shrink again when it is put through its own preset."""
    preset = contain(width, height)
    assert fits(preset, place(preset, source).size)


BASE = {"width": 100, "height": 100, "fit": "cover", "quality": 80, "animated": False}


def test_a_fingerprint_changes_with_every_parameter_and_every_format() -> None:
    """Catches a changed preset that serves yesterday's pixels under an immutable ETag."""
    changes: list[dict[str, object]] = [
        {},
        {"width": 101},
        {"height": 101},
        {"fit": "contain"},
        {"quality": 81},
        {"animated": True},
        # The same digits in another place.
        {"width": 10, "height": 1008},
    ]
    # Variants are presets of their own, and change nothing of what declares them. The effort of a
    # WebP and what becomes of PNGs have tests of their own.
    covered = {key for change in changes for key in change} | {"variants", "webp_effort", "png"}
    assert covered == set(Preset.model_fields)
    seen = {
        Preset.model_validate(BASE | change).fingerprint(format_)
        for change in changes
        for format_ in (None, *Format)
    }
    assert len(seen) == len(changes) * (1 + len(Format))


def test_a_fingerprint_changes_with_the_encoders_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cache that outlives the encoder that filled it."""
    preset = Preset.model_validate(BASE)
    before = preset.fingerprint(None)
    monkeypatch.setattr("proxy.model.presets.ENCODER_REVISION", 10_000)
    assert preset.fingerprint(None) != before


def test_a_new_encoder_of_one_format_changes_the_fingerprints_of_that_format_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a better AVIF that empties the cache of JPEGs."""
    preset = Preset.model_validate(BASE)
    before = {format_: preset.fingerprint(format_) for format_ in (None, *OUTPUTS)}
    monkeypatch.setitem(ENCODER_REVISIONS, Format.WEBP, 10_000)
    after = {format_: preset.fingerprint(format_) for format_ in (None, *OUTPUTS)}
    assert {each for each in before if before[each] != after[each]} == {Format.WEBP}


PINNED = {
    "avatar": ("98debaa9f2", "6b44ba777a", "a47f93fd9f", "923f287060", "23d46a80ed"),
    "avatar_small": ("4f70d0387e", "e7aa61e34d", "34c20c23af", "5f9f35132c", "07af62fa47"),
    "banner": ("2c2426e449", "d870889086", "89cacb8385", "18c40e11db", "0668e08b99"),
    "content_preview": ("c8e1016eea", "3bcae6176b", "48fbd5df36", "98cfc5adeb", "a4636a1eb4"),
    "content_full": ("7dee84d86d", "662c6dbc40", "afdac5bd6b", "56e06b5310", "4ea2dc0cf7"),
    "embed_thumbnail": ("2bd5091e06", "7d13185c17", "537cb8b2ca", "314149632e", "7d3c831019"),
    "avatar_thumbnail": ("e3946f2754", "4a78a2635c", "b15c42fec1", "e6adf5c37e", "a92676834b"),
    "feed_thumbnail": ("d02daaafb9", "ea5df31628", "763eed8ac0", "abac7ba03c", "1a1556e119"),
    "feed_fullsize": ("6712440e50", "45cafd18a8", "58a297fb7f", "833ac40e35", "631e289632"),
}
"""Of each default preset, in the source's format and as JPEG, PNG, WebP and AVIF, as their encoders
last changed."""


@pytest.mark.parametrize("name", DEFAULT_PRESETS)
def test_the_fingerprints_of_the_default_presets_are_those_that_caches_have(name: str) -> None:
    """Catches a release whose every picture is made anew: an option more, or a field renamed."""
    preset = DEFAULT_PRESETS[name]
    formats = (None, Format.JPEG, Format.PNG, Format.WEBP, Format.AVIF)
    assert tuple(preset.fingerprint(format_) for format_ in formats) == PINNED[name]


def test_an_effort_that_is_not_the_default_changes_the_fingerprints_of_webp_alone() -> None:
    """Catches an effort under yesterday's ETag, and one that makes every JPEG anew."""
    plain, fast, slow = (
        {
            format_: Preset.model_validate(BASE | effort).fingerprint(format_)
            for format_ in (None, *OUTPUTS)
        }
        for effort in ({}, {"webp_effort": 2}, {"webp_effort": 6})
    )
    assert plain == {
        format_: Preset.model_validate(BASE | {"webp_effort": 4}).fingerprint(format_)
        for format_ in (None, *OUTPUTS)
    }
    changed = {each for each in plain if plain[each] != fast[each]}
    assert changed == {each for each in plain if fast[each] != slow[each]} == {Format.WEBP}


def test_what_becomes_of_pngs_changes_the_fingerprint_of_urls_without_a_format_alone() -> None:
    """Catches a JPEG under the tag of yesterday's PNG, and every named format made anew."""
    kept, other = (
        Preset.model_validate(BASE | {"png": png}) for png in ("keep", "photographs-to-jpeg")
    )
    assert kept.fingerprint(None) == Preset.model_validate(BASE).fingerprint(None)
    changed = {
        each for each in (None, *OUTPUTS) if kept.fingerprint(each) != other.fingerprint(each)
    }
    assert changed == {None}


class LaterPreset(Preset, frozen=True):
    """A preset of a release that knows two options more."""

    effort: int = 4
    blur: bool = False


def test_an_option_of_a_later_release_changes_only_presets_that_set_it() -> None:
    """Catches a default that is hashed, and a value that is not."""
    before = Preset.model_validate(BASE).fingerprint(None)
    changes: list[dict[str, object]] = [{"effort": 2}, {"blur": True}, {"effort": 2, "blur": True}]
    set_ = {LaterPreset.model_validate(BASE | change).fingerprint(None) for change in changes}
    assert LaterPreset.model_validate(BASE).fingerprint(None) == before
    assert LaterPreset.model_validate(BASE | {"effort": 4}).fingerprint(None) == before
    assert len({before, *set_}) == 4


@pytest.mark.parametrize("format_", [None, *Format])
def test_a_fingerprint_can_stand_in_a_header_and_a_file_name(format_: Format | None) -> None:
    """Catches a fingerprint of characters that a path, an ETag or nginx would read otherwise."""
    fingerprint = Preset.model_validate(BASE).fingerprint(format_)
    assert len(fingerprint) == 10
    assert set(fingerprint) <= set("0123456789abcdef")


@pytest.mark.slow
def test_a_fingerprint_is_the_same_in_every_process() -> None:
    """Catches hash(): with its random seed, a restart would empty the cache and every browser's."""
    program = (
        "import json; from proxy.model.presets import DEFAULT_PRESETS as presets;"
        "print(json.dumps({n: p.fingerprint(None) for n, p in presets.items()}))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        )
        assert json.loads(done.stdout) == {
            name: preset.fingerprint(None) for name, preset in DEFAULT_PRESETS.items()
        }


def made(**changes: object) -> dict[str, Preset]:
    """What variants make of a preset of 1000 x 300."""
    own = {"width": 1000, "height": 300, "fit": "cover", "quality": 85}
    return with_variants({"wide": Preset.model_validate(own | changes)})


def test_a_variant_is_its_preset_at_another_width() -> None:
    """Catches a variant that loses its preset's proportions, quality or animation."""
    presets = made(variants=[72, 2000, 5], animated=True)
    assert list(presets) == ["wide", "wide_w72", "wide_w2000", "wide_w5"]
    # 21.6, 600 and 1.5, rounded half up.
    sizes = [(presets[name].width, presets[name].height) for name in list(presets)[1:]]
    assert sizes == [(72, 22), (2000, 600), (5, 2)]
    for name in list(presets)[1:]:
        assert (
            presets[name].model_copy(
                update={"width": 1000, "height": 300, "variants": (72, 2000, 5)}
            )
            == presets["wide"]
        )


def test_a_variant_by_width_alone_stays_one() -> None:
    """Catches a height of 0 that becomes 1: a line instead of a picture."""
    presets = made(height=0, fit="contain", variants=[72])
    assert (presets["wide_w72"].width, presets["wide_w72"].height) == (72, 0)


def test_the_thinnest_box_still_has_a_variant() -> None:
    """Catches a height of 0 by rounding, which "cover" cannot have."""
    assert made(height=1, variants=[1])["wide_w1"].height == 1


def test_declaring_variants_changes_no_fingerprint() -> None:
    """Catches a whole cache, and every browser's, thrown away for a width that was added."""
    before, after = made()["wide"], made(variants=[72])["wide"]
    assert before.fingerprint(None) == after.fingerprint(None)
    assert made(variants=[72])["wide_w72"].fingerprint(None) != after.fingerprint(None)


@pytest.mark.parametrize(
    "variants", [[1000], [72, 72], [0], [-1], [8193], [72.5], ["wide"], [True], 72]
)
def test_widths_that_make_no_variants_are_refused(variants: object) -> None:
    """Catches two candidates of one width in a srcset, and boxes that no preset may have."""
    with pytest.raises(ValidationError):
        made(variants=variants)


def test_a_variant_may_not_be_higher_than_a_preset() -> None:
    """Catches a box beyond the limit, which a preset written out would be refused for."""
    with pytest.raises(ValidationError):
        made(width=10, height=8192, variants=[11])
    assert made(width=10, height=8192, variants=[9])["wide_w9"].height == 7373


def test_a_preset_in_a_variants_place_stays_for_the_configuration_to_judge() -> None:
    """Catches a mistake that is gone before it is found, by what was written first, or last."""
    presets = made(variants=[72])
    assert with_variants(presets) == presets
    other = presets | {"wide_w72": Preset(width=72, height=72, fit="cover", quality=80)}
    assert with_variants(other) == with_variants(dict(reversed(other.items()))) == other


def test_a_preset_cannot_be_changed_in_place() -> None:
    """Catches a fingerprint that no longer tells what its preset does."""
    with pytest.raises(ValidationError):
        DEFAULT_PRESETS["avatar"].width = 1  # type: ignore[misc]

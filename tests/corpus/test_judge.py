"""What a run calls a difference, with files and answers that are made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from proxy.imaging.stripped.copies import strip
from proxy.model.formats import Format, content_type_of
from proxy.model.presets import DEFAULT_PRESETS, Preset
from tests.corpus.browser import Shown
from tests.corpus.cases import Case
from tests.corpus.generated import FOREIGN, generated
from tests.corpus.generated.pictures import card, turning
from tests.corpus.judge import Answer, Difference, Kind, Source, frames_at, judge, moments
from tests.corpus.leftovers import leftovers
from tests.corpus.reviewed import entry, unreviewed
from tests.corpus.scaling import scaled
from tests.corpus.service import Question
from tests.imaging import reference, sources
from tests.imaging.sources import Pixels
from tests.processes import Reply

FULL = Question("content_full", None)
PIXELS = card()
SHOWN = Shown(96, 64, whole=True)
MOVING = Shown(96, 64, whole=True, durations=(100, 300, 50), loops=2)


def source(data: bytes, *frames: Pixels, shown: Shown | None = SHOWN) -> Source:
    return Source(Case("file", lambda: data), data, shown, frames or (PIXELS,), None)


def answer(body: bytes, *frames: Pixels, shown: Shown | None = SHOWN, status: int = 200) -> Answer:
    reply = Reply(status, {"content-type": content_type_of(body)}, body)
    return Answer(reply, shown, frames or (PIXELS,))


def kinds(about: Source, one: Answer, question: Question = FULL) -> list[Kind]:
    return [each.kind for each in judge(about, {question: one})]


def test_an_answer_that_shows_the_same_is_no_difference() -> None:
    data = sources.png(PIXELS)
    assert kinds(source(data), answer(data)) == []


@pytest.mark.parametrize(
    ("one", "found"),
    [
        (answer(sources.png(PIXELS), PIXELS // 50 * 50), Kind.COLOR),
        (answer(sources.png(PIXELS), shown=Shown(64, 96, whole=True)), Kind.SIZE),
        (answer(sources.png(PIXELS), shown=None), Kind.BROKEN),
        (answer(b"image could not be decoded", status=422), Kind.STATUS),
        (answer(b"internal server error", status=500), Kind.STATUS),
        (answer(sources.png(PIXELS) + FOREIGN), Kind.LEFTOVER),
        (answer(sources.webp(PIXELS, lossless=True)), Kind.FORMAT),
    ],
    ids=["colour", "size", "broken", "refused", "defect", "leftover", "format"],
)
def test_each_kind_of_fault_is_a_difference(one: Answer, found: Kind) -> None:
    """Catches a judge that looks away."""
    assert found in kinds(source(sources.png(PIXELS)), one)


def test_a_wrong_square_is_a_difference_where_the_mean_is_small() -> None:
    """Catches a mean alone, which a missing corner hardly moves."""
    pixels = np.array(PIXELS)
    pixels[-8:, -8:] = 255 - pixels[-8:, -8:]
    data = sources.png(PIXELS)
    assert kinds(source(data), answer(data, pixels)) == [Kind.COLOR]


def test_lost_detail_is_a_difference_where_every_square_is_right() -> None:
    """Catches squares alone, which a blurred picture does not move."""
    checks = np.where(np.indices((64, 96, 3)).sum(0) % 2, 90, 160).astype(np.uint8)
    data = sources.png(checks)
    blurred = np.full_like(checks, 125)
    assert kinds(source(data, checks), answer(data, blurred)) == [Kind.COLOR]


def test_a_larger_answer_is_a_difference_only_where_the_source_is_right_as_coded() -> None:
    """Catches a rule that wants a picture served whose profile was taken off."""
    data = sources.png(PIXELS)
    larger = data[:33] + sources.png_chunk(b"IDAT", b"") * 9 + data[33:]
    assert kinds(source(data), answer(larger)) == [Kind.LARGER]
    shifted = PIXELS // 2
    assert kinds(source(data, shifted), answer(larger, shifted)) == []


def test_what_moves_is_compared_at_the_same_moments() -> None:
    """Catches frames compared by number: an encoder joins those that are alike."""
    assert moments(MOVING) == [50, 250, 425]
    split = replace(MOVING, durations=(100, 200, 100, 50))
    assert frames_at(split, moments(MOVING)) == [0, 1, 3]
    assert frames_at(SHOWN, moments(MOVING)) == [0]


@pytest.mark.parametrize(
    ("shown", "order", "found"),
    [
        (MOVING, (0, 1, 2), []),
        (MOVING, (0, 2, 1), [Kind.COLOR]),
        (replace(MOVING, durations=(100, 300, 150)), (0, 1, 2), [Kind.MOTION]),
        (replace(MOVING, loops=0), (0, 1, 2), [Kind.MOTION]),
        (SHOWN, (0,), [Kind.FORMAT, Kind.MOTION]),
    ],
    ids=["same", "order", "length", "loops", "still"],
)
def test_motion_is_held_to_frames_length_and_loops(
    shown: Shown, order: tuple[int, ...], found: list[Kind]
) -> None:
    """Catches an animation that is called right for its first frame."""
    frames = turning(3)
    data = sources.animation("WEBP", frames)
    about = source(data, *frames, shown=MOVING)
    body = data if shown.moves else sources.webp(frames[0])
    assert kinds(about, answer(body, *(frames[n] for n in order), shown=shown)) == found


def test_frames_that_are_all_alike_are_a_still() -> None:
    data = sources.animation("WEBP", [PIXELS, PIXELS[::-1]])
    about = source(data, PIXELS, PIXELS, PIXELS, shown=MOVING)
    assert kinds(about, answer(data, PIXELS, PIXELS, PIXELS, shown=MOVING)) == [
        Kind.FORMAT,
        Kind.MOTION,
    ]


@pytest.mark.parametrize("preset", ["avatar_thumbnail", "banner"])
@pytest.mark.parametrize("pixels", [card(301, 201), sources.with_alpha(card(301, 201))])
def test_references_are_scaled_as_libvips_scales(pixels: Pixels, preset: str) -> None:
    """Catches a shifted crop, and colours that are not weighted by their alpha."""
    import pyvips

    of_preset: Preset = DEFAULT_PRESETS[preset]
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    wanted = reference.expected(image, of_preset)
    assert reference.color_error(scaled(pixels, of_preset)[0], wanted) < 1.5


@pytest.mark.parametrize(
    ("format_", "data"),
    [
        (Format.JPEG, sources.jpeg(PIXELS)),
        (Format.PNG, sources.png(PIXELS)),
        (Format.PNG, sources.animation("PNG", turning(2))),
        (Format.WEBP, sources.webp(PIXELS)),
        (Format.WEBP, sources.animation("WEBP", turning(2))),
        (Format.GIF, sources.animation("GIF", turning(2), loop=0)),
        (Format.AVIF, sources.avif(sources.with_alpha(PIXELS))),
        (Format.AVIF, sources.animation("AVIF", turning(2))),
        (Format.AVIF, strip(Format.AVIF, sources.avif(PIXELS, xmp=FOREIGN, exif=sources.exif(1)))),
    ],
    ids=["jpeg", "png", "apng", "webp", "moving-webp", "gif", "avif", "moving-avif", "copied"],
)
def test_leftovers_are_found_in_every_container(format_: Format, data: bytes) -> None:
    """Catches a walk that ends early, or that takes needed parts for foreign ones."""
    assert leftovers(format_, data) == []
    assert leftovers(format_, data + FOREIGN) != []


def test_leftovers_are_found_within_a_container() -> None:
    """Catches a walk over what stands behind the end alone."""
    marked = {
        Format.JPEG: sources.with_segments(sources.jpeg(PIXELS), (0xFE, FOREIGN)),
        Format.PNG: sources.with_chunks(sources.png(PIXELS), [(b"tEXt", b"Comment\0" + FOREIGN)]),
        Format.WEBP: sources.webp(PIXELS, xmp=FOREIGN),
        Format.GIF: sources.animation("GIF", turning(2), comment=FOREIGN),
        Format.AVIF: sources.avif(PIXELS, xmp=FOREIGN),
    }
    assert [format_ for format_, data in marked.items() if not leftovers(format_, data)] == []


def test_a_reviewed_difference_is_not_shown_and_an_idle_entry_is() -> None:
    """Catches a table that grows for ever."""
    found = [
        Difference("png/a", FULL, Kind.COLOR, "", 1),
        Difference("png/b", FULL, Kind.SIZE, "", 1),
    ]
    used = entry("png/*", "content_*", Kind.COLOR, why="so it is")
    idle = entry("gif/*", "*", Kind.COLOR, why="so it was")
    assert unreviewed(found, [used, idle]) == (found[1:], [idle])
    strict = entry("*", "*", *Kind, most=0.5, why="so little it is")
    assert unreviewed(found, [strict]) == (found, [strict])


@pytest.mark.slow
def test_the_corpus_is_large_and_the_same_each_time() -> None:
    """Catches rows that a change left out, and differences that nobody can see again."""
    cases = generated()
    assert len(cases) >= 500
    read = {case.name: case.read() for case in cases if case.name.startswith(("gif/", "apng/"))}
    assert all(case.read() == read[case.name] for case in generated() if case.name in read)

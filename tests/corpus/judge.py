"""What is wrong with the answers about a file. Pure.

The measure of right is what Chromium shows; where it shows nothing, what the file's maker says, or
libvips.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from io import BytesIO
from itertools import accumulate
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from proxy.model import formats
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS, Preset
from tests.corpus.browser import Shown
from tests.corpus.cases import Case
from tests.corpus.leftovers import leftovers
from tests.corpus.scaling import scaled
from tests.corpus.service import Question
from tests.imaging import reference
from tests.imaging.sources import Pixels
from tests.processes import Reply

SIDE = 8
"""Colours are compared as the means of squares of so many pixels: what codecs and kernels of
scaling do to single pixels evens out there, and a wrong colour or a missing piece does not."""


class Tolerance(NamedTuple):
    """Errors that are no difference, in steps of 255.

    Attributes:
        mean: of all squares.
        worst: of one square.
        samples: the mean of all samples; where it is more, detail was lost.
    """

    mean: float
    worst: float
    samples: float

    def __str__(self) -> str:
        return f"a mean of {self.mean:g}, at worst {self.worst:g}, of samples {self.samples:g}"


EXACT, LOSSY = Tolerance(2, 15, 8), Tolerance(3.5, 28, 12)
"""For PNG and GIF, which may have a palette, and for the others, whose encoders have losses of
their own: libavif in alpha more than others, libwebp in the colours of hard edges."""

SAME = 1.0
"""The mean error of samples below which coded pixels alone show what is right."""

TIME = 0.05
"""The share of the length of a loop by which an answer's may differ."""

SHOWN_SIDE = 320
"""The longest side of a picture on the page."""

MAX_PIXELS = 50_000_000

FRAMES, FRAME_PIXELS = 24, 24_000_000
"""So many frames of a moving picture, and pixels of them, are compared."""


class Kind(StrEnum):
    """What can be wrong."""

    STATUS = "status"
    BROKEN = "broken"
    FORMAT = "format"
    SIZE = "size"
    COLOR = "color"
    MOTION = "motion"
    LEFTOVER = "leftover"
    LARGER = "larger"


@dataclass(frozen=True)
class Difference:
    """Something that is wrong.

    Attributes:
        weight: the worst go first.
        ours, wanted: the pictures, where they differ, as small as the page shows them.
        status: of the answer.
        sizes: bytes of the file, and of the answer.
    """

    case: str
    question: Question
    kind: Kind
    text: str
    weight: float
    ours: Pixels | None = field(default=None, repr=False)
    wanted: Pixels | None = field(default=None, repr=False)
    status: int = 200
    sizes: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Source:
    """A file, and what the references make of it.

    Attributes:
        shown: by Chromium.
        frames: at the ``moments`` of ``shown``, or of one that does not move.
        by_vips: what libvips decodes, RGB or RGBA, or None.
    """

    case: Case
    data: bytes
    shown: Shown | None
    frames: Sequence[Pixels]
    by_vips: Pixels | None

    @cached_property
    def format(self) -> Format | None:
        return formats.sniff(self.data)

    @cached_property
    def moves(self) -> bool:
        """Whether it shows different frames."""
        return len(self.frames) > 1 and any(
            not np.array_equal(frame, self.frames[0]) for frame in self.frames
        )

    @cached_property
    def wanted(self) -> Sequence[Pixels]:
        """The right pictures, one for each moment; none where nobody can tell."""
        if self.case.pixels is not None:
            return [self.case.pixels]
        if self.frames:
            return self.frames
        return [] if self.by_vips is None else [self.by_vips]

    @cached_property
    def is_right_as_coded(self) -> bool:
        """Whether its coded pixels alone show what is right, without a profile or a turn."""
        if self.shown is not None and not self.shown.whole:
            return False
        if self.moves:
            return True
        try:
            with Image.open(BytesIO(self.data)) as image:
                bare = np.asarray(image.convert("RGBA"))
        except Exception:
            return False
        wanted = self.wanted[0]
        return bare.shape[:2] == wanted.shape[:2] and errors(bare, wanted).samples <= SAME


@dataclass(frozen=True)
class Answer:
    """An answer, and what Chromium shows of it at the moments of its source."""

    reply: Reply
    shown: Shown | None
    frames: Sequence[Pixels]

    @property
    def format(self) -> Format | None:
        return formats.sniff(self.reply.body)

    @property
    def moves(self) -> bool:
        return self.shown is not None and self.shown.moves


def moments(shown: Shown) -> list[float]:
    """The milliseconds at which a moving picture is looked at: in the middle of some frames."""
    ends = list(accumulate(shown.durations))
    most = max(min(FRAMES, FRAME_PIXELS // (shown.width * shown.height)), 2)
    chosen = np.unique(np.linspace(0, len(ends) - 1, min(most, len(ends))).round().astype(int))
    return [ends[index] - shown.durations[index] / 2 for index in chosen]


def frames_at(shown: Shown, times: Sequence[float]) -> list[int]:
    """The frames that are shown at these milliseconds; the first one, of what does not move."""
    if not shown.moves:
        return [0]
    ends = list(accumulate(shown.durations))
    return [int(np.searchsorted(ends[:-1], time, side="right")) for time in times]


def judge(source: Source, answers: Mapping[Question, Answer]) -> list[Difference]:
    """Everything that is wrong with the answers."""
    right = _Scaled(source)
    statuses = {answer.reply.status for answer in answers.values()}
    found = []
    for question, answer in answers.items():
        for kind, text, weight, *pictures in _faults(source, right, question, answer, statuses):
            ours, wanted = pictures or (None, None)
            sizes = (len(source.data), len(answer.reply.body))
            name, status = source.case.name, answer.reply.status
            found.append(
                Difference(name, question, kind, text, weight, ours, wanted, status, sizes)
            )
    return found


Fault = tuple[Kind, str, float] | tuple[Kind, str, float, Pixels, Pixels]


def _faults(
    source: Source, right: _Scaled, question: Question, answer: Answer, statuses: set[int]
) -> Iterator[Fault]:
    status = answer.reply.status
    told = answer.reply.body[:80].decode("latin-1").strip() if status != 200 else ""
    if fault := _status_fault(source, status, statuses):
        yield Kind.STATUS, f"{status} {told}: {fault}", 1000.0
    if status != 200:
        return
    if answer.shown is None or not answer.shown.whole:
        yield Kind.BROKEN, "Chromium does not show the answer", 900.0
        return
    format_ = answer.format
    assert format_ is not None
    yield from _format_faults(source, question, answer, format_)
    if left := leftovers(format_, answer.reply.body):
        yield Kind.LEFTOVER, "; ".join(left), 300.0
    if not source.wanted:
        return
    preset = DEFAULT_PRESETS[question.preset]
    width, height = right.size(preset)
    if (answer.shown.width, answer.shown.height) != (width, height):
        got = f"{answer.shown.width} x {answer.shown.height}"
        yield Kind.SIZE, f"{got} where {width} x {height} is right", 800.0
        return
    yield from _motion_faults(source, question, answer, format_)
    yield from _color_faults(right, preset, answer, format_)
    fits = (width, height) == (right.width, right.height)
    as_it_moves = answer.shown.moves == source.moves
    larger = len(answer.reply.body) - len(source.data)
    if not (fits and as_it_moves and format_ is source.format):
        return
    if larger > 0 and source.is_right_as_coded:
        yield Kind.LARGER, f"{larger} bytes more than {len(source.data)}", larger / 1000


def _status_fault(source: Source, status: int, statuses: set[int]) -> str:
    if status not in (200, 400, 422):
        return "is no answer for a picture"
    if source.case.status is not None:
        return "" if status == source.case.status else f"{source.case.status} is right"
    if len(statuses) > 1:
        return f"answers differ: {sorted(statuses)}"
    if source.format is None:
        return "" if status == 400 else "no format of ours"
    shown = source.shown
    if shown is not None and shown.width * shown.height > MAX_PIXELS:
        return "" if status == 400 else "is over the limit of pixels"
    if status == 200:
        known = source.wanted or source.format is Format.HEIC
        return "" if known else "no reference shows it"
    if source.case.pixels is not None:
        return "its maker shows it"
    if shown is not None and shown.whole:
        return "Chromium shows it"
    return ""


def _format_faults(
    source: Source, question: Question, answer: Answer, format_: Format
) -> Iterator[Fault]:
    if answer.reply.headers["content-type"] != format_.content_type:
        told = answer.reply.headers["content-type"]
        yield Kind.FORMAT, f"{told} is said of {format_.content_type}", 700.0
    if question.output is not None:
        right = {question.output}
    elif DEFAULT_PRESETS[question.preset].animated and source.moves and answer.moves:
        right = {source.format or format_}
    elif source.format is Format.GIF and DEFAULT_PRESETS[question.preset].animated:
        right = {Format.GIF, Format.JPEG}
    else:
        right = {Format.PNG if source.format is Format.PNG else Format.JPEG}
    if format_ not in right:
        yield Kind.FORMAT, f"{format_}, not {' or '.join(sorted(right))}", 700.0


def _motion_faults(
    source: Source, question: Question, answer: Answer, format_: Format
) -> Iterator[Fault]:
    got, wanted = answer.shown, source.shown
    assert got is not None
    keeps = DEFAULT_PRESETS[question.preset].animated
    should = source.moves and keeps and question.output in (None, Format.WEBP)
    if got.moves != should:
        yield Kind.MOTION, "moves" if got.moves else "does not move", 500.0
    if not (should and got.moves):
        return
    assert wanted is not None
    length, right = sum(got.durations), sum(wanted.durations)
    if abs(length - right) > TIME * right:
        yield Kind.MOTION, f"a loop of {length:g} ms, not {right:g}", 400.0
    # Of a file that is cut, Chromium says that it may yet come to its end.
    if wanted.whole and got.loops != wanted.loops:
        yield Kind.MOTION, f"{_times(got.loops)}, not {_times(wanted.loops)}", 200.0


def _times(loops: float) -> str:
    return "begins again for ever" if loops == inf else f"begins again {loops:g} times"


def _color_faults(
    right: _Scaled, preset: Preset, answer: Answer, format_: Format
) -> Iterator[Fault]:
    found = []
    tolerance = EXACT if format_ in (Format.PNG, Format.GIF) else LOSSY
    count = len(right) if len(answer.frames) > 1 else 1
    for number in range(count):
        ours = answer.frames[min(number, len(answer.frames) - 1)]
        tries = []
        for wanted in right.pictures(preset, number):
            error = errors(ours, wanted, on_black=format_ is not Format.JPEG)
            tries.append((error.over(tolerance), error, wanted))
        over, error, wanted = min(tries, key=lambda each: each[0])
        found.append((over, error, number, ours, wanted))
    over, error, number, ours, wanted = max(found, key=lambda each: each[0])
    if over > 1:
        at = f" at moment {number + 1} of {count}" if count > 1 else ""
        yield Kind.COLOR, f"off by {error}{at}", over, _small(ours), _small(wanted)


def _small(pixels: Pixels) -> Pixels:
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return np.asarray(image)


class _Scaled:
    """The right pictures at the sizes of presets, made once."""

    def __init__(self, source: Source) -> None:
        self._wanted = source.wanted
        self._made: dict[tuple[Preset, int], list[Pixels]] = {}
        if self._wanted:
            self.height, self.width = self._wanted[0].shape[:2]

    def __len__(self) -> int:
        return len(self._wanted)

    def size(self, preset: Preset) -> tuple[int, int]:
        return reference.size_of(preset, self.width, self.height)

    def pictures(self, preset: Preset, number: int) -> list[Pixels]:
        """See ``scaling.scaled``."""
        key = (preset, number)
        if key not in self._made:
            self._made[key] = scaled(self._wanted[number], preset)
        return self._made[key]


class Errors(NamedTuple):
    """As in ``Tolerance``."""

    mean: float
    worst: float
    samples: float

    def over(self, tolerance: Tolerance) -> float:
        """How often they are what is tolerated; over 1, they are a difference."""
        return max(error / most for error, most in zip(self, tolerance, strict=True))

    def __str__(self) -> str:
        return f"{self.mean:.1f}, at worst {self.worst:.0f}, samples {self.samples:.1f}"


def errors(ours: Pixels, wanted: Pixels, *, on_black: bool = False) -> Errors:
    """Of pictures of one size: the larger ones on white and, where there is alpha, on black."""
    found = []
    for ground in (255.0, 0.0) if on_black else (255.0,):
        off = _on(ours, ground) - _on(wanted, ground)
        squares = np.abs(_squares(off))
        found.append(Errors(float(squares.mean()), float(squares.max()), float(np.abs(off).mean())))
    return max(found, key=lambda each: each.mean)


def _on(pixels: Pixels, ground: float) -> NDArray[np.float32]:
    """RGB, whatever is transparent on a ground of one grey."""
    values = pixels[..., :3].astype(np.float32)
    if pixels.shape[2] == 3:
        return values
    opacity = pixels[..., 3:].astype(np.float32) / 255
    return (values * opacity + ground * (1 - opacity)).astype(np.float32)


def _squares(off: NDArray[np.float32]) -> NDArray[np.float32]:
    """The means of squares of ``SIDE`` pixels, also of what is left at the right and the bottom."""
    rows, columns = (np.arange(0, length, SIDE) for length in off.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(off, rows, axis=0), columns, axis=1)
    counts = np.outer(
        np.diff(np.append(rows, off.shape[0])), np.diff(np.append(columns, off.shape[1]))
    )
    means: NDArray[np.float32] = (sums / counts[..., None]).astype(np.float32)
    return means

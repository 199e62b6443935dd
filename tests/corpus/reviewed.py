"""Differences that somebody looked at and found right, each with the reason. Pure.

An entry that no longer matches a difference is a mistake too: what it excused is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf

from tests.corpus.judge import Difference, Kind


@dataclass(frozen=True)
class Entry:
    """Differences that are right.

    Attributes:
        cases, questions: patterns of their names.
        kinds: of the differences.
        most: the largest weight of a difference; a larger one has another cause.
        why: the reason, in one sentence.
    """

    cases: str
    questions: str
    kinds: frozenset[Kind]
    most: float
    why: str

    def covers(self, difference: Difference) -> bool:
        return (
            difference.kind in self.kinds
            and difference.weight <= self.most
            and fnmatchcase(difference.case, self.cases)
            and fnmatchcase(str(difference.question), self.questions)
        )


def entry(cases: str, questions: str, *kinds: Kind, most: float = inf, why: str) -> Entry:
    return Entry(cases, questions, frozenset(kinds), most, why)


REVIEWED: tuple[Entry, ...] = (
    entry(
        "webp/moving/icc", "*", Kind.COLOR, most=5,
        why="Chromium takes no profile of a moving WebP; by the container's specification it is"
        " that of every frame, and so libvips has it",
    ),
    entry(
        "avif/moving/full-range", "*", Kind.COLOR, most=4,
        why="Chromium takes the samples of every track for those of a limited range, also where"
        " container and stream say that they are of the full one",
    ),
    *(
        entry(
            cases, "*", Kind.COLOR, most=2,
            why="Chromium stretches the alpha of a still AVIF as if its range were limited; alpha"
            " is of the full range (MIAF, 7.3.5.2), and so libvips has it",
        )
        for cases in ("avif/kind/*clear", "avif/nclx/clear-*", "avif/ipma/split-clear",
                      "avif/turned/alpha")
    ),
    *(
        entry(
            cases, "*", Kind.COLOR, most=2,
            why="tone mapping bends light colours the most, and pictures are scaled before it",
        )
        for cases in ("png/cicp/*-16", "avif/nclx/*-16")
    ),
    entry(
        "jpeg/inks/cmyk-icc", "*", Kind.COLOR, most=4,
        why="inks are converted with the black point kept black, as libvips does; Chromium keeps"
        " paler blacks",
    ),
    entry(
        "avif/kind/flat", "*", Kind.COLOR, most=2,
        why="the noise of its coding hides that a picture is flat, so that chroma is spread",
    ),
    *(
        entry(
            cases, "*@webp", Kind.COLOR, most=2.5,
            why="a WebP has a chroma sample for four pixels, and libwebp weighs the four by light",
        )
        for cases in ("large/still-gif", "png/palette/large")
    ),
    entry(
        "png/foreign/critical-before", "*", Kind.STATUS,
        why="a decoder may refuse a chunk that it must know and does not; its pixels are all here",
    ),
    entry(
        "large/flat-*", "content_full*", Kind.MOTION,
        why="a moving answer would be larger than its source: the first frame is served",
    ),
    entry(
        "large/flat-gif", "content_full", Kind.COLOR, most=6,
        why="so that a moving answer is not larger than its source, it has fewer colours",
    ),
    entry(
        "large/photo-*", "content_full*", Kind.COLOR, most=3,
        why="so that a moving answer is not larger than its source, its quality is lowered",
    ),
    entry(
        "gif/moving/loops-65535", "content_full@webp", Kind.MOTION,
        why="a WebP counts how often a loop is shown, a GIF how often it is begun again: the"
        " largest number is one less",
    ),
)  # fmt: skip
"""For the corpus that is made; a folder of strangers' files is shown as it is."""


def unreviewed(
    differences: Iterable[Difference], entries: Sequence[Entry] = REVIEWED
) -> tuple[list[Difference], list[Entry]]:
    """The differences that no entry covers, and the entries that cover none."""
    left = []
    idle = dict.fromkeys(entries)
    for difference in differences:
        covering = [each for each in entries if each.covers(difference)]
        if not covering:
            left.append(difference)
        for each in covering:
            idle.pop(each, None)
    return left, list(idle)

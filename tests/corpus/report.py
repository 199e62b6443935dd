"""The page that a run writes: a summary, then the differences, the worst first, side by side."""

from __future__ import annotations

import html
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from proxy.model.presets import DEFAULT_PRESETS
from tests.corpus import judge
from tests.corpus.cases import Case
from tests.corpus.judge import Difference
from tests.corpus.run import Found, by_vips
from tests.corpus.scaling import scaled
from tests.imaging import reference
from tests.imaging.sources import Pixels

MOST = 400
"""Differences on the page; the summary counts all."""

AMPLIFIED = 8

TITLES = (
    "file",
    "answer",
    "status",
    "bytes",
    "what",
    "ours",
    "right",
    "libvips",
    f"difference, {AMPLIFIED} times",
)

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; }
table { border-collapse: collapse; }
td, th { border-top: 1px solid #ccc; padding: .4em .8em .4em 0; text-align: left;
         vertical-align: top; }
img { background: repeating-conic-gradient(#ddd 0 25%, #fff 0 50%) 0 0 / 16px 16px;
      max-width: 320px; image-rendering: pixelated; }
"""


def page(found: Found, differences: Sequence[Difference], cases: Sequence[Case]) -> str:
    """The page, whole: it refers to nothing outside."""
    read = {case.name: case.read for case in cases}
    rows = [_row(each, read[each.case]) for each in differences[:MOST]]
    counts = Counter(each.kind.value for each in differences)
    lines = [
        *summary(found),
        f"{len(differences)} differences"
        + "".join(f", {count} of {kind}" for kind, count in counts.most_common()),
        f"Tolerated, of 255: {judge.EXACT} in PNG and GIF, {judge.LOSSY} in the others; squares "
        f"are of {judge.SIDE} pixels.",
    ]
    head = "".join(f"<p>{html.escape(line)}" for line in lines)
    titles = "".join(
        f"<th>{title}"
        for title in (
            "file",
            "answer",
            "what",
            "ours",
            "right",
            "libvips",
            f"difference times {AMPLIFIED}",
        )
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>Corpus</title><style>{STYLE}</style>"
        f"<h1>Corpus</h1>{head}<table><tr>{titles}{''.join(rows)}</table>"
    )


def summary(found: Found) -> list[str]:
    """A run in a few lines of text."""
    statuses = ", ".join(f"{count} of {status}" for status, count in sorted(found.statuses.items()))
    lines = [
        f"{found.files} files of {found.sent:,} bytes; answers: {statuses}; "
        f"{found.received:,} bytes",
    ]
    if found.unjudged:
        lines.append(f"No reference shows {', '.join(found.unjudged[:20])}")
    return lines


def _row(difference: Difference, read: Callable[[], bytes]) -> str:
    cells = [
        difference.case,
        str(difference.question),
        str(difference.status),
        " to ".join(f"{size:,}" for size in difference.sizes),
        f"{difference.kind}: {difference.text}",
    ]
    row = "".join(f"<td>{html.escape(cell)}" for cell in cells)
    if difference.ours is None or difference.wanted is None:
        return f"<tr>{row}"
    pictures = [difference.ours, difference.wanted, _by_vips(difference, read)]
    pictures.append(amplified(difference.ours, difference.wanted))
    return f"<tr>{row}" + "".join(f"<td>{_picture(each)}" for each in pictures)


def _by_vips(difference: Difference, read: Callable[[], bytes]) -> Pixels | None:
    pixels = by_vips(read())
    return (
        None if pixels is None else scaled(pixels, DEFAULT_PRESETS[difference.question.preset])[0]
    )


def amplified(ours: Pixels, wanted: Pixels) -> Pixels:
    """The difference on white, times ``AMPLIFIED``, around grey."""
    off = reference.on_white(ours) - reference.on_white(wanted)
    pixels: Pixels = np.clip(128 + off * AMPLIFIED, 0, 255).astype(np.uint8)
    return pixels


def _picture(pixels: Pixels | None) -> str:
    if pixels is None:
        return "shows nothing"
    image = Image.fromarray(pixels)
    image.thumbnail((judge.SHOWN_SIDE, judge.SHOWN_SIDE))
    out = BytesIO()
    image.save(out, "PNG")
    return f'<img src="data:image/png;base64,{b64encode(out.getvalue()).decode()}">'

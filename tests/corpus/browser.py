"""What Chromium shows of files: drawn into one page, which is kept for all of them."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from playwright.sync_api import Browser, Page

from proxy.model.formats import content_type_of
from tests.imaging.sources import Pixels
from tests.page import chromium

SRGB = "--force-color-profile=srgb"

SCRIPT = Path(__file__).with_name("page.js")

ORIGIN = "https://corpus.test/"
"""Of the page. Nothing is asked of it; only a secure origin has ``ImageDecoder``."""

PART = 24 * 1024 * 1024
"""Bytes of pixels that come in one message."""

BRIEFEST, INSTEAD = 10.0, 100.0
"""Frames of so many milliseconds or fewer are shown for 100 by every browser (HTML leaves it open;
Blink has it in ``DeferredImageDecoder``)."""

T = TypeVar("T")


@dataclass(frozen=True)
class Shown:
    """What Chromium shows of a file.

    Attributes:
        width, height: upright, in pixels.
        whole: whether its ``ImageDecoder`` had nothing to complain of; a page shows more than that.
        durations: milliseconds for which each frame is shown; none for a picture of one frame.
        loops: how often a moving picture begins again.
    """

    width: int
    height: int
    whole: bool
    durations: tuple[float, ...] = ()
    loops: float = 0

    @property
    def moves(self) -> bool:
        return len(self.durations) > 1


class Eyes:
    """One page of Chromium. Its methods block; one thread at a time may call them."""

    def __init__(self, run: Callable[[str, Any], Any]) -> None:
        self._run = run

    def describe(self, files: Sequence[bytes]) -> list[Shown | None]:
        """What is shown of each file, or None where nothing is. They stay open for ``draw``."""
        sent = [{"data": b64encode(file).decode(), "type": content_type_of(file)} for file in files]
        found = self._run("(files) => describe(files)", sent)
        return [None if each is None else _shown(each) for each in found]

    def draw(self, wanted: Sequence[tuple[int, Shown, Sequence[int]]]) -> list[list[Pixels]]:
        """Pixels of frames of the files that were described last: RGBA in sRGB.

        Args:
            wanted: the number of a file, what is shown of it, and the numbers of frames.
        """
        sent = [
            [number, [frame if shown.moves else None for frame in frames]]
            for number, shown, frames in wanted
        ]
        size = self._run("(wanted) => draw(wanted)", sent)
        spans = [[start, start + PART] for start in range(0, size, PART)]
        read = b"".join(b64decode(self._run("(span) => part(span)", span)) for span in spans)
        found: list[list[Pixels]] = []
        at = 0
        for _, shown, frames in wanted:
            shape = (shown.height, shown.width, 4)
            length = shown.height * shown.width * 4
            found.append([])
            for _ in frames:
                found[-1].append(np.frombuffer(read[at : at + length], np.uint8).reshape(shape))
                at += length
        assert at == size
        return found


def _shown(found: dict[str, Any]) -> Shown:
    durations = tuple(INSTEAD if each <= BRIEFEST else each for each in found["durations"])
    loops = inf if found["loops"] < 0 else found["loops"]
    return Shown(found["width"], found["height"], found["whole"], durations, loops)


@contextmanager
def eyes() -> Iterator[Eyes]:
    """Open the page while the block runs.

    Raises:
        NoBrowser: there is no Chromium here.
    """
    with chromium(SRGB) as with_browser:
        page = with_browser(_open_page)
        yield Eyes(lambda script, value: with_browser(lambda _: page.evaluate(script, value)))


def _open_page(browser: Browser) -> Page:
    page = browser.new_page()
    page.route(
        "**/*", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html")
    )
    page.goto(ORIGIN)
    page.add_script_tag(content=SCRIPT.read_text(encoding="utf-8"))
    return page

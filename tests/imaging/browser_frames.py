"""What Chromium makes of a moving picture: its frames, by the decoder that draws pages."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from playwright.sync_api import Browser, Page, Route

from tests.imaging.sources import Pixels
from tests.page import chromium

_ORIGIN = "https://pictures.invalid/"  # WebCodecs needs a secure origin; nothing is asked of it

_DECODE = """async ([data, type]) => {
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
  const decoder = new ImageDecoder({data: bytes, type, colorSpaceConversion: 'default'});
  await decoder.tracks.ready;
  await decoder.completed;
  const track = decoder.tracks.selectedTrack;
  const frames = [];
  for (let at = 0; at < track.frameCount; at++) {
    let image;
    try {
      image = (await decoder.decode({frameIndex: at})).image;
    } catch (error) {
      frames.push({error: String(error)});
      continue;
    }
    const canvas = new OffscreenCanvas(image.displayWidth, image.displayHeight);
    const context = canvas.getContext('2d', {colorSpace: 'srgb'});
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let text = '';
    for (let start = 0; start < pixels.length; start += 30000)
      text += String.fromCharCode(...pixels.subarray(start, start + 30000));
    frames.push({width: canvas.width, height: canvas.height, duration: image.duration,
                 pixels: btoa(text)});
    image.close();
  }
  return {frames, repetitions: String(track.repetitionCount), animated: track.animated};
}"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame.

    Attributes:
        pixels: RGBA.
        duration: milliseconds, as a page shows it.
    """

    pixels: Pixels
    duration: float


@dataclass(frozen=True, slots=True)
class Film:
    """A moving picture.

    Attributes:
        plays: how often all frames are shown; infinity for ever.
        broken: frames that could not be decoded.
    """

    frames: list[Shown]
    plays: float
    broken: int


def _film(page: Page, data: bytes, type_: str) -> Film:
    found = page.evaluate(_DECODE, [base64.b64encode(data).decode(), type_])
    frames, broken = [], 0
    for frame in found["frames"]:
        if "error" in frame:
            broken += 1
            continue
        raw = np.frombuffer(base64.b64decode(frame["pixels"]), np.uint8)
        # The decoder tells what the file says; a page shows frames of up to 10 ms for 100.
        told = (frame["duration"] or 0) / 1000
        duration = 100.0 if told <= 10 else told
        frames.append(Shown(raw.reshape(frame["height"], frame["width"], 4), duration))
    repetitions = float(found["repetitions"].replace("Infinity", "inf"))
    return Film(frames, math.inf if math.isinf(repetitions) else repetitions + 1, broken)


@contextmanager
def cinema() -> Iterator[Callable[[bytes, str], Film]]:
    """A browser that shows files, given with their media type.

    Raises:
        NoBrowser: it is not installed.
    """

    def open_page(browser: Browser) -> Page:
        page = browser.new_page()

        def answer(route: Route) -> None:
            route.fulfill(body="<!doctype html>", content_type="text/html")

        page.route("**/*", answer)
        page.goto(_ORIGIN)
        return page

    with chromium() as run:
        page = run(open_page)
        yield lambda data, type_: run(lambda _: _film(page, data, type_))

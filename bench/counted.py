"""What runs under callgrind for ``bench.instructions``: the service, or the pixels of a miss.

    python -m bench.counted LIBRARY serve           # counts between SIGUSR1 and SIGUSR2
    python -m bench.counted LIBRARY pixels NAME...  # counts each job of ``JOBS`` by itself

The library is ``counted.c``. Nothing is counted before the first start, so that starting takes
seconds and not minutes.
"""

from __future__ import annotations

import ctypes
import io
import os
import random
import signal
import sys
from types import FrameType

from PIL import Image, ImageChops

from proxy.cli import cli
from proxy.imaging.pipeline import render
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS

JOBS = {
    "avatar_small as JPEG": ("avatar_small", Format.JPEG),
    "content_preview as JPEG": ("content_preview", Format.JPEG),
    "content_preview as WebP": ("content_preview", Format.WEBP),
}
"""Preset and format of the pixels that are counted."""

STARTED, STOPPED = b"+", b"-"
"""Written to standard output when counting has started, or what was counted is written."""


def source() -> bytes:
    """A JPEG of 1200 x 900 with fine and coarse detail, the same on every machine."""
    numbers = random.Random(18)
    size = (1200, 900)
    bands = []
    for angle in (0, 90, 180):
        slope = Image.linear_gradient("L").rotate(angle).resize(size)
        coarse = Image.frombytes("L", (40, 30), numbers.randbytes(1200)).resize(size)
        fine = Image.frombytes("L", size, numbers.randbytes(1200 * 900))
        bands.append(Image.blend(ImageChops.add(slope, coarse, 2), fine, 0.15))
    out = io.BytesIO()
    Image.merge("RGB", bands).save(out, "JPEG", quality=85)
    return out.getvalue()


def serve(library: ctypes.CDLL) -> None:
    """``imageproxy serve``, in this process."""

    def start(_number: int, _frame: FrameType | None) -> None:
        library.start_counting()
        os.write(1, STARTED)

    def stop(_number: int, _frame: FrameType | None) -> None:
        library.stop_counting()
        os.write(1, STOPPED)

    signal.signal(signal.SIGUSR1, start)
    signal.signal(signal.SIGUSR2, stop)
    cli(["serve"])


def pixels(library: ctypes.CDLL, names: list[str]) -> None:
    """Each job once, after one that does not count."""
    data = source()
    for name in names:
        preset, format_ = JOBS[name]
        for is_counted in (False, True):
            if is_counted:
                library.start_counting()
            render(data, DEFAULT_PRESETS[preset], format_, max_pixels=10_000_000)
            if is_counted:
                library.stop_counting()


if __name__ == "__main__":
    _, path, what, *rest = sys.argv
    if what == "serve":
        serve(ctypes.CDLL(path))
    else:
        pixels(ctypes.CDLL(path), rest)

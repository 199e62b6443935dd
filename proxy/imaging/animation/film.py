"""A moving picture: its frames, how long each is shown, and how often all are. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from PIL import Image

from proxy.model.presets import Size

FOREVER = 0
"""The number of plays of a picture that never ends."""

_TOO_SHORT, _SHOWN_INSTEAD = 10, 100


class Frame(NamedTuple):
    """A frame.

    Attributes:
        image: the whole canvas, in sRGB, of mode RGB or RGBA. Nothing changes it later.
        duration: milliseconds, as browsers show it.
    """

    image: Image.Image
    duration: Fraction


@dataclass(frozen=True, slots=True)
class Film:
    """A file with several frames.

    Attributes:
        size: of the canvas, as stored.
        count: the frames that the file declares.
        plays: how often all frames are shown; ``FOREVER`` without end.
        frames: yields them from the first. It ends before a frame that does not decode.
    """

    size: Size
    count: int
    plays: int
    frames: Callable[[], Iterator[Frame]]


Convert = Callable[[Image.Image], Image.Image]
"""Converts a decoded frame to sRGB."""


def shown(milliseconds: Fraction | int) -> Fraction:
    """Return how long a browser shows a frame: one of up to 10 whole ms is shown for 100."""
    return Fraction(_SHOWN_INSTEAD if int(milliseconds) <= _TOO_SHORT else milliseconds)


class Ticks:
    """Rounds durations to whole units, so that their sum stays true.

    Args:
        unit: milliseconds.
    """

    def __init__(self, unit: int = 1) -> None:
        self._unit = unit
        self._exact = Fraction(0)
        self._told = 0

    def of(self, duration: Fraction) -> int:
        """Return the units of the next frame, at least 1."""
        self._exact += duration / self._unit
        ticks = max(round(self._exact) - self._told, 1)
        self._told += ticks
        return ticks

"""What is made of a source, and what came of it.

Apart from ``pipeline``, which imports the codecs: the service itself need not have them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from proxy.model.animation import DEFAULT_BOUNDS, AnimationBounds
from proxy.model.formats import Format
from proxy.model.presets import Preset


class Recipe(BaseModel, frozen=True):
    """A preset and an output format for a source. A service uses few different ones.

    Attributes:
        output: one of ``formats.OUTPUTS``, or None to choose it by the source. ``JSON`` for what is
            told of the picture (``model.picture_info``).
        animation: the bounds of a moving result.
    """

    preset: Preset
    output: Format | None
    animation: AnimationBounds = DEFAULT_BOUNDS


@dataclass(frozen=True, slots=True)
class Rendered:
    """A result: the bytes of a file, and its format."""

    data: bytes
    format: Format


Outcome = Rendered | Exception
"""The result of a recipe: a picture or an error."""

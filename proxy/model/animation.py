"""The bounds of moving pictures: beyond any of them, the first frame is served. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from proxy.model.presets import NotBool


class AnimationBounds(BaseModel, frozen=True, extra="forbid"):
    """[animation]

    Attributes:
        max_frames: of a source.
        max_megapixels: the canvas of a source, times its frames.
        max_seconds: CPU time for one result.
    """

    max_frames: Annotated[int, NotBool, Field(ge=1, le=10_000)] = 500
    max_megapixels: Annotated[float, NotBool, Field(gt=0, allow_inf_nan=False)] = 200
    max_seconds: Annotated[float, NotBool, Field(gt=0, le=60, allow_inf_nan=False)] = 4

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1_000_000)


DEFAULT_BOUNDS = AnimationBounds()

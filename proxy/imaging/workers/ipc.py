"""What the service and a worker say to each other over their socket: lengths first, then bytes.

A job is two lengths, a number of pixels, a JSON array of recipes, and the source. An answer follows
for each recipe, in their order: its place among them, a status, a format, a length, and that many
bytes: a picture, or the cause of an error. The service trusts no answer: a worker may have been
taken over by the picture it decoded.

Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pydantic import BaseModel, TypeAdapter

from proxy.errors import (
    ImageProxyError,
    ImageTooLarge,
    ResultTooLarge,
    UndecodableImage,
    UnsupportedImage,
)
from proxy.imaging.pipeline import Recipe
from proxy.model.formats import Format

JOB: Final = struct.Struct(">IIQ")
ANSWER: Final = struct.Struct(">BBBI")

RECIPES: Final = TypeAdapter(tuple[Recipe, ...])

MOST_RECIPES = 16
"""Of one job. All the presets of a blob are fewer, in one format."""

FORMATS: Final = tuple(Format)
"""A format is sent as its index here."""

MAX_CAUSE = 2000
"""Bytes of an error's cause, and of what a worker says when it is ready."""


class Status(IntEnum):
    """What an answer is."""

    READY = 0
    DONE = 1
    UNSUPPORTED = 2
    TOO_LARGE = 3
    UNDECODABLE = 4
    RESULT_TOO_LARGE = 5
    DEFECT = 6


ERRORS: Final[dict[Status, type[ImageProxyError]]] = {
    Status.UNSUPPORTED: UnsupportedImage,
    Status.TOO_LARGE: ImageTooLarge,
    Status.UNDECODABLE: UndecodableImage,
    Status.RESULT_TOO_LARGE: ResultTooLarge,
}


class Ready(BaseModel, frozen=True):
    """What a worker says first.

    Attributes:
        missing: the parts of the sandbox that its platform lacks.
    """

    missing: list[str]


@dataclass(frozen=True, slots=True)
class Head:
    """The first bytes of an answer; ``length`` bytes follow."""

    place: int
    status: Status
    format: Format
    length: int

    def pack(self) -> bytes:
        return ANSWER.pack(self.place, self.status, FORMATS.index(self.format), self.length)

    @classmethod
    def unpack(cls, data: bytes) -> Head:
        """Raises ValueError for a status or a format that there is not."""
        place, status, format_, length = ANSWER.unpack(data)
        if format_ >= len(FORMATS):
            raise ValueError(f"no format {format_}")
        return cls(place, Status(status), FORMATS[format_], length)

"""The protocol between the service and a worker on their socket: lengths first, then bytes.

A worker first sends its process id, with a descriptor of its ``statm`` file where there is one, and
then ``Ready``. A job consists of two lengths, a number of pixels, and a JSON array of recipes; the
source is in their shared file. The worker sends one answer for each recipe, in order: the index of
the recipe, a status, a format, a length, and that many bytes: a picture, or the cause of an error.
The service trusts no answer, because the picture may have taken control of the worker that decoded
it.

The orders to the process that forks workers are of one length: ``FORK`` with the limits of the
worker and the bytes of its shared file, and ``REAP`` with a process id, which is answered.

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
from proxy.imaging.recipes import Recipe
from proxy.model.formats import Format

JOB: Final = struct.Struct(">IIQ")
ANSWER: Final = struct.Struct(">BBBI")

PID: Final = struct.Struct(">I")

ORDER: Final = struct.Struct(">cQQQ")
FORK, REAP = b"F", b"R"
ENDED: Final = struct.Struct(">i")
STILL_RUNS = 1 << 16
"""No exit code."""

RECIPES: Final = TypeAdapter(tuple[Recipe, ...])

MOST_RECIPES = 16
"""The most recipes of one job: more than the presets of a blob in one format."""

FORMATS: Final = tuple(Format)
"""A format is sent as its index in this tuple."""

MAX_CAUSE = 2000
"""Maximum bytes of an error's cause, and of the ``Ready`` message."""


class Status(IntEnum):
    """The kind of an answer."""

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
    """The first message of a worker.

    Attributes:
        missing: the parts of the sandbox that its platform lacks.
        decoders: the version of each library that decodes, by its name.
    """

    missing: list[str]
    decoders: dict[str, str] = {}


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
        """Raises ValueError for an unknown status or format."""
        place, status, format_, length = ANSWER.unpack(data)
        if format_ >= len(FORMATS):
            raise ValueError(f"no format {format_}")
        return cls(place, Status(status), FORMATS[format_], length)

"""What every container gives of its picture. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from proxy.model.presets import Box, Size

MAX_PROFILE = 4 << 20
"""Maximum bytes of a colour profile that is read: printers' profiles reach 3 MB."""

MAX_PARTS = 1 << 15
"""Maximum segments, chunks, blocks or boxes that are read of one file. Libraries write PNGs in
chunks of 8 KiB or more: 1300 in ten megabytes."""


class Place(NamedTuple):
    """Where on its canvas a picture is that is a part of it; around it, nothing is."""

    left: int
    top: int
    canvas: Size


@dataclass(frozen=True, slots=True)
class Facts:
    """The properties that a container gives.

    Attributes:
        picture: the file without its metadata, for the decoder.
        size: the canvas as stored, before orientation; None if only the decoder knows it.
        orientation: the EXIF orientation, 1 to 8.
        profile: the embedded ICC profile, unchecked, or one made of what else the container says
            about its colours; None if they are sRGB.
        transparent: the samples of the colour that a PNG declares transparent: 16 bits each if
            those of the picture have so many, else 8.
        place: where ``picture`` is on the canvas; None if it is all of it, or says so itself.
        crop: the part of the canvas that is the picture, before orientation; None if all of it is.
    """

    picture: bytes
    size: Size | None = None
    orientation: int = 1
    profile: bytes | None = None
    transparent: tuple[int, ...] | None = None
    place: Place | None = None
    crop: Box | None = None

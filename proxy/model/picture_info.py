"""What ``/info/`` tells of a picture, and the key under which that is kept as a result. Pure."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, Field

from proxy.model.formats import SOURCES, Format
from proxy.model.identifiers import parse_cid, parse_did
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.presets import Preset

INFO: Final = "info"
"""The name in keys, metrics and file names. A preset of this name has other formats, so that their
keys differ."""

INFO_PRESET: Final = Preset(width=32, height=32, fit="contain", quality=100)
"""The size at which a picture is looked at for its placeholder and its colour: a placeholder has at
most seven waves each way."""

INFO_FINGERPRINT: Final = INFO_PRESET.fingerprint(Format.JSON)

MOST_FRAMES: Final = 10_000
"""Frames are counted no further: a file with more has ``MOST_FRAMES + 1``."""

_Count = Annotated[int, Field(ge=1)]


class PictureInfo(BaseModel, frozen=True, extra="forbid", strict=True):
    """What is told of a picture.

    Attributes:
        width, height: pixels, upright.
        type: the media type, by the first bytes.
        bytes: of the blob.
        animated: whether it has several frames.
        frames: that the file declares.
        alpha: whether any pixel is not opaque.
        thumbhash: a placeholder of 5 to 25 bytes in Base64 (https://evanw.github.io/thumbhash/).
        color: the average of the sRGB values, weighted by alpha, as ``#rrggbb``.
    """

    width: _Count
    height: _Count
    type: Annotated[str, Field(pattern=rf"^image/({'|'.join(SOURCES)})$")]
    bytes: _Count
    animated: bool
    frames: _Count
    alpha: bool
    thumbhash: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{7,36}={0,2}$")]
    color: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]


def info_key(blob: BlobKey) -> ImageKey:
    """Return the key of what is told of ``blob``."""
    return ImageKey(INFO, blob, Format.JSON, INFO_FINGERPRINT)


def info_key_of(did: str, cid: str) -> ImageKey:
    """Return the key of what is told of a blob.

    Raises:
        InvalidDid, InvalidCid: for the first part that is wrong.
    """
    return info_key(BlobKey(parse_did(did), parse_cid(cid)))

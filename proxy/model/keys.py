"""Keys of the things that a request can ask for: a blob, a result, a picture of a profile. Pure.

The keys are tuples: every hit is looked up by a key, and tuples are hashed fastest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from proxy.errors import InvalidPreset
from proxy.model.formats import Format, parse_output
from proxy.model.identifiers import Cid, Did, Handle, content_cid, parse_cid, parse_did

if TYPE_CHECKING:
    # Its pydantic takes longer to import than most commands take to run.
    from proxy.model.presets import Preset

Tag: TypeAlias = "Did | Cid | BlobKey"
"""A selection names one of these: an owner, a blob of every owner, or a blob of one owner. Tags of
different kinds are never equal."""

Kind = Literal["avatar", "banner"]
"""The kinds of pictures that a profile names."""

KINDS: tuple[Kind, ...] = ("avatar", "banner")

Medium = Literal["image", "video"]
"""What a blob is; the picture of a video is its poster."""


class BlobKey(NamedTuple):
    """One blob of one owner."""

    did: Did
    cid: Cid

    @property
    def content(self) -> BlobKey:
        """The key of the same bytes of the same owner, the same one however the CID is spelled."""
        cid = content_cid(self.cid)
        return self if cid is self.cid else BlobKey(self.did, cid)

    @property
    def tags(self) -> tuple[Tag, ...]:
        """The tags of the selections that cover this blob: of its content, not of its CID."""
        content = self.content
        return content.did, content.cid, content


class VideoKey(BlobKey):
    """A blob that a record calls a video: its picture is its poster."""

    __slots__ = ()


class ImageKey(NamedTuple):
    """One result: a blob processed with a preset, in ``format``, or if None in the source's."""

    preset: str
    blob: BlobKey
    format: Format | None
    fingerprint: str

    @property
    def etag(self) -> str:
        """A strong entity tag with its quotes (RFC 9110, section 8.8.3)."""
        return f'"{self.preset}-{self.blob.cid}-{self.fingerprint}"'


class PosterKey(ImageKey):
    """One poster of a video: the ``JPEG`` of a frame, processed with a preset.

    Its fingerprint is of its own, so that it equals the key of no picture.
    """

    __slots__ = ()


POSTER_REVISION = 1
"""Raise it when another frame is chosen, or a frame is shown otherwise."""


def poster_fingerprint(preset: Preset) -> str:
    """The fingerprint of posters by ``preset``, as that of an ``ImageKey``."""
    recipe = f"poster|{POSTER_REVISION}|{preset.fingerprint(Format.JPEG)}"
    return hashlib.sha256(recipe.encode()).hexdigest()[:10]


class ActorKey(NamedTuple):
    """A picture of a profile, processed with ``preset``, or if None with the configured one."""

    kind: Kind
    preset: str | None
    actor: Did | Handle
    format: Format | None


def poster_key(presets: Mapping[str, Preset], preset: str, did: str, cid: str) -> PosterKey:
    """Check the three parts of the URL of a poster.

    Raises:
        InvalidPreset, InvalidDid, InvalidCid: for the first part that is wrong.
    """
    key = image_key(presets, preset, did, cid, Format.JPEG.value)
    return PosterKey(key.preset, key.blob, key.format, poster_fingerprint(presets[preset]))


def image_key(
    presets: Mapping[str, Preset], preset: str, did: str, cid: str, format_: str | None = None
) -> ImageKey:
    """Check the four parts of an image URL.

    Raises:
        InvalidPreset, InvalidDid, InvalidCid, InvalidFormat: for the first part that is wrong.
    """
    settings = presets.get(preset)
    if settings is None:
        raise InvalidPreset(preset, presets)
    blob = BlobKey(parse_did(did), parse_cid(cid))
    output = None if format_ is None else parse_output(format_)
    return ImageKey(preset, blob, output, settings.fingerprint(output))

"""Keys of the things that a request can ask for: a blob, a result, a picture of a profile. Pure.

The keys are tuples: every hit is looked up by a key, and tuples are hashed fastest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from proxy.errors import InvalidPreset
from proxy.model.formats import Format, parse_output
from proxy.model.identifiers import Cid, Did, Handle, content_cid, parse_cid, parse_did
from proxy.model.presets import Preset

Tag: TypeAlias = "Did | Cid | BlobKey"
"""A selection names one of these: an owner, a blob of every owner, or a blob of one owner. Tags of
different kinds are never equal."""

Kind = Literal["avatar", "banner"]
"""The kinds of pictures that a profile names."""

KINDS: tuple[Kind, ...] = ("avatar", "banner")


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


class ActorKey(NamedTuple):
    """A picture of a profile, processed with ``preset``, or if None with the configured one."""

    kind: Kind
    preset: str | None
    actor: Did | Handle
    format: Format | None


def image_key(
    presets: Mapping[str, Preset], preset: str, did: str, cid: str, format_: str | None = None
) -> ImageKey:
    """Check the four parts of an image URL.

    Raises:
        InvalidPreset, InvalidDid, InvalidCid, InvalidFormat: for the first part that is wrong.
    """
    settings = presets.get(preset)
    if settings is None:
        raise InvalidPreset(preset)
    blob = BlobKey(parse_did(did), parse_cid(cid))
    output = None if format_ is None else parse_output(format_)
    return ImageKey(preset, blob, output, settings.fingerprint(output))

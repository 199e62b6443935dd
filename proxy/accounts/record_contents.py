"""Finds the pictures and videos that a record refers to, and the records it embeds. Pure, total.

Lexicons name their fields as they like, but a reference to a blob has one shape in all of them. So
any record is looked through, whatever its collection: posts with images, a gallery or a video,
profiles, documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from proxy.errors import InvalidCid, InvalidRequest
from proxy.model.identifiers import Cid, parse_cid
from proxy.model.keys import Medium
from proxy.model.references import Reference, parse_reference

MAX_VALUES = 2048
"""The most values of a record that are looked at for pictures; a post with four has about 50."""

MAX_PICTURES = 64
"""The most pictures looked for in one record; a post has at most four, a gallery a few dozen."""

MAX_EMBEDDED = 4
"""The most records shown with one; a post quotes one, a document may show several posts."""

MAX_NAME = 64
"""Characters of a field's name that are kept; Lexicons have short ones."""

MAX_ALT = 4000
"""Characters of a description that are kept. The Lexicon has no limit; Bluesky's own client allows
2000 graphemes."""

_MEDIA: tuple[Medium, ...] = ("image", "video")

_EMBEDS = {
    "app.bsky.embed.record": ("record", "uri"),
    "app.bsky.embed.recordWithMedia": ("record", "record", "uri"),
    "pub.leaflet.blocks.bskyPost": ("postRef", "uri"),
    "social.grain.gallery.item": ("item",),
}
"""Where what shows another record names it, by ``$type``."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A blob that a record refers to.

    Attributes:
        name: the name of the field that refers to it, such as ``avatar``.
        alt: its description, if there is one beside the reference.
        medium: ``video``: it is one, and its poster is the picture.
    """

    cid: Cid
    name: str
    alt: str = ""
    medium: Medium = "image"


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a record.

    Attributes:
        pictures: each once, in the order of the record, at most ``MAX_PICTURES``.
        embedded: the records that it shows, by their DIDs, at most ``MAX_EMBEDDED``.
    """

    pictures: list[Picture]
    embedded: list[Reference]


def contents_of(record: object) -> Contents:
    """What is in the first ``MAX_VALUES`` values of a record. Pure, total."""
    found: dict[Cid, Picture] = {}
    embedded: dict[Reference, None] = {}
    for name, alt, value in islice(_values("", "", record), MAX_VALUES):
        if len(found) == MAX_PICTURES:
            break
        if (blob := _blob_in(value)) is not None:
            cid, medium = blob
            found.setdefault(cid, Picture(cid, name[:MAX_NAME], alt[:MAX_ALT], medium))
        elif len(embedded) < MAX_EMBEDDED and (shown := _embedded_in(value)) is not None:
            embedded.setdefault(shown)
    return Contents(list(found.values()), list(embedded))


def picture_cid(value: object) -> Cid | None:
    """The CID of a blob reference if its media type is an image type. Pure, total."""
    blob = _blob_in(value)
    return blob[0] if blob is not None and blob[1] == "image" else None


def _blob_in(value: object) -> tuple[Cid, Medium] | None:
    """The blob that a reference names, if it is an image or a video.

    atproto, Data Model, "Blob Type", and its deprecated form without a ``$type``.
    """
    if not isinstance(value, dict):
        return None
    kind = value.get("mimeType")
    medium = kind.partition("/")[0] if isinstance(kind, str) and "/" in kind else None
    if value.get("$type") == "blob":
        ref = value.get("ref")
        text = ref.get("$link") if isinstance(ref, dict) else None
    else:
        text = value.get("cid") if value.keys() == {"cid", "mimeType"} else None
    for known in _MEDIA:
        if medium == known and isinstance(text, str):
            try:
                return parse_cid(text), known
            except InvalidCid:
                return None
    return None


def _embedded_in(value: object) -> Reference | None:
    """The record that an object shows, if it is of a type that shows one."""
    kind = value.get("$type") if isinstance(value, dict) else None
    path = _EMBEDS.get(kind) if isinstance(kind, str) else None
    if path is None:
        return None
    inner: object = value
    for key in path:
        inner = inner.get(key) if isinstance(inner, dict) else None
    if not isinstance(inner, str) or not inner.startswith("at://did:"):
        return None
    try:
        reference = parse_reference(inner)
    except InvalidRequest:
        return None
    return reference if reference.record is not None else None


def _values(name: str, alt: str, value: object) -> Iterator[tuple[str, str, object]]:
    """``value`` and the values in it, each with the name of its field and the text beside it."""
    todo = [iter([(name, alt, value)])]
    while todo:
        for name, alt, value in todo[-1]:
            yield name, alt, value
            if inner := _inside(name, alt, value):
                todo.append(inner)
                break
        else:
            todo.pop()


def _inside(name: str, alt: str, value: object) -> Iterator[tuple[str, str, object]] | None:
    if isinstance(value, list):
        return ((name, alt, inner) for inner in value)
    if not isinstance(value, dict) or _blob_in(value) is not None:
        return None
    beside = value.get("alt")
    own = beside if isinstance(beside, str) else ""
    return ((key, own, inner) for key, inner in value.items())

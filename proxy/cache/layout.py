"""The path of an entry below the cache folder: a function of its URL, which nginx can compute.

    {method}/{shard}/{identifier}/{preset}-{fingerprint}/{cid}@{format or "auto"}.{extension}

    plc/ab/abcdefghijklmnopqrstuvwx/avatar-0123456789/bafkrei...@auto.jpg

The shard is the first two characters of the identifier. Method and identifier are separate
folders, so that the longest hostname still fits into a file name (255 bytes). Pure.
"""

from __future__ import annotations

from proxy.errors import InvalidRequest
from proxy.model.formats import OUTPUTS, Format
from proxy.model.identifiers import Did, parse_cid, parse_did
from proxy.model.keys import BlobKey, ImageKey

IMAGES = "images"
"""The folder of all result files, below the cache folder."""

AUTO = "auto"
"""The format in the file name of a result whose URL names no format."""

FORMATS_OF_AUTO = (Format.JPEG, Format.PNG, Format.GIF, Format.WEBP, Format.AVIF)
"""The formats that such a result can have, most frequent first."""


def owner_folder(did: Did) -> str:
    """Return the folder of all entries of an owner.

    As text, as all paths here: a miss asks for several, and ``pathlib`` takes long to join them.
    """
    _scheme, method, identifier = did.split(":", 2)
    return f"{method}/{identifier[:2]}/{identifier}"


def entry_folder(key: ImageKey) -> str:
    """Return the folder of the file of ``key``."""
    return f"{owner_folder(key.blob.did)}/{key.preset}-{key.fingerprint}"


def entry_name(key: ImageKey, format_: Format) -> str:
    """Return the file name of ``key`` for a result in ``format_``."""
    asked = AUTO if key.format is None else key.format.value
    return f"{key.blob.cid}@{asked}.{format_.extension}"


def possible_formats(key: ImageKey) -> tuple[Format, ...]:
    """Return the formats that a result of ``key`` can have."""
    return FORMATS_OF_AUTO if key.format is None else (key.format,)


def blob_of(folder: str, name: str) -> BlobKey | None:
    """Return the blob of a result file; None if the names are not those of a result. Total."""
    match folder.split("/"):
        case [method, _shard, identifier, _preset]:
            try:
                return BlobKey(
                    parse_did(f"did:{method}:{identifier}"), parse_cid(name.partition("@")[0])
                )
            except InvalidRequest:
                return None
    return None


def format_of(name: str) -> Format | None:
    """Return the format that a file name declares; None if it is not the name of an entry."""
    stem, _, extension = name.rpartition(".")
    asked = stem.partition("@")[2]
    for format_ in Format:
        if format_.extension == extension:
            named = FORMATS_OF_AUTO if asked == AUTO else (*OUTPUTS, Format.JSON)
            fits = format_ in named and asked in (AUTO, format_.value)
            return format_ if fits else None
    return None

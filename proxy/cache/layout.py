"""Where an entry lies below the cache folder: a function of its URL, which nginx can compute.

    {method}/{shard}/{identifier}/{preset}-{fingerprint}/{cid}@{format or "auto"}.{extension}

    plc/ab/abcdefghijklmnopqrstuvwx/avatar-0123456789/bafkrei...@auto.jpg

The shard is the first two characters of the identifier. Method and identifier are separate, so
that the longest hostname still makes a file name (255 bytes). Pure.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from proxy.errors import InvalidRequest
from proxy.model.formats import OUTPUTS, Format
from proxy.model.identifiers import Did, parse_cid, parse_did
from proxy.model.keys import BlobKey, ImageKey

IMAGES = "images"
"""The folder of all files, below the cache folder."""

AUTO = "auto"
"""Stands for the format in the names of results whose URL names none."""

FORMATS_OF_AUTO = (Format.JPEG, Format.PNG, Format.GIF, Format.WEBP)
"""What such a result can be, most frequent first."""


def owner_folder(did: Did) -> PurePosixPath:
    """The folder of all entries of an owner."""
    _scheme, method, identifier = did.split(":", 2)
    return PurePosixPath(method, identifier[:2], identifier)


def entry_folder(key: ImageKey) -> PurePosixPath:
    """The folder that the file of ``key`` lies in."""
    return owner_folder(key.blob.did) / f"{key.preset}-{key.fingerprint}"


def entry_name(key: ImageKey, format_: Format) -> str:
    """The file name of ``key`` when its result has ``format_``."""
    asked = AUTO if key.format is None else key.format.value
    return f"{key.blob.cid}@{asked}.{format_.extension}"


def possible_formats(key: ImageKey) -> tuple[Format, ...]:
    """The formats that a result of ``key`` can have."""
    return FORMATS_OF_AUTO if key.format is None else (key.format,)


def blob_of(folder: str, name: str) -> BlobKey | None:
    """The blob that a file by these names is a result of; None for what is no such file. Total."""
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
    """The format that a file name says its content has; None for what no entry is called."""
    stem, _, extension = name.rpartition(".")
    asked = stem.partition("@")[2]
    for format_ in Format:
        if format_.extension == extension:
            named = FORMATS_OF_AUTO if asked == AUTO else OUTPUTS
            fits = format_ in named and asked in (AUTO, format_.value)
            return format_ if fits else None
    return None

"""Where an entry lies below the cache folder: a function of its URL, which nginx can compute.

    {method}/{shard}/{identifier}/{preset}-{fingerprint}/{cid}@{format or "auto"}.{extension}

    plc/ab/abcdefghijklmnopqrstuvwx/avatar-0123456789/bafkrei...@auto.jpg

The shard is the first two characters of the identifier. Method and identifier are separate, so
that the longest hostname still makes a file name (255 bytes). Pure.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from proxy.formats import Format
from proxy.identifiers import Did
from proxy.urls import ImageKey

AUTO = "auto"
"""Stands for the format in the names of results whose URL names none."""

FORMATS_OF_AUTO = (Format.JPEG, Format.PNG, Format.GIF, Format.WEBP)
"""What such a result can be, most frequent first."""

TEMPORARY_SUFFIX = ".tmp"


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


def owner_of(path: PurePosixPath) -> Did | None:
    """The owner of the entry at ``path``, relative to the cache folder; None: it is none."""
    match path.parts:
        case (method, _shard, identifier, _preset, _name):
            return Did(f"did:{method}:{identifier}")
    return None


def cid_of(name: str) -> str:
    """The CID part of a file name."""
    return name.partition("@")[0]

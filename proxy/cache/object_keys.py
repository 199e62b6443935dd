"""The keys of the objects in a shared store: every purge finds its objects by prefixes. Pure.

    v1/owners/{method}/{identifier}/{cid}/{preset}-{fingerprint}@{format or "auto"}   a result
    v1/owners/{method}/{identifier}/{cid}/source                                      a blob
    v1/blobs/{cid}/{method}/{identifier}                                              a mark

    v1/owners/plc/abcdefghijklmnopqrstuvwx/bafkrei.../avatar-0123456789@auto

The CID is that of the content: all CIDs of the same bytes share their objects. A mark is empty. It
says that this owner may have objects of this blob, is written before them and removed after them.
So the objects of a blob are found without knowing its owners.
"""

from __future__ import annotations

from proxy.cache.layout import AUTO
from proxy.errors import InvalidRequest
from proxy.model.identifiers import Cid, Did, content_cid, parse_cid, parse_did
from proxy.model.keys import BlobKey, ImageKey

OWNERS = "v1/owners"
"""The prefix of all results and sources."""

MARKS = "v1/blobs"
"""The prefix of all marks."""

SOURCE = "source"


def owner_prefix(did: Did) -> str:
    """Return the prefix of all objects of an owner, without the slash at its end."""
    return f"{OWNERS}/{_owner(did)}"


def pair_prefix(blob: BlobKey) -> str:
    """Return the prefix of all objects of one owner's blob, without the slash at its end."""
    return f"{owner_prefix(blob.did)}/{content_cid(blob.cid)}"


def marks_prefix(cid: Cid) -> str:
    """Return the prefix of the marks of a blob, without the slash at its end."""
    return f"{MARKS}/{content_cid(cid)}"


def result_path(key: ImageKey) -> str:
    """Return the path of a result."""
    asked = AUTO if key.format is None else key.format.value
    return f"{pair_prefix(key.blob)}/{key.preset}-{key.fingerprint}@{asked}"


def source_path(blob: BlobKey) -> str:
    """Return the path of a source."""
    return f"{pair_prefix(blob)}/{SOURCE}"


def mark_path(blob: BlobKey) -> str:
    """Return the path of a mark."""
    return f"{marks_prefix(blob.cid)}/{_owner(blob.did)}"


def blob_at(path: str) -> BlobKey | None:
    """Return the blob of a result, a source or a mark; None for any other path. Total."""
    match path.split("/"):
        case ["v1", "owners", method, identifier, cid, _]:
            pass
        case ["v1", "blobs", cid, method, identifier]:
            pass
        case _:
            return None
    try:
        return BlobKey(parse_did(f"did:{method}:{_did_part(identifier)}"), parse_cid(cid))
    except InvalidRequest:
        return None


def _owner(did: Did) -> str:
    """Return ``{method}/{identifier}``. A store may encode a percent sign, but no underscore."""
    _scheme, method, identifier = did.split(":", 2)
    return f"{method}/{identifier.replace('%3A', '_')}"


def _did_part(identifier: str) -> str:
    return identifier.replace("_", "%3A")

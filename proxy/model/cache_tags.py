"""The tags by which a CDN finds its copies of an owner's pictures, or of a blob. Pure.

They are made of letters, digits, dots and hyphens, and have at most ``MAX_TAG`` characters: of the
CDNs that say what they accept, CloudFront accepts the least (256 visible characters without commas,
in either case alike). nginx makes the same tags from parts of a URL.
"""

from __future__ import annotations

import hashlib
import re

from proxy.model.identifiers import Cid, Did, content_cid

MAX_TAG = 128
"""Characters."""

MAX_PLAIN_IDENTIFIER = MAX_TAG - len("web-")
"""Characters of an identifier that is part of a tag as it is. A longer one, or one with a port, is
hashed."""

_PLAIN = re.compile(rf"[a-z0-9.-]{{1,{MAX_PLAIN_IDENTIFIER}}}")

DIGEST_AT = len("bafkrei")
"""Where the digest begins in a CIDv1: the same 52 characters follow in every one of these bytes."""


def owner_tag(did: Did) -> str:
    """Return the tag of all pictures of an owner: ``plc-z72i7hdynmk6r22z27h6tvur``."""
    _, method, identifier = did.split(":", 2)
    if not _PLAIN.fullmatch(identifier):
        identifier = hashlib.sha256(identifier.encode()).hexdigest()
    return f"{method}-{identifier}"


def content_tag(cid: Cid) -> str:
    """Return the tag of all pictures of some bytes, the same one however their CID is spelled."""
    return f"cid-{content_cid(cid)[DIGEST_AT:]}"

"""Checks DIDs, CIDs and handles.

Only the canonical spelling of a DID or CID is accepted. A second spelling of an owner would not
match the owner's block, and would get a second cache entry. So nothing is normalised: a spelling
that is not canonical is refused. Handles are names that people type. They are used only to find a
DID.

Pure.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import NewType

from libipld import decode_cid, encode_cid

from proxy.errors import InvalidCid, InvalidDid, InvalidHandle

Did = NewType("Did", str)
Cid = NewType("Cid", str)
Handle = NewType("Handle", str)

# did:plc method, section "Identifier syntax": 24 characters of base32.
_PLC = re.compile(r"did:plc:[a-z2-7]{24}")

# atproto DID specification: did:web has only a hostname and no path; a port is allowed only on
# localhost, for development. Only lower case is accepted, because DNS names are compared without
# case and DIDs are not.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_WEB = re.compile(rf"did:web:(?:{_LABEL}(?:\.{_LABEL})*\.[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?)")
_WEB_LOCALHOST = re.compile(r"did:web:localhost(?:%3A([1-9][0-9]{0,4}))?")

_HANDLE = re.compile(rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")

# atproto, Handle specification, "Additional Non-Syntax Restrictions".
_NO_HANDLES_BELOW = frozenset(
    {"alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion", "test"}
)

OwnNames = bool | tuple[str, ...]
"""Handles that nobody has on the Internet: true, those below ``.test``, which are for development;
or these, of a network of one's own."""

DID_PATTERN = "|".join(each.pattern for each in (_PLC, _WEB, _WEB_LOCALHOST))
HANDLE_PATTERN = _HANDLE.pattern.replace("a-z", "a-zA-Z")
CID_PATTERN = "baf(?:krei|ybei)[a-h][a-z2-7]{50}[aeimquy4]|Qm[1-9A-HJ-NP-Za-km-z]{44}"
"""What is accepted matches; not all that matches is accepted. For other languages."""

MAX_HOSTNAME = 253
"""RFC 1035, section 2.3.4, without the length octets."""

MAX_CID = 128
"""The longest CID string that is parsed. A canonical sha2-256 CID has 46 or about 59 characters."""

_SHA2_256 = 0x12

_RAW = 0x55
"""The codec of a blob's CID (atproto, Data Model, "Link and CID Formats", and Blob, "Blob
Metadata"): CIDv1, raw, sha2-256. DAG-CBOR is for records and never names a blob."""

_DAG_PB = 0x70
"""The codec of every CIDv0. Image URLs may have CIDv0, so its CIDv1 spelling is accepted too."""

_START_OF_RAW = "bafkrei"
"""How the bytes 01 55 12 20 begin in base32: CIDv1, raw, sha2-256 of 32 bytes."""


def parse_did(text: str) -> Did:
    """Check a DID.

    Raises:
        InvalidDid: it is not a did:plc or did:web, or not in its canonical spelling.
    """
    if _PLC.fullmatch(text):
        return Did(text)
    if _WEB.fullmatch(text) and len(text) - len("did:web:") <= MAX_HOSTNAME:
        return Did(text)
    localhost = _WEB_LOCALHOST.fullmatch(text)
    if localhost and int(localhost[1] or 1) <= 65535:
        return Did(text)
    raise InvalidDid(f"DID {text[:96]!a}")


def did_web_authority(did: Did) -> str | None:
    """``host`` or ``host:port`` of a did:web, or None for another method."""
    prefix = "did:web:"
    if not did.startswith(prefix):
        return None
    return did[len(prefix) :].replace("%3A", ":")


def parse_handle(text: str, *, own_names: OwnNames = False) -> Handle:
    """Check a handle, and return it in lower case (atproto, Handle specification).

    Args:
        own_names: names of the operator's own network that are accepted as well.

    Raises:
        InvalidHandle: it does not have the syntax of a handle, or its top-level domain may not have
            handles.
    """
    # Check for ASCII before lower(), because lower() turns the Kelvin sign into an ASCII letter.
    handle = text.lower() if text.isascii() else ""
    if len(handle) <= MAX_HOSTNAME and _HANDLE.fullmatch(handle):
        top = handle.rpartition(".")[2]
        is_own = own_names and top == "test" if isinstance(own_names, bool) else handle in own_names
        if is_own or top not in _NO_HANDLES_BELOW:
            return Handle(handle)
    raise InvalidHandle(f"handle {text[:96]!a}")


def parse_cid(text: str) -> Cid:
    """Check the CID of a blob: sha2-256 of 32 bytes, as CIDv1 in lower-case base32 or as CIDv0.

    The codec is raw, or DAG-PB, which CIDv0 implies.

    Raises:
        InvalidCid: it is anything else, such as another spelling of a valid CID, or the CID of a
            record.
    """
    if not text.isascii() or len(text) > MAX_CID or _canonical(text) != text:
        raise InvalidCid(f"CID {text[:96]!a}")
    return Cid(text)


def cid_digest(cid: Cid) -> bytes:
    """The sha2-256 digest of the content that ``cid`` names, 32 bytes."""
    digest: bytes = decode_cid(cid)["hash"]["digest"]
    return digest


def cid_of(data: bytes) -> Cid:
    """The raw CIDv1 of ``data``."""
    return Cid(encode_cid(bytes([1, _RAW, _SHA2_256, 32]) + sha256(data).digest()))


def content_cid(cid: Cid) -> Cid:
    """The raw CIDv1 of the same digest: all CIDs of the same bytes have the same one. Total.

    What is not a CID with a sha2-256 digest is returned as it is.
    """
    # Asked before every hit; nearly every CID is raw.
    return cid if cid.startswith(_START_OF_RAW) else spellings(cid)[0]


@lru_cache(maxsize=1024)
def spellings(cid: Cid) -> tuple[Cid, ...]:
    """Every accepted CID of the same digest, the raw CIDv1 first. Total, as ``content_cid`` is."""
    try:
        hash_ = decode_cid(cid)["hash"]
    except ValueError:
        return (cid,)
    if hash_["code"] != _SHA2_256 or len(hash_["digest"]) != 32:
        return (cid,)
    multihash = bytes([_SHA2_256, 32]) + hash_["digest"]
    return (
        Cid(encode_cid(bytes([1, _RAW]) + multihash)),
        Cid(encode_cid(bytes([1, _DAG_PB]) + multihash)),
        Cid(encode_cid(multihash)),
    )


def _canonical(text: str) -> str | None:
    """The canonical spelling of a CID, or None if ``text`` is not a CID that is accepted."""
    try:
        parts = decode_cid(text)
    except ValueError:
        return None
    hash_ = parts["hash"]
    if hash_["code"] != _SHA2_256 or hash_["size"] != 32 or len(hash_["digest"]) != 32:
        return None
    multihash = bytes([_SHA2_256, 32]) + hash_["digest"]
    if parts["version"] == 0:
        return encode_cid(multihash)
    if parts["codec"] not in (_RAW, _DAG_PB):
        return None
    return encode_cid(bytes([1, parts["codec"]]) + multihash)

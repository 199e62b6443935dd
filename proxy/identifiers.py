"""DIDs and CIDs: only their canonical spelling is an identifier here.

A second spelling of an owner would miss its block and get a second cache entry, so nothing is
normalised: what is not already canonical is refused.
"""

from __future__ import annotations

import re
from typing import NewType

from libipld import decode_cid, encode_cid

from proxy.errors import InvalidCid, InvalidDid

Did = NewType("Did", str)
Cid = NewType("Cid", str)

# did:plc method, section "Identifier syntax": 24 characters of base32.
_PLC = re.compile(r"did:plc:[a-z2-7]{24}")

# atproto DID spec: did:web with a hostname only, no path; a port only on localhost, for
# development. Lower case, because DNS names compare without case and DIDs do not.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_WEB = re.compile(rf"did:web:(?:{_LABEL}(?:\.{_LABEL})*\.[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?)")
_WEB_LOCALHOST = re.compile(r"did:web:localhost(?:%3A([1-9][0-9]{0,4}))?")

MAX_HOSTNAME = 253
"""RFC 1035, section 2.3.4, without the length octets."""

MAX_CID = 128
"""Longest CID string looked at. A canonical sha2-256 CID has 46 or about 59 characters."""

_SHA2_256 = 0x12


def parse_did(text: str) -> Did:
    """Check a DID.

    Raises:
        InvalidDid: not a did:plc or did:web, or not in its canonical spelling.
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


def parse_cid(text: str) -> Cid:
    """Check a CID: sha2-256 of 32 bytes, CIDv1 in lower-case base32 or CIDv0.

    Raises:
        InvalidCid: anything else, other spellings of a valid CID among it.
    """
    if not text.isascii() or len(text) > MAX_CID or _canonical(text) != text:
        raise InvalidCid(f"CID {text[:96]!a}")
    return Cid(text)


def cid_digest(cid: Cid) -> bytes:
    """The sha2-256 digest, 32 bytes, that the content of ``cid`` has."""
    digest: bytes = decode_cid(cid)["hash"]["digest"]
    return digest


def _canonical(text: str) -> str | None:
    """The canonical spelling of a CID, or None where it is none that is accepted."""
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
    return encode_cid(b"\x01" + _varint(parts["codec"]) + multihash)


def _varint(number: int) -> bytes:
    """Unsigned varint of the multiformats specification: seven bits a byte, low ones first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)

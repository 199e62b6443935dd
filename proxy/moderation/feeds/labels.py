"""Labels: fields, subjects, and the bytes that are signed (atproto, Label specification).

Pure, total.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from libipld import decode_cid, encode_dag_cbor

from proxy.errors import InvalidCid, InvalidDid
from proxy.model.identifiers import Cid, Did, content_cid, parse_cid, parse_did
from proxy.model.selection import Selection

Scope = Literal["owner", "everywhere"]

# The fields of the specification. The signature covers these fields alone.
_SIGNED = ("ver", "src", "uri", "cid", "val", "neg", "cts", "exp")

MAX_VALUE = 128
"""Bytes of a label's value (Label specification, "Schema and Data Model")."""

MAX_URI = 8192
"""Bytes of an at:// URI (AT URI specification)."""

# NSID and record key specifications.
_NSID = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*(?:\.[a-zA-Z0-9-]+)+")
_RECORD_KEY = re.compile(r"[A-Za-z0-9._:~-]{1,512}")

_DAG_CBOR = 0x71
"""The codec of a record's CID. A blob's codec is raw (0x55), so a CID shows which it names."""


class BadLabel(Exception):
    """It is not a label of version 1, or its subject has no pictures."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label as it was received; its signature is not checked yet.

    Attributes:
        uri: its subject, as it was written.
        cid: the version of the record, or the blob, that it is limited to; "": no limit.
        cts: when it was made, in seconds since the epoch, by the clock of its source.
        exp: when it expires, in seconds since the epoch, or None.
        signed: the bytes that ``sig`` must sign.
    """

    src: str
    uri: str
    cid: str
    val: str
    neg: bool
    cts: float
    exp: float | None
    sig: bytes
    signed: bytes


@dataclass(frozen=True, slots=True)
class LabelledRecord:
    """A record whose blobs a label is about.

    Attributes:
        cid: the version of the record; None: any version.
    """

    did: Did
    collection: str
    key: str
    cid: str | None = None

    @property
    def uri(self) -> str:
        return f"at://{self.did}/{self.collection}/{self.key}"


def parse_label(raw: object) -> Label:
    """Read a label of a message.

    Raises:
        BadLabel: a field is missing or has another type, or the label has another version.
    """
    if not isinstance(raw, dict) or type(raw.get("ver")) is not int or raw["ver"] != 1:
        raise BadLabel("not a label of version 1")
    neg = raw.get("neg", False)
    if not isinstance(neg, bool):
        raise BadLabel("neg is no boolean")
    sig = raw.get("sig")
    if not isinstance(sig, bytes):
        raise BadLabel("it is not signed")
    val = _text(raw, "val", MAX_VALUE)
    fields = {name: raw[name] for name in _SIGNED if name in raw}
    return Label(
        src=_text(raw, "src", MAX_URI),
        uri=_text(raw, "uri", MAX_URI),
        cid=_text(raw, "cid", MAX_URI) if "cid" in raw else "",
        val=val,
        neg=neg,
        cts=_seconds(raw, "cts"),
        exp=_seconds(raw, "exp") if "exp" in raw else None,
        sig=sig,
        signed=encode_dag_cbor(fields),
    )


def subject_of(label: Label, scope: Scope = "owner") -> Selection | LabelledRecord:
    """Return the selection to block, or the record whose blobs are to be blocked.

    A DID means the account; with the CID of a blob, that blob of the account. An at:// URI means a
    record; with the CID of a record, that version of it; with the CID of a blob, that blob of the
    record's owner. The specification has no form for blobs, but the codecs of their CIDs differ.

    Args:
        scope: whether a blob is blocked for its owner only, or for every owner.

    Raises:
        BadLabel: the subject is something else, or its spelling is not canonical.
    """
    if label.uri.startswith("at://"):
        authority, slash, path = label.uri.removeprefix("at://").partition("/")
    else:
        authority, slash, path = label.uri, "", ""
    try:
        did = parse_did(authority)
        blob = None if _is_record_cid(label.cid) else parse_cid(label.cid)
    except (InvalidDid, InvalidCid) as error:
        raise BadLabel(str(error)) from None
    if blob is not None:
        return selection_of(did, blob, scope)
    if not slash:
        if label.cid:
            raise BadLabel("an account has no versions")
        return Selection(did=did)
    collection, _slash, key = path.partition("/")
    if not _NSID.fullmatch(collection) or not _RECORD_KEY.fullmatch(key) or key in (".", ".."):
        raise BadLabel(f"not the URI of a record: {label.uri[:200]!a}")
    return LabelledRecord(did, collection, key, label.cid or None)


def selection_of(did: Did, cid: Cid, scope: Scope) -> Selection:
    """Return the selection of a blob, for its owner only or for every owner."""
    # The same content always has the same selection, so it stays blocked until the last label on
    # it is gone.
    cid = content_cid(cid)
    return Selection(did=did, cid=cid) if scope == "owner" else Selection(cid=cid)


def blobs_of(record: object) -> frozenset[Cid]:
    """The blobs that a record in JSON refers to (atproto, Data Model, "Blob Type").

    References to blobs that this service does not serve are skipped.
    """
    found: set[Cid] = set()
    left: list[object] = [record]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            cid = _referred(value)
            if cid is not None:
                found.add(cid)
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return frozenset(found)


def _referred(value: dict[str, Any]) -> Cid | None:
    if value.get("$type") == "blob":
        link = value.get("ref")
        text = link.get("$link") if isinstance(link, dict) else None
    elif isinstance(value.get("mimeType"), str):
        # The form before May 2023; such records still exist.
        text = value.get("cid")
    else:
        return None
    try:
        return parse_cid(text) if isinstance(text, str) else None
    except InvalidCid:
        return None


def _is_record_cid(cid: str) -> bool:
    if not cid:
        return True
    try:
        codec: int = decode_cid(cid)["codec"]
    except ValueError as error:
        raise BadLabel(f"not a CID: {error}") from None
    return codec == _DAG_CBOR


def _text(raw: dict[str, Any], name: str, longest: int) -> str:
    value = raw.get(name)
    # No field has a NUL, and PostgreSQL could not keep it.
    if not isinstance(value, str) or not 0 < len(value.encode()) <= longest or "\0" in value:
        raise BadLabel(f"{name} is no text of 1 to {longest} bytes")
    return value


def _seconds(raw: dict[str, Any], name: str) -> float:
    text = _text(raw, name, 64)
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("it has no time zone")
        return moment.timestamp()
    except (ValueError, OverflowError) as error:
        raise BadLabel(f"{name} is no datetime: {error}") from None

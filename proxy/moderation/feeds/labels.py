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

# The fields that the specification has; no other is part of what is signed.
_SIGNED = ("ver", "src", "uri", "cid", "val", "neg", "cts", "exp")

MAX_VALUE = 128
"""Bytes of a label's value (Label specification, "Schema and Data Model")."""

MAX_URI = 8192
"""Bytes of an at:// URI (AT URI specification)."""

# NSID and record key specifications.
_NSID = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*(?:\.[a-zA-Z0-9-]+)+")
_RECORD_KEY = re.compile(r"[A-Za-z0-9._:~-]{1,512}")

_DAG_CBOR = 0x71
"""The codec of a record's CID. A blob's is raw (0x55), so a CID tells which of both it names."""


class BadLabel(Exception):
    """Not a label of version 1, or about something that has no pictures."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label as it came, its signature not yet checked.

    Attributes:
        uri: whom it is about, as it was written.
        cid: the version of a record, or the blob, that it is about alone; "" for none.
        cts: when it was made, in seconds since the epoch, as its source says.
        exp: when it ends to apply, likewise, or None.
        signed: the bytes that ``sig`` has to be over.
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
        cid: the version of it, or None for any.
    """

    did: Did
    collection: str
    key: str
    cid: str | None = None

    @property
    def uri(self) -> str:
        return f"at://{self.did}/{self.collection}/{self.key}"


def parse_label(raw: object) -> Label:
    """A label out of a message.

    Raises:
        BadLabel: a field is missing or of another type, or it is of another version.
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
    """What is to be blocked, or the record that has to be asked for its blobs.

    A DID is an account; with the CID of a blob, that blob of it. An at:// URI is a record, with
    the CID of a record that version of it; with the CID of a blob, that blob of its owner. The
    specification has no form for blobs; their CIDs cannot be taken for those of records.

    Args:
        scope: whether a blob is blocked of its owner or of everybody.

    Raises:
        BadLabel: about something else, or in a spelling that is not canonical.
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
    """A blob of its owner, or of everybody."""
    # One selection for one content: it stays blocked until the last label on it is gone.
    cid = content_cid(cid)
    return Selection(did=did, cid=cid) if scope == "owner" else Selection(cid=cid)


def blobs_of(record: object) -> frozenset[Cid]:
    """The blobs that a record refers to, in JSON (atproto, Data Model, "Blob Type").

    Other values are skipped, and so are references to blobs that cannot be asked for here.
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
        # The form that records had before May 2023; they are still there.
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
    if not isinstance(value, str) or not value or len(value.encode()) > longest:
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

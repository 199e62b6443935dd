"""Labels and their signatures: those that Bluesky's own code signed hold, and no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from proxy.moderation.feeds.event_frames import decode_frame
from proxy.moderation.feeds.labels import (
    BadLabel,
    Label,
    LabelledRecord,
    blobs_of,
    parse_label,
    subject_of,
)
from proxy.moderation.feeds.signatures import _K256, _P256, BadKey, parse_key
from tests.fakes.streams import SigningKey

CASES = json.loads((Path(__file__).parent / "vectors.json").read_text())["cases"]
IDS = [case["name"] for case in CASES]

SRC = "did:plc:ar7c4by46qjdydhdevvrndac"
OWNER = Did("did:plc:z72i7hdynmk6r22z27h6tvur")
RECORD = f"at://{OWNER}/app.bsky.feed.post/3jzfcijpj2z2a"
POST = LabelledRecord(OWNER, "app.bsky.feed.post", "3jzfcijpj2z2a")
VERSION = "bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a"
BLOB = Cid("bafkreihagr2cmvl2jt4mgx3sppwe2it3fwolkrbtjrhcnwjk4jdijhsoze")
CTS = "2026-01-02T03:04:05.678Z"


def raw_of(case: dict[str, Any]) -> dict[str, Any]:
    message = decode_frame(bytes.fromhex(case["frame"]))
    assert message is not None
    (raw,) = message.body["labels"]
    assert isinstance(raw, dict)
    return raw


def made(**fields: Any) -> Label:
    """A label that nobody signed."""
    whole = {"ver": 1, "src": SRC, "uri": OWNER, "val": "!takedown", "cts": CTS, "sig": b""}
    return parse_label({**whole, **fields})


# Signatures.


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_label_that_the_real_code_signed_holds(case: dict[str, Any]) -> None:
    """Catches: a label that the real code signed does not hold."""
    label = parse_label(raw_of(case))
    assert parse_key("Multikey", case["key"]).has_signed(label.signed, label.sig)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize(
    "change",
    [
        {"val": "!warn"},
        {"uri": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"},
        {"src": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"},
        {"cid": VERSION[:-1] + "q"},
        {"cts": "2026-01-02T03:04:05.679Z"},
        {"exp": "2030-01-03T03:04:05.678Z"},
        {"neg": False},
        {"sig": bytes(64)},
        {"sig": b"\xff" * 64},
        {"sig": b""},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_label_that_was_changed_does_not_hold(
    case: dict[str, Any], change: dict[str, Any]
) -> None:
    """Catches: a label that was changed holds."""
    label = parse_label({**raw_of(case), **change})
    assert not parse_key("Multikey", case["key"]).has_signed(label.signed, label.sig)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_field_that_the_specification_does_not_have_is_ignored(case: dict[str, Any]) -> None:
    """It is no part of what is signed.

    Catches: a field that the specification does not have counts.
    """
    raw = raw_of(case)
    label = parse_label({**raw, "$type": "com.atproto.label.defs#label", "more": 1})
    assert label == parse_label(raw)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_second_signature_that_mathematics_allows_does_not_hold(case: dict[str, Any]) -> None:
    """From (r, s) anybody can make (r, n - s); the specification allows the lower s alone.

    Catches: the second signature that mathematics allows holds.
    """
    label = parse_label(raw_of(case))
    _curve, order = _K256 if case["name"].endswith("k256") else _P256
    high = order - int.from_bytes(label.sig[32:])
    twin = label.sig[:32] + high.to_bytes(32)
    assert not parse_key("Multikey", case["key"]).has_signed(label.signed, twin)
    for cut in (label.sig[:-1], label.sig + b"\0", label.sig[32:]):
        assert not parse_key("Multikey", case["key"]).has_signed(label.signed, cut)


def test_a_key_of_another_labeler_does_not_hold() -> None:
    """Catches: a key of another labeler holds."""
    label = parse_label(raw_of(CASES[0]))
    for case in CASES:
        if case["key"] != CASES[0]["key"]:
            assert not parse_key("Multikey", case["key"]).has_signed(label.signed, label.sig)
    assert not parse_key("Multikey", SigningKey().multikey).has_signed(label.signed, label.sig)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "z",
        "zQ3sh",
        CASES[0]["key"][1:],
        CASES[0]["key"][:-1],
        "m" + CASES[0]["key"][1:],
        "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",  # Ed25519
        "z0OIl",
        "z" * 1000,
        "\u00e9",
    ],
)
def test_an_invalid_key_is_refused(text: str) -> None:
    """Catches: a reader that takes any key for one of the AT Protocol."""
    with pytest.raises(BadKey):
        parse_key("Multikey", text)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_key_in_the_form_of_older_documents_is_read(case: dict[str, Any]) -> None:
    """Catches: a reader that knows the newer form of keys alone."""
    label = parse_label(raw_of(case))
    curve, other = ("k1", "r1") if case["name"].endswith("k256") else ("r1", "k1")
    key = parse_key(f"EcdsaSecp256{curve}VerificationKey2019", case["older key"])
    assert key.has_signed(label.signed, label.sig)
    for kind in (f"EcdsaSecp256{other}VerificationKey2019", "Multikey", "JsonWebKey2020", ""):
        with pytest.raises(BadKey):
            parse_key(kind, case["older key"])


# What a label says.


def test_the_fields_of_a_label_are_read_as_they_are() -> None:
    """Catches: the fields of a label are mixed up."""
    label = parse_label(raw_of(CASES[IDS.index("expiring, k256")]))
    assert (label.src, label.uri, label.val) == (SRC, OWNER, "!takedown")
    assert (label.cts, label.exp) == (1767323045.678, 1767409445.678)
    assert (label.neg, label.cid) == (False, "")
    assert parse_label(raw_of(CASES[IDS.index("negated, k256")])).neg
    assert parse_label(raw_of(CASES[IDS.index("record, k256")])).cid == VERSION


@pytest.mark.parametrize(
    "fields",
    [
        {"ver": 2},
        {"ver": True},
        {"ver": 1.0},
        {"ver": None},
        {"src": ""},
        {"src": None},
        {"uri": 5},
        {"val": "x" * 129},
        {"val": "\u00e9" * 65},
        {"val": ""},
        {"neg": 1},
        {"neg": None},
        {"cid": None},
        {"cid": ""},
        {"sig": "text"},
        {"sig": None},
        {"cts": "yesterday"},
        {"cts": "2026-01-02T03:04:05"},
        {"cts": "9999-99-99T00:00:00Z"},
        {"cts": "2026-01-02T03:04:05Z" + "0" * 100},
        {"exp": 5},
        {"exp": ""},
    ],
    ids=ascii,
)
def test_a_label_of_another_version_is_refused(fields: dict[str, Any]) -> None:
    """Catches: a reader that takes labels of every version for version 1."""
    with pytest.raises(BadLabel):
        made(**fields)


@pytest.mark.parametrize("raw", [None, 5, "label", [], {}, {"ver": 1}])
def test_an_invalid_label_is_refused(raw: object) -> None:
    """Catches: a reader that takes anything for a label."""
    with pytest.raises(BadLabel):
        parse_label(raw)


def test_a_label_with_a_nul_in_its_subject_is_refused() -> None:
    """Catches: one that PostgreSQL cannot keep, before which the stream stands still."""
    with pytest.raises(BadLabel):
        made(uri=f"at://{OWNER}/a\0b", cid=BLOB)


@given(
    st.dictionaries(
        st.sampled_from(["ver", "src", "uri", "cid", "val", "neg", "cts", "exp", "sig"]),
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.text(max_size=40)
        | st.binary(max_size=70)
        | st.sampled_from([1, OWNER, RECORD, BLOB, VERSION, CTS, "at://", "did:plc:"]),
    )
)
def test_no_label_makes_any_other_error(raw: dict[str, Any]) -> None:
    try:
        subject_of(parse_label(raw))
    except BadLabel:
        return


# Whom it is about.


@pytest.mark.parametrize(
    ("fields", "subject"),
    [
        ({"uri": OWNER}, Selection(did=OWNER)),
        ({"uri": f"at://{OWNER}"}, Selection(did=OWNER)),
        ({"uri": OWNER, "cid": BLOB}, Selection(did=OWNER, cid=BLOB)),
        ({"uri": RECORD, "cid": BLOB}, Selection(did=OWNER, cid=BLOB)),
        ({"uri": RECORD}, POST),
        ({"uri": RECORD, "cid": VERSION}, replace(POST, cid=VERSION)),
        (
            {"uri": f"at://{OWNER}/app.bsky.actor.profile/self"},
            LabelledRecord(OWNER, "app.bsky.actor.profile", "self"),
        ),
    ],
)
def test_each_subject_is_read_as_what_it_is(
    fields: dict[str, Any], subject: Selection | LabelledRecord
) -> None:
    """Catches: a subject is taken for another."""
    assert subject_of(made(**fields)) == subject


def test_a_blob_is_blocked_of_the_owners_that_the_operator_wants() -> None:
    """Catches: a blob is blocked of more owners than the operator wants."""
    for uri in (OWNER, RECORD):
        assert subject_of(made(uri=uri, cid=BLOB), "owner") == Selection(did=OWNER, cid=BLOB)
        assert subject_of(made(uri=uri, cid=BLOB), "everywhere") == Selection(cid=BLOB)
    # An account is one owner whatever the scope.
    assert subject_of(made(uri=OWNER), "everywhere") == Selection(did=OWNER)


@pytest.mark.parametrize(
    "fields",
    [
        {"uri": "https://bsky.app/profile/someone"},
        {"uri": "did:key:zQ3sh"},
        {"uri": "someone.example"},
        {"uri": OWNER.upper()},
        {"uri": OWNER, "cid": VERSION},
        {"uri": OWNER, "cid": "not a CID"},
        {"uri": OWNER, "cid": BLOB.upper()},
        {"uri": "at://someone.example/app.bsky.feed.post/3jzfcijpj2z2a"},
        {"uri": f"at://{OWNER}/app.bsky.feed.post"},
        {"uri": f"at://{OWNER}/post/3jzfcijpj2z2a"},
        {"uri": f"at://{OWNER}/app.bsky.feed.post/../x"},
        {"uri": f"at://{OWNER}/app.bsky.feed.post/.."},
        {"uri": f"at://{OWNER}/app.bsky.feed.post/a?b"},
        {"uri": f"at://{OWNER}/app.bsky.feed.post/a/b"},
        {"uri": f"at://{OWNER}/app.bsky.feed.post&x=/a"},
        {"uri": f"at://{OWNER}/app.bsky.feed.post/" + "a" * 513},
        {"uri": f"at://{OWNER}/"},
    ],
    ids=ascii,
)
def test_a_label_about_something_else_blocks_nothing(fields: dict[str, Any]) -> None:
    """Catches: a label about something else blocks something."""
    with pytest.raises(BadLabel):
        subject_of(made(**fields))


# The blobs of a record.


def ref(cid: str) -> dict[str, Any]:
    return {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/png", "size": 5}


def test_a_blob_deep_in_a_record_or_in_its_old_form_is_found() -> None:
    """Catches: a blob deep in a record or in its old form is overlooked."""
    other = Cid("bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4")
    record = {
        "$type": "app.bsky.feed.post",
        "embed": {"media": {"images": [{"alt": "", "image": ref(BLOB)}]}},
        "old": {"cid": other, "mimeType": "image/jpeg"},
        "reply": {"parent": {"uri": RECORD, "cid": VERSION}},
        "text": BLOB,
    }
    assert blobs_of(record) == {BLOB, other}


@pytest.mark.parametrize(
    "record",
    [
        None,
        {"$type": "blob"},
        {"$type": "blob", "ref": BLOB},
        {"$type": "blob", "ref": {"$link": 5}},
        ref("not a CID"),
        ref(BLOB.upper()),
        {"cid": BLOB},
        {"mimeType": "image/png"},
        {"mimeType": "image/png", "cid": 5},
    ],
)
def test_an_invalid_reference_is_passed_over(record: object) -> None:
    """Catches: a reader that takes anything for a reference."""
    assert blobs_of(record) == frozenset()


def test_a_record_nested_a_thousand_deep_is_read() -> None:
    """Catches: a record nested a thousand deep overflows the stack."""
    record: Any = ref(BLOB)
    for _ in range(100_000):
        record = [record]
    assert blobs_of(record) == {BLOB}
    # Freed from the outside in, without recursion of the interpreter's own.
    while isinstance(record, list):
        record = record[0]

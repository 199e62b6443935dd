"""The table of what PDSes answer: each row in the words of those that say it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounts.pds_answers import ROWS, Verdict, verdict_of
from tests.reference import MADE
from tests.rooms import ROOT

NAMES = ("BlobNotFound", "RepoNotFound", "RepoTakendown", "RepoSuspended", "RepoDeactivated")

ABSENT = [
    (404, b""),
    (404, b"<html>"),
    (410, b""),
    (451, b"<html>"),
    *((400, json.dumps({"error": name, "message": "whatever"}).encode()) for name in NAMES),
    *((403, json.dumps({"error": name}).encode()) for name in NAMES),
    # Bluesky's PDS, and its older releases.
    (400, b'{"error":"InvalidRequest","message":"Blob not found"}'),
    (400, b'{"error":"InvalidRequest","message":"blob not found: bafk"}'),
    (400, b'{"error":"InvalidRequest","message":"Could not find repo for DID: did:plc:x"}'),
    # Bridgy Fed, today and before lexrpc had error names.
    (400, b'{"error":"InvalidRequest","message":"No blob found for CID bafk"}'),
    (400, b'{"message":"No blob found for CID bafk"}'),
    (400, b'{"error":"RepoNotFound","message":"Repo did:plc:x not found"}'),
    (400, b'{"error":"RepoDeactivated","message":"Repo did:plc:x is tombstoned"}'),
    # cocoon, which sends no message.
    (400, b'{"error":"BlobNotFound"}'),
    (400, b'{"error":"RepoDeactivated"}'),
    # rsky
    (400, b'{"error":"BlobNotFound","message":"Blob could not be found"}'),
    # Pegasus
    (500, b'{"error":"InternalServerError","message":"blob not found"}'),
    # millipds
    (404, b"blob not found"),
    # cirrus and tranquil-pds
    (404, b'{"error":"BlobNotFound","message":"Blob not found: bafk"}'),
    (404, b'{"error":"RepoNotFound","message":"Repository not found for DID: did:plc:x"}'),
    (400, b'{"message":"BLOB NOT FOUND"}'),
]

UNCLEAR = [
    (400, b""),
    (400, b"blob not found"),
    (400, b'{"error":"InvalidRequest"}'),
    (400, b'{"error":"InvalidRequest","message":"cid must be a cid string"}'),
    (400, b'{"error":"ExpiredToken"}'),
    (400, b'"BlobNotFound"'),
    (400, b'["BlobNotFound"]'),
    (400, b'{"error":["BlobNotFound"]}'),
    (400, b'{"error":{},"message":[]}'),
    (400, b"[" * 4096),
    (400, b"\xff\xfe"),
    (401, b'{"error":"BlobNotFound"}'),
    (403, b"<html>"),
]

FAILED = [
    (200, b'{"error":"BlobNotFound"}'),
    (500, b'{"error":"BlobNotFound"}'),
    (500, b'{"error":"InternalServerError","message":"blob data not found"}'),
    (500, b'{"error":"InternalServerError","message":"Internal server error"}'),
    (502, b'{"error":"InternalServerError","message":"blob not found"}'),
    (502, b""),
    (405, b""),
    (302, b""),
]

NO_RECORD = [
    (400, b'{"error":"RecordNotFound","message":"Could not locate record: at://"}'),
    (404, b'{"error":"RecordNotFound","message":"Record not found"}'),
    (400, b'{"error":"InvalidRequest","message":"Could not locate record"}'),
    (500, b'{"error":"RecordNotFound","message":"could not find record at://"}'),
]


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        *((*each, Verdict.ABSENT) for each in ABSENT),
        *((*each, Verdict.UNCLEAR) for each in UNCLEAR),
        *((*each, Verdict.FAILED) for each in FAILED),
        *((*each, Verdict.NO_RECORD) for each in NO_RECORD),
        (429, b'{"error":"RateLimitExceeded"}', Verdict.RATE_LIMITED),
        (429, b'{"error":"BlobNotFound"}', Verdict.RATE_LIMITED),
    ],
)
def test_each_answer_of_each_pds_has_its_meaning(
    status: int, body: bytes, verdict: Verdict
) -> None:
    """Catches: "gone" in other words than Bluesky's is a failure, or a failure is "gone"."""
    assert verdict_of(status, body) is verdict


def test_each_row_of_the_table_is_reached() -> None:
    """Catches a row that an earlier one hides."""
    for row in ROWS:
        status = next(status for status in range(400, 500) if status in row.statuses)
        body = json.dumps({"error": row.name, "message": f"{row.message} …"}).encode()
        assert verdict_of(status, body) is row.verdict
        before = ROWS[: ROWS.index(row)]
        others = [each for each in before if (each.name, each.message) == (row.name, row.message)]
        assert all(status not in each.statuses for each in others)


@given(
    st.integers(100, 599) | st.just(400),
    st.binary()
    | st.dictionaries(
        st.sampled_from(["error", "message"]),
        st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_a_body_of_any_shape_has_a_meaning(status: int, body: bytes) -> None:
    """Catches: an error body of another shape is a defect."""
    assert isinstance(verdict_of(status, body), Verdict)


def test_the_document_has_the_rows_of_the_code() -> None:
    """Catches a row in the code alone, or in the document alone."""
    name = "docs/moderation-upstream.md"
    assert (ROOT / name).read_text(encoding="utf-8") == MADE[name](), 'run "./run docs"'

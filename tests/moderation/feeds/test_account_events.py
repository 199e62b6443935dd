"""Account events: what a relay and a Jetstream say is read alike, and nothing breaks out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model.identifiers import Did
from proxy.moderation.feeds.account_events import AccountEvent, of_jetstream, of_relay
from proxy.moderation.feeds.event_frames import BadFrame, Message

DID = Did("did:plc:z72i7hdynmk6r22z27h6tvur")

ACCOUNTS: list[tuple[dict[str, Any], str | None]] = [
    ({"active": False, "status": "takendown"}, "takendown"),
    ({"active": False, "status": "suspended"}, "suspended"),
    ({"active": False, "status": "deleted"}, "deleted"),
    ({"active": False, "status": "deactivated"}, "deactivated"),
    ({"active": False}, ""),
    ({"active": False, "status": "of the future"}, "of the future"),
    ({"active": True}, None),
    ({"active": True, "status": "throttled"}, None),
]
"""Fields, and why an account is not active."""


@pytest.mark.parametrize(("fields", "inactive"), ACCOUNTS, ids=ascii)
def test_a_status_decides_over_active(fields: dict[str, Any], inactive: str | None) -> None:
    """``active`` has the last word (atproto, Account Hosting)."""
    body = {"seq": 5, "did": DID, "time": "2026-01-01T00:00:00Z", **fields}
    assert of_relay(Message("#account", body)) == AccountEvent(DID, 5, inactive)
    event = {"did": DID, "time_us": 5, "kind": "account", "account": body}
    assert of_jetstream(json.dumps(event)) == AccountEvent(DID, 5, inactive)


def test_an_identity_event_ends_no_account() -> None:
    """Catches: an identity event ends an account."""
    body = {"seq": 5, "did": DID, "time": "2026-01-01T00:00:00Z", "handle": "a.test"}
    assert of_relay(Message("#identity", body)) == AccountEvent(DID, 5, None)
    event = {"did": DID, "time_us": 5, "kind": "identity", "identity": body}
    assert of_jetstream(json.dumps(event)) == AccountEvent(DID, 5, None)


def test_an_event_about_no_account_keeps_its_cursor() -> None:
    """Catches: an event about no account drops the connection, or loses its cursor."""
    assert of_relay(Message("#sync", {"seq": 7, "did": DID})) == 7
    assert of_relay(Message("#of-the-future", {"seq": 8})) == 8
    commit = {"did": DID, "time_us": 9, "kind": "commit", "commit": {}}
    assert of_jetstream(json.dumps(commit)) == 9


def test_a_did_of_another_method_is_passed_over() -> None:
    """Catches: a DID of another method drops the connection."""
    body = {"seq": 5, "did": "did:key:zQ3sh", "active": False}
    assert of_relay(Message("#account", body)) == AccountEvent(None, 5, "")


@pytest.mark.parametrize(
    "body",
    [
        {"did": DID, "active": False},
        {"seq": 0, "did": DID, "active": False},
        {"seq": 5, "active": False},
        {"seq": 5, "did": 5, "active": False},
        {"seq": 5, "did": DID},
        {"seq": 5, "did": DID, "active": "false"},
    ],
)
def test_an_event_that_lacks_a_field_means_nothing(body: dict[str, Any]) -> None:
    """Catches: an event that lacks a field, and is carried out."""
    with pytest.raises(BadFrame):
        of_relay(Message("#account", body))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "{}",
        '{"kind": "account"}',
        '{"kind": "account", "time_us": 1}',
        '{"kind": "account", "time_us": 1, "account": {"active": false}}',
        '{"kind": "identity", "time_us": 1}',
        '{"kind": "identity", "time_us": true, "did": "x"}',
        "[" * 100_000,
        b"\xff\xfe",
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_garbage_is_a_bad_frame(text: str | bytes) -> None:
    """Catches: garbage is an event or breaks out as another error."""
    with pytest.raises(BadFrame):
        of_jetstream(text)


@given(st.text(max_size=100) | st.binary(max_size=100))
def test_no_text_makes_any_other_error(text: str | bytes) -> None:
    try:
        of_jetstream(text)
    except BadFrame:
        return

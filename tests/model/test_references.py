"""What people paste."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidCid, InvalidDid, InvalidHandle, InvalidRequest
from proxy.model.references import POST, Reference, parse_reference

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
PORT = "did:web:localhost%3A2583"
CID = "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe"
KEY = "3l6oveex3ii2l"

Parts = tuple[str, tuple[str, str] | None, str | None]

ALICE: Parts = ("alice.community", None, None)
ACCOUNT: Parts = (DID, None, None)
BLOB: Parts = (DID, None, CID)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("alice.community", ALICE),
        ("@alice.community", ALICE),
        ("  @Alice.Community\n", ALICE),
        (DID, ACCOUNT),
        (f"at://{DID}", ACCOUNT),
        ("at://alice.community/", ALICE),
        (f"at://{DID}/app.bsky.feed.post/{KEY}", (DID, (POST, KEY), None)),
        (f"at://alice.community/social.example.gallery/{KEY}",
         ("alice.community", ("social.example.gallery", KEY), None)),
        ("https://bsky.app/profile/alice.community", ALICE),
        (f"https://bsky.app/profile/{DID}/", ACCOUNT),
        ("https://bsky.app/profile/alice.community/feed/whats-hot", ALICE),
        (f"https://bsky.app/profile/alice.community/post/{KEY}",
         ("alice.community", (POST, KEY), None)),
        (f"https://bsky.app/profile/did%3Aplc%3A{DID[8:]}/post/{KEY}?ref_src=x#y",
         (DID, (POST, KEY), None)),
        (f"https://other.example:8443/profile/{DID}/post/{KEY}", (DID, (POST, KEY), None)),
        (f"{DID} {CID}", BLOB),
        (f"{DID}\n{CID}", BLOB),
        (f"{DID}/{CID}", BLOB),
        (f"alice.community {CID}", ("alice.community", None, CID)),
        (f"https://cdn.example/img/avatar/plain/{DID}/{CID}@jpeg", BLOB),
        (f"https://cdn.example/below/img/nosuch/plain/{DID}/{CID}?x=1", BLOB),
        (f"/img/avatar/plain/did:web:localhost%253A2583/{CID}", (PORT, None, CID)),
        (f"https://cdn.example/below/avatar/{DID}", (DID, None, None)),
        ("/avatar/avatar_small/@alice.example.com@webp", ("alice.example.com", None, None)),
        ("/banner/avatar/alice.example.com@jpeg", ("alice.example.com", None, None)),
        (f"https://cdn.example/blob/{DID}/{CID}", BLOB),
    ],
)  # fmt: skip
def test_what_people_paste_is_understood(text: str, parts: Parts) -> None:
    """Catches a field that wants to be told what is in it."""
    reference = parse_reference(text)
    assert (reference.actor, reference.record, reference.cid) == parts


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", InvalidHandle),
        ("alice", InvalidHandle),
        ("alice.test", InvalidHandle),
        ("@@alice.community", InvalidHandle),
        ("did:plc:short", InvalidDid),
        ("did:key:zQ3shZc2QzApp2oymGvQbzP8eKheVshBHbU4ZYjeXqwSKEn6N", InvalidDid),
        ("at://", InvalidHandle),
        (f"at://{DID}/app.bsky.feed.post", InvalidRequest),
        (f"at://{DID}/app.bsky.feed.post/{KEY}/more", InvalidRequest),
        (f"at://{DID}/app.bsky/{KEY}", InvalidRequest),
        (f"at://{DID}/app.bsky.feed.post&x=1/{KEY}", InvalidRequest),
        (f"at://{DID}/app.bsky.feed.post/..", InvalidRequest),
        (f"at://{DID}/app.bsky.feed.post/a?b", InvalidRequest),
        (f"https://bsky.app/profile/{DID}/post/a%26b", InvalidRequest),
        ("https://bsky.app/", InvalidRequest),
        ("https://[::1/profile/alice.community", InvalidRequest),
        ("/etc/passwd", InvalidRequest),
        (f"{DID} nocid", InvalidCid),
        (f"{DID} {CID} {CID}", InvalidCid),
        (f"/img/avatar/plain/{DID}/nocid", InvalidCid),
        ("a." * 2000 + "com", InvalidRequest),
    ],
)
def test_what_cannot_be_meant_names_the_part_that_is_wrong(
    text: str, error: type[InvalidRequest]
) -> None:
    """Catches a guess, and parts that change what a PDS is asked for."""
    with pytest.raises(InvalidRequest) as caught:
        parse_reference(text)
    assert type(caught.value) is error


def test_a_handle_for_development_is_one_where_that_is_asked_for() -> None:
    assert parse_reference("alice.test", allow_test=True).actor == "alice.test"


@given(st.text() | st.text().map("at://{}".format) | st.text().map("https://{}".format))
def test_any_text_is_a_reference_or_a_bad_request(text: str) -> None:
    """Catches a paste that is answered with a 500."""
    with suppress(InvalidRequest):
        assert isinstance(parse_reference(text), Reference)

"""What people paste."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidCid, InvalidDid, InvalidHandle, InvalidRequest
from proxy.model.identifiers import Cid, Did, Handle
from proxy.model.references import (
    GALLERY,
    POST,
    Reference,
    parse_account,
    parse_actor,
    parse_reference,
    parse_selection,
)
from proxy.model.selection import Selection

DID = Did("did:plc:z72i7hdynmk6r22z27h6tvur")
PORT = "did:web:localhost%3A2583"
CID = Cid("bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe")
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
        ("https://bsky.app/profile/alice.community/search", ALICE),
        ("bsky.app/profile/alice.community", ALICE),
        ("Https://bsky.app/profile/@alice.community", ALICE),
        ("www.other.example:8443/profile/alice.community/", ALICE),
        ("https://tangled.org/@alice.community", ALICE),
        ("https://Tangled.sh/alice.community/?tab=repos", ALICE),
        ("tangled.org/@alice.community", ALICE),
        ("www.tangled.sh/alice.community", ALICE),
        (f"tangled.org/{DID}", ACCOUNT),
        (f"https://tangled.sh/@{DID}/", ACCOUNT),
        (f"tangled.org/{CID}", ("tangled.org", None, CID)),
        (f"bsky.app/profile/{DID}/post/{KEY}/liked-by", (DID, (POST, KEY), None)),
        ("https://bsky.app/profile/alice.community/feed/whats-hot",
         ("alice.community", ("app.bsky.feed.generator", "whats-hot"), None)),
        (f"bsky.app/profile/{DID}/lists/{KEY}", (DID, ("app.bsky.graph.list", KEY), None)),
        (f"https://bsky.app/starter-pack/alice.community/{KEY}",
         ("alice.community", ("app.bsky.graph.starterpack", KEY), None)),
        (f"bsky.app/start/{DID}/{KEY}", (DID, ("app.bsky.graph.starterpack", KEY), None)),
        (f"cdn.example/img/avatar/plain/{DID}/{CID}@jpeg", BLOB),
        (f"AT://{DID}", ACCOUNT),
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
        (f"https://cdn.example/embed/img/avatar/plain/{DID}/{CID}", BLOB),
        (f"https://cdn.example/embed/blob/{DID}/{CID}", BLOB),
        (f"/img/avatar/plain/did:web:localhost%253A2583/{CID}", (PORT, None, CID)),
        (f"https://cdn.example/below/avatar/{DID}", (DID, None, None)),
        ("/avatar/avatar_small/@alice.example.com@webp", ("alice.example.com", None, None)),
        ("/banner/avatar/alice.example.com@jpeg", ("alice.example.com", None, None)),
        (f"https://cdn.example/blob/{DID}/{CID}", BLOB),
        (f"/info/{DID}/{CID}", BLOB),
        (f"https://pds.example/xrpc/com.atproto.sync.getBlob?did={DID}&cid={CID}", BLOB),
        (f"pds.example/xrpc/com.atproto.sync.getBlob?cid={CID}&did=did%3Aplc%3A{DID[8:]}#x", BLOB),
        (f"https://pdsls.example/at://{DID}", ACCOUNT),
        (f"pdsls.example/at://{DID}/app.bsky.feed.post/{KEY}", (DID, (POST, KEY), None)),
        (f"https://explorer.example/at:/alice.community/app.bsky.feed.post/{KEY}#record",
         ("alice.community", (POST, KEY), None)),
        (f"https://embed.bsky.app/embed/{DID}/app.bsky.feed.post/{KEY}?id=1",
         (DID, (POST, KEY), None)),
        (f"grain.social/profile/alice.community/gallery/{KEY}",
         ("alice.community", (GALLERY, KEY), None)),
    ],
)  # fmt: skip
def test_what_people_paste_is_understood(text: str, parts: Parts) -> None:
    """Catches a field that wants to be told what is in it."""
    reference = parse_reference(text)
    assert (reference.actor, reference.record, reference.cid) == parts


@pytest.mark.parametrize(
    "text",
    [
        f"/vid/{DID}/{CID}/thumbnail.jpg",
        f"https://img.example/below/vid/avatar/{DID}/{CID}/thumbnail.jpg?x=1",
        f"video.bsky.app/watch/did%3Aplc%3A{DID[8:]}/{CID}/thumbnail.jpg",
        f"https://video.bsky.app/watch/{DID}/{CID}/playlist.m3u8?session_id=1",
    ],
)
def test_the_url_of_a_video_or_its_poster_names_the_video(text: str) -> None:
    """Catches a poster that a moderator cannot block by its URL, and one made as a picture."""
    assert parse_reference(text) == Reference(DID, cid=CID, medium="video")
    assert parse_selection(text) == Selection(DID, CID)


MARKS = [
    *(*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0x200B, 0x2010)),
    *(0x00AD, 0x061C, 0x2060, 0xFEFF),
]


@pytest.mark.parametrize("mark", [chr(mark) for mark in MARKS], ids=lambda mark: f"{ord(mark):X}")
def test_marks_that_nobody_sees_do_not_count(mark: str) -> None:
    """Catches a handle copied from an app, which nobody can tell from a right one."""
    for text in ("@alice.community", "https://bsky.app/profile/alice.community"):
        assert parse_reference(f"{mark} {text}{mark}").actor == "alice.community"
    assert parse_reference(f"https://bsky.app/profile/{quote(mark)}{DID}").actor == DID
    assert parse_actor(f"{mark}@alice.com{mark}munity{mark}") == "alice.community"
    assert parse_selection(f"{mark}{CID}{mark}") == Selection(cid=CID)


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
        ("https://pds.example/xrpc/com.atproto.sync.getBlob", InvalidDid),
        (f"https://pds.example/xrpc/com.atproto.sync.getBlob?did={DID}", InvalidCid),
        (
            f"https://pds.example/xrpc/com.atproto.sync.getBlocks?did={DID}&cid={CID}",
            InvalidRequest,
        ),
        ("https://pdsls.example/at://", InvalidHandle),
        (f"https://pdsls.example/at://{DID}/{CID}", InvalidRequest),
        ("https://tangled.org/settings", InvalidRequest),
        ("https://tangled.org/@alice.community/core", InvalidRequest),
        ("https://social.example/@alice.community", InvalidRequest),
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
    assert parse_reference("alice.test", own_names=True).actor == "alice.test"


@given(st.text() | st.text().map("at://{}".format) | st.text().map("https://{}".format))
def test_any_text_is_a_reference_or_a_bad_request(text: str) -> None:
    """Catches a paste that is answered with a 500."""
    with suppress(InvalidRequest):
        assert isinstance(parse_reference(text), Reference)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (CID, Selection(cid=CID)),
        (f" {CID}\n", Selection(cid=CID)),
        (DID, Selection(did=DID)),
        (f"https://bsky.app/profile/{DID}", Selection(did=DID)),
        (f"{DID}/{CID}", Selection(DID, CID)),
        (f"https://cdn.example/img/avatar/plain/{DID}/{CID}@jpeg", Selection(DID, CID)),
        (f"https://cdn.example/blob/{DID}/{CID}", Selection(DID, CID)),
        ("alice.community", Reference(Handle("alice.community"))),
        (f"alice.community/{CID}", Reference(Handle("alice.community"), cid=CID)),
        (f"https://bsky.app/profile/{DID}/post/{KEY}", Reference(DID, (POST, KEY))),
        (f"https://cdn.example/avatar/{DID}", Reference(DID, kind="avatar")),
        (
            "/banner/avatar/@alice.community@jpeg",
            Reference(Handle("alice.community"), kind="banner"),
        ),
    ],
)
def test_only_what_a_text_does_not_say_has_to_be_asked(
    text: str, means: Selection | Reference
) -> None:
    """Catches an avatar's URL that stands for all of its account, and a question about a DID."""
    assert parse_selection(text) == means


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", InvalidCid),
        ("alice", InvalidCid),
        (CID.upper(), InvalidCid),
        (f"{CID}/{DID}", InvalidHandle),
        (f"{DID} {CID} {CID}", InvalidCid),
        ("https://bsky.app/", InvalidRequest),
    ],
)
def test_what_selects_nothing_is_refused(text: str, error: type[InvalidRequest]) -> None:
    """Catches a block of something else than what was mistyped."""
    with pytest.raises(error):
        parse_selection(text)


@pytest.mark.parametrize(
    ("text", "actor"),
    [
        (" @alice.community\u200e", "alice.community"),
        (DID, DID),
        ("bsky.app/profile/alice.community", "alice.community"),
        (f"https://bsky.app/profile/{DID}/", DID),
        (f"at://{DID}", DID),
        ("https://tangled.org/@alice.community", "alice.community"),
    ],
)
def test_a_link_to_a_profile_names_its_account(text: str, actor: str) -> None:
    """Catches a command that takes links in one of its places only."""
    assert parse_account(text) == actor


@pytest.mark.parametrize(
    "text",
    [
        f"{DID}/{CID}",
        f"https://bsky.app/profile/{DID}/post/{KEY}",
        f"https://bsky.app/profile/{DID}/feed/{KEY}",
        f"/img/avatar/plain/{DID}/{CID}",
        f"/avatar/{DID}",
        f"at://{DID}/app.bsky.feed.post/{KEY}",
        "",
        "alice",
        "did:plc:short",
    ],
)
def test_what_names_more_than_an_account_or_none_is_no_account(text: str) -> None:
    """Catches a block of all that an account has, where one of its posts was pasted."""
    with pytest.raises(InvalidRequest):
        parse_account(text)

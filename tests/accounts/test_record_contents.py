"""What is in a record, whatever its Lexicon."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounts import record_contents as module
from proxy.accounts.record_contents import (
    MAX_EMBEDDED,
    MAX_PICTURES,
    MAX_VALUES,
    Picture,
    contents_of,
    picture_cid,
)
from proxy.model.identifiers import Cid, Did
from proxy.model.references import Reference
from tests.fakes.sites import cid_of

FIRST, SECOND = cid_of(b"1"), cid_of(b"2")


def blob(cid: str, mime: str = "image/png") -> dict[str, Any]:
    """A reference to a blob, as records have it."""
    return {"$type": "blob", "ref": {"$link": cid}, "mimeType": mime, "size": 1}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    JSON_VALUES
    | st.fixed_dictionaries(
        {"mimeType": JSON_VALUES | st.just("image/png")},
        optional={
            "$type": st.just("blob") | JSON_VALUES,
            "ref": JSON_VALUES | st.fixed_dictionaries({"$link": JSON_VALUES}),
            "cid": JSON_VALUES,
        },
    )
)
def test_any_record_can_be_looked_through(value: object) -> None:
    """Catches a reader that trusts what strangers write into their records."""
    assert contents_of(value).pictures == []


def test_no_depth_of_a_record_is_too_much() -> None:
    """Catches recursion, which a record can exhaust."""
    record: object = blob(FIRST)
    for _ in range(MAX_VALUES - 1):
        record = [record]
    assert [picture.cid for picture in contents_of(record).pictures] == [FIRST]
    for _ in range(100_000):
        record = [record]
    assert contents_of(record).pictures == []


@pytest.mark.parametrize("filler", [None, [], {}], ids=str)
def test_no_more_values_of_a_record_are_looked_at_than_it_needs(
    filler: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a record of 64 KB with 43,000 values, which takes 10 ms to look through."""
    assert contents_of({"a": [filler] * (MAX_VALUES - 3), "b": blob(FIRST)}).pictures
    assert not contents_of({"a": [filler] * (MAX_VALUES - 2), "b": blob(FIRST)}).pictures
    looked_at: list[object] = []
    monkeypatch.setattr(module, "_blob_in", looked_at.append)
    contents_of([filler] * 100_000)
    assert len(looked_at) <= 2 * MAX_VALUES


@pytest.mark.parametrize(
    ("value", "cid"),
    [
        (blob(FIRST), FIRST),
        ({"cid": FIRST, "mimeType": "image/jpeg"}, FIRST),
        (blob(FIRST, "video/mp4"), None),
        (blob("bafyabc"), None),
        (blob(FIRST) | {"$type": "other"}, None),
        ({"cid": FIRST, "mimeType": "image/jpeg", "more": 1}, None),
        (FIRST, None),
        (None, None),
    ],
    ids=["blob", "old form", "video", "no CID", "other type", "other object", "text", "null"],
)
def test_a_picture_is_a_reference_to_a_blob_of_an_image_type(
    value: object, cid: Cid | None
) -> None:
    """Catches videos and links that are offered as pictures."""
    assert picture_cid(value) == cid


def test_the_pictures_of_a_post_come_in_its_order_with_their_descriptions() -> None:
    """Catches a description of another picture."""
    record = {
        "$type": "app.bsky.feed.post",
        "alt": "not of a picture",
        "embed": {
            "images": [
                {"alt": "second first", "image": blob(SECOND)},
                {"alt": 7, "image": blob(FIRST)},
                {"alt": "again", "image": blob(SECOND)},
            ],
            "external": {"thumb": blob(cid_of(b"3"))},
        },
    }
    assert contents_of(record).pictures == [
        Picture(SECOND, "image", "second first"),
        Picture(FIRST, "image", ""),
        Picture(cid_of(b"3"), "thumb", ""),
    ]


def test_no_record_brings_more_than_a_page_can_show() -> None:
    """Catches thousands of requests for one look."""
    record = [blob(cid_of(b"%d" % number)) for number in range(1000)]
    assert len(contents_of(record).pictures) == MAX_PICTURES


DID = Did("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")
POST = f"at://{DID}/app.bsky.feed.post/3k"
STRONG = {"uri": POST, "cid": "bafyreib"}
QUOTED = Reference(DID, ("app.bsky.feed.post", "3k"))
SIZE = {"width": 4, "height": 3}

GALLERY = {
    "$type": "app.bsky.embed.gallery",
    "items": [
        {
            "$type": "app.bsky.embed.gallery#image",
            "image": blob(FIRST),
            "alt": "one",
            "aspectRatio": SIZE,
        },
        {
            "$type": "app.bsky.embed.gallery#image",
            "image": blob(SECOND),
            "alt": "two",
            "aspectRatio": SIZE,
        },
    ],
}
IN_GALLERY = [Picture(FIRST, "image", "one"), Picture(SECOND, "image", "two")]
VIDEO = {
    "$type": "app.bsky.embed.video",
    "video": blob(FIRST, "video/mp4"),
    "captions": [{"lang": "en", "file": blob(SECOND, "text/vtt")}],
    "alt": "a film",
    "aspectRatio": SIZE,
}
FILM = Picture(FIRST, "video", "a film", "video")
RECORDS: list[tuple[str, dict[str, Any], list[Picture], list[Reference]]] = [
    (
        "app.bsky.embed.gallery",
        {"$type": "app.bsky.feed.post", "text": "", "embed": GALLERY},
        IN_GALLERY,
        [],
    ),
    (
        "app.bsky.embed.gallery, as it was first published",
        {
            "$type": "app.bsky.feed.post",
            "embed": {"$type": "app.bsky.embed.gallery", "media": GALLERY["items"]},
        },
        IN_GALLERY,
        [],
    ),
    ("app.bsky.embed.video", {"$type": "app.bsky.feed.post", "embed": VIDEO}, [FILM], []),
    (
        "app.bsky.embed.record",
        {
            "$type": "app.bsky.feed.post",
            "embed": {"$type": "app.bsky.embed.record", "record": STRONG},
        },
        [],
        [QUOTED],
    ),
    (
        "app.bsky.embed.recordWithMedia",
        {
            "$type": "app.bsky.feed.post",
            "embed": {
                "$type": "app.bsky.embed.recordWithMedia",
                "record": {"$type": "app.bsky.embed.record", "record": STRONG},
                "media": GALLERY,
            },
        },
        IN_GALLERY,
        [QUOTED],
    ),
    (
        "app.bsky.embed.recordWithMedia, its inner type left out",
        {
            "embed": {
                "$type": "app.bsky.embed.recordWithMedia",
                "record": {"record": STRONG},
                "media": VIDEO,
            }
        },
        [FILM],
        [QUOTED],
    ),
    (
        "sh.tangled.actor.profile",
        {
            "$type": "sh.tangled.actor.profile",
            "avatar": blob(FIRST),
            "bluesky": True,
            "pinnedRepositories": [POST],
        },
        [Picture(FIRST, "avatar")],
        [],
    ),
    (
        "site.standard.document",
        {
            "$type": "site.standard.document",
            "site": f"at://{DID}/site.standard.publication/3k",
            "title": "On hills",
            "coverImage": blob(FIRST),
            "bskyPostRef": STRONG,
        },
        [Picture(FIRST, "coverImage")],
        [],
    ),
    (
        "site.standard.publication",
        {"$type": "site.standard.publication", "url": "x", "name": "y", "icon": blob(FIRST)},
        [Picture(FIRST, "icon")],
        [],
    ),
    (
        "pub.leaflet.document",
        {
            "$type": "pub.leaflet.document",
            "pages": [
                {
                    "$type": "pub.leaflet.pages.linearDocument",
                    "blocks": [
                        {
                            "$type": "pub.leaflet.pages.linearDocument#block",
                            "block": {
                                "$type": "pub.leaflet.blocks.image",
                                "image": blob(FIRST),
                                "alt": "hills",
                                "aspectRatio": SIZE,
                            },
                        },
                        {"block": {"$type": "pub.leaflet.blocks.bskyPost", "postRef": STRONG}},
                    ],
                }
            ],
        },
        [Picture(FIRST, "image", "hills")],
        [QUOTED],
    ),
    (
        "social.grain.photo",
        {"$type": "social.grain.photo", "photo": blob(FIRST), "alt": "one", "aspectRatio": SIZE},
        [Picture(FIRST, "photo", "one")],
        [],
    ),
    (
        "social.grain.gallery.item",
        {
            "$type": "social.grain.gallery.item",
            "gallery": f"at://{DID}/social.grain.gallery/3k",
            "item": f"at://{DID}/social.grain.photo/3k",
            "position": 1,
        },
        [],
        [Reference(DID, ("social.grain.photo", "3k"))],
    ),
]


@pytest.mark.parametrize(
    ("record", "pictures", "embedded"),
    [row[1:] for row in RECORDS],
    ids=[row[0] for row in RECORDS],
)
def test_the_published_lexicons_say_where_pictures_are(
    record: dict[str, Any], pictures: list[Picture], embedded: list[Reference]
) -> None:
    """Catches an app whose pictures are not found, or found as another kind of thing."""
    contents = contents_of(record)
    assert (contents.pictures, contents.embedded) == (pictures, embedded)


@pytest.mark.parametrize(
    "uri",
    [
        7,
        "",
        "at://",
        "at://alice.example/app.bsky.feed.post/3k",
        f"at://{DID}",
        f"at://{DID}/x/3k",
        f"https://bsky.app/profile/{DID}/post/3k",
    ],
)
def test_what_names_no_record_of_a_did_is_not_embedded(uri: object) -> None:
    """Catches a stranger's record that has another name resolved, or another site asked."""
    record = {"$type": "app.bsky.embed.record", "record": {"uri": uri}}
    assert contents_of(record).embedded == []


def test_no_record_has_many_others_asked_for() -> None:
    """Catches one look at a stranger's record that sends a thousand questions."""
    uris = [f"at://{DID}/app.bsky.feed.post/{number}" for number in range(1000)]
    quotes = [{"$type": "app.bsky.embed.record", "record": {"uri": uri}} for uri in uris]
    assert len(contents_of(quotes[:1] * 3 + quotes).embedded) == MAX_EMBEDDED

"""URLs: one grammar, read and written. Links that people have published depend on it."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import (
    InvalidCid,
    InvalidDid,
    InvalidFormat,
    InvalidPreset,
    InvalidRequest,
    TrailingSlash,
)
from proxy.model.formats import OUTPUTS, Format
from proxy.model.keys import BlobKey, ImageKey, image_key
from proxy.model.picture_info import info_key
from proxy.model.presets import DEFAULT_PRESETS, Preset, with_variants
from proxy.urls import (
    blob_url,
    image_url,
    info_url,
    parse_blob_path,
    parse_image_path,
    public_urls,
    srcset,
)

DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
WEB = "did:web:example.com"
PORT = "did:web:localhost%3A2583"
CID = "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe"
CID_V0 = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
GOOD = f"/img/avatar/plain/{DID}/{CID}"


def parse(path: str) -> ImageKey:
    return parse_image_path(DEFAULT_PRESETS, path)


@pytest.mark.parametrize("preset", DEFAULT_PRESETS)
@pytest.mark.parametrize("did", [DID, WEB, PORT])
@pytest.mark.parametrize("cid", [CID, CID_V0])
@pytest.mark.parametrize("format_", [None, *OUTPUTS])
def test_what_is_written_is_read_as_the_same_image(
    preset: str, did: str, cid: str, format_: Format | None
) -> None:
    """Catches URLs built here that are refused here: the server decodes the path once."""
    key = image_key(DEFAULT_PRESETS, preset, did, cid, format_ and format_.value)
    assert parse(unquote(image_url(key))) == key


@pytest.mark.parametrize("did", [DID, WEB, PORT])
def test_what_is_written_is_read_as_the_same_original(did: str) -> None:
    blob = parse(unquote(image_url(image_key(DEFAULT_PRESETS, "avatar", did, CID)))).blob
    assert parse_blob_path(unquote(blob_url(blob))) == blob
    base = "https://a.example"
    assert public_urls({}, blob, f"{base}/") == [info_url(blob, base), blob_url(blob, base)]
    assert parse_image_path({}, unquote(info_url(blob))) == info_key(blob)


def test_a_path_has_the_shape_of_coves_and_of_blueskys_cdn() -> None:
    """Catches a grammar of our own: either must be pointed here unchanged."""
    key = parse(GOOD)
    assert key.preset == "avatar"
    assert key.blob == BlobKey(key.blob.did, key.blob.cid)
    assert (key.blob.did, key.blob.cid) == (DID, CID)
    assert key.format is None
    assert image_url(key) == GOOD
    assert parse(f"/img/feed_fullsize/plain/{DID}/{CID}@jpeg").format is Format.JPEG


def test_a_port_is_escaped_twice_because_it_is_decoded_once() -> None:
    """Catches a built URL that arrives as did:web:localhost:2583, which is no DID."""
    key = image_key(DEFAULT_PRESETS, "avatar", PORT, CID)
    assert image_url(key) == f"/img/avatar/plain/did:web:localhost%253A2583/{CID}"
    with pytest.raises(InvalidDid):
        parse(f"/img/avatar/plain/did:web:localhost:2583/{CID}")


@pytest.mark.parametrize(
    ("base", "start"),
    [
        ("", "/img/"),
        ("https://cdn.example", "https://cdn.example/img/"),
        ("https://cdn.example/", "https://cdn.example/img/"),
        ("https://cdn.example/below", "https://cdn.example/below/img/"),
    ],
)
def test_a_base_is_joined_with_one_slash(base: str, start: str) -> None:
    """Catches // in the URL: a server splits that into other segments."""
    assert image_url(parse(GOOD), base).startswith(start)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (f"/img/nosuch/plain/{DID}/{CID}", InvalidPreset),
        (f"/img/AVATAR/plain/{DID}/{CID}", InvalidPreset),
        (f"/img//plain/{DID}/{CID}", InvalidPreset),
        (f"/img/avatar /plain/{DID}/{CID}", InvalidPreset),
        (f"/img/avatar\x00/plain/{DID}/{CID}", InvalidPreset),
        (f"/img/../plain/{DID}/{CID}", InvalidPreset),
        (f"/img/avatar/plain/did:plc:abc/{CID}", InvalidDid),
        (f"/img/avatar/plain/did:abc123/{CID}", InvalidDid),
        (f"/img/avatar/plain/notadid/{CID}", InvalidDid),
        (f"/img/avatar/plain/did:plc:abc\\def/{CID}", InvalidDid),
        (f"/img/avatar/plain//{CID}", InvalidDid),
        (f"/img/avatar/plain/../{CID}", InvalidDid),
        (f"/img/avatar/plain/{DID}@x/{CID}", InvalidDid),
        (f"/img/avatar/plain/{DID}/", InvalidCid),
        (f"/img/avatar/plain/{DID}/bafyabc", InvalidCid),
        (f"/img/avatar/plain/{DID}/this_is_not_a_cid", InvalidCid),
        (f"/img/avatar/plain/{DID}/..", InvalidCid),
        (f"/img/avatar/plain/{DID}/@jpeg", InvalidCid),
        (f"/img/avatar/plain/{DID}/{CID}.jpg", InvalidCid),
        (f"{GOOD}%40jpeg", InvalidCid),
        (f"{GOOD}?w=100", InvalidCid),
        (f"{GOOD}#x", InvalidCid),
        (f"{GOOD}@", InvalidFormat),
        (f"{GOOD}@JPG", InvalidFormat),
        (f"{GOOD}@JPEG", InvalidFormat),
        (f"{GOOD}@gif", InvalidFormat),
        (f"{GOOD}@jpeg@jpeg", InvalidFormat),
        (f"{GOOD}@@jpeg", InvalidFormat),
        (f"{GOOD}@jpeg?w=100", InvalidFormat),
        ("", InvalidRequest),
        ("/", InvalidRequest),
        ("/img", InvalidRequest),
        ("/img/", InvalidRequest),
        ("/img/avatar", InvalidRequest),
        (f"/img/avatar/plain/{DID}", InvalidRequest),
        (f"/img/avatar/{DID}/{CID}", InvalidRequest),
        (f"/img/avatar/fit/{DID}/{CID}", InvalidRequest),
        (f"/img/avatar/Plain/{DID}/{CID}", InvalidRequest),
        (f"/IMG/avatar/plain/{DID}/{CID}", InvalidRequest),
        (f"{GOOD}/", TrailingSlash),
        (f"{GOOD}/more", InvalidRequest),
        (f"/{GOOD}", InvalidRequest),
        (f"/x{GOOD}", InvalidRequest),
        (GOOD[1:], InvalidRequest),
        (f"/img/avatar/plain/did:plc:../../../etc/passwd/{CID}", InvalidRequest),
        (f"/img/avatar/plain/did:plc:abc/def/{CID}", InvalidRequest),
        (f"/img/avatar/plain/{DID}/bafy/path/to/file", InvalidRequest),
        (f"/img/avatar/plain/{DID}/../../../etc/passwd", InvalidRequest),
        (f"https://host{GOOD}", InvalidRequest),
    ],
)
def test_each_part_that_is_wrong_gives_its_own_error(
    path: str, error: type[InvalidRequest]
) -> None:
    """Catches the wrong body in a 400, extra segments passed over, and traversal let through."""
    with pytest.raises(InvalidRequest) as caught:
        parse(path)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        (("nosuch", "nodid", "nocid", "noformat"), InvalidPreset),
        (("avatar", "nodid", "nocid", "noformat"), InvalidDid),
        (("avatar", DID, "nocid", "noformat"), InvalidCid),
        (("avatar", DID, CID, "noformat"), InvalidFormat),
    ],
)
def test_the_first_part_that_is_wrong_is_the_one_named(
    parts: tuple[str, str, str, str], error: type[InvalidRequest]
) -> None:
    """Catches another order than the seed's, whose clients see the preset judged first."""
    with pytest.raises(InvalidRequest) as caught:
        image_key(DEFAULT_PRESETS, *parts)
    assert type(caught.value) is error


def test_an_empty_format_is_not_the_same_as_none() -> None:
    """Catches a second URL for one image: a bare @ at the end."""
    assert image_key(DEFAULT_PRESETS, "avatar", DID, CID, None).format is None
    with pytest.raises(InvalidFormat):
        image_key(DEFAULT_PRESETS, "avatar", DID, CID, "")


def test_the_presets_of_the_configuration_are_the_ones_that_exist() -> None:
    """Catches a registry of presets beside the configuration."""
    presets = {"mine": Preset(width=10, fit="contain", quality=50)}
    assert image_key(presets, "mine", DID, CID).preset == "mine"
    with pytest.raises(InvalidPreset):
        image_key(presets, "avatar", DID, CID)


def test_an_etag_is_a_strong_quoted_tag_of_preset_cid_and_fingerprint() -> None:
    """Catches an ETag that a changed preset or another format leaves as it was."""
    key = image_key(DEFAULT_PRESETS, "avatar", DID, CID)
    assert key.etag == f'"avatar-{CID}-{key.fingerprint}"'
    changed = DEFAULT_PRESETS | {"avatar": Preset(width=999, height=999, fit="cover", quality=85)}
    etags = {
        image_key(presets, "avatar", DID, CID, format_).etag
        for presets in (DEFAULT_PRESETS, changed)
        for format_ in (None, "jpeg", "png", "webp", "avif")
    }
    assert len(etags) == 10


def test_keys_are_equal_by_value_and_can_be_looked_up() -> None:
    """Catches a cache, or a flight, that never finds what it has."""
    assert {parse(GOOD): 1}[parse(GOOD)] == 1
    assert parse(GOOD) != parse(f"{GOOD}@jpeg")


SQUARE = Preset(width=360, height=360, fit="cover", quality=80, variants=(720, 72))


def test_a_srcset_offers_a_preset_and_its_variants_by_width() -> None:
    """Catches a list in the order of the configuration, or without the preset itself."""
    presets = with_variants({"square": SQUARE})
    offered = srcset(presets, "square", DID, CID, "webp", "https://cdn.example")
    candidates = [candidate.split(" ") for candidate in offered.split(", ")]
    assert [width for _url, width in candidates] == ["72w", "360w", "720w"]
    keys = [parse_image_path(presets, urlsplit(url).path) for url, _width in candidates]
    assert [key.preset for key in keys] == ["square_w72", "square", "square_w720"]
    assert {(key.blob.did, key.blob.cid, key.format) for key in keys} == {(DID, CID, Format.WEBP)}
    assert all(url.startswith("https://cdn.example/img/") for url, _width in candidates)


def test_a_srcset_without_variants_is_the_preset_alone() -> None:
    """Catches an empty srcset, which shows nothing."""
    assert srcset(DEFAULT_PRESETS, "avatar", DID, CID) == f"{GOOD} 1000w"


def test_a_srcset_is_refused_as_its_url_would_be() -> None:
    """Catches a page full of links that are refused."""
    with pytest.raises(InvalidPreset):
        srcset(DEFAULT_PRESETS, "nosuch", DID, CID)
    with pytest.raises(InvalidCid):
        srcset(DEFAULT_PRESETS, "avatar", DID, "nocid")
    # Presets that no configuration has made complete.
    with pytest.raises(InvalidPreset):
        srcset({"square": SQUARE}, "square", DID, CID)


@pytest.mark.parametrize("did", [DID, WEB, PORT])
@pytest.mark.parametrize("cid", [CID, CID_V0])
def test_a_blob_path_names_owner_and_blob(did: str, cid: str) -> None:
    """Catches the two parts in the wrong places."""
    key = parse_blob_path(f"/blob/{did}/{cid}")
    assert (key.did, key.cid) == (did, cid)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (f"/blob/nodid/{CID}", InvalidDid),
        (f"/blob//{CID}", InvalidDid),
        (f"/blob/{DID}/nocid", InvalidCid),
        (f"/blob/{DID}/", InvalidCid),
        (f"/blob/{DID}/{CID}@jpeg", InvalidCid),
        (f"/blob/{DID}", InvalidRequest),
        (f"/blob/{DID}/{CID}/", TrailingSlash),
        (f"/blob/plain/{DID}/{CID}", InvalidRequest),
        (f"/Blob/{DID}/{CID}", InvalidRequest),
        (f"blob/{DID}/{CID}", InvalidRequest),
        (f"/blob/{DID}/../{CID}", InvalidRequest),
        ("", InvalidRequest),
    ],
)
def test_a_blob_path_that_is_wrong_says_where(path: str, error: type[InvalidRequest]) -> None:
    """Catches a blob served for a path that nobody's block or cache knows."""
    with pytest.raises(InvalidRequest) as caught:
        parse_blob_path(path)
    assert type(caught.value) is error


segments = st.one_of(
    st.sampled_from(["", "img", "avatar", "plain", DID, CID, f"{CID}@png", "..", ".", "%2e%2e"]),
    st.text(max_size=10),
)


@given(st.lists(segments, max_size=8).map("/".join))
def test_any_path_is_a_key_or_a_typed_error(path: str) -> None:
    """Catches a 500 for a URL that somebody made up."""
    key = blob = None
    with suppress(InvalidRequest):
        key = parse(path)
    with suppress(InvalidRequest):
        blob = parse_blob_path(path)
    assert key is None or image_url(key) == path
    assert blob is None or f"/blob/{blob.did}/{blob.cid}" == path

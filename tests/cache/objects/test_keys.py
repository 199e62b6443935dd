"""The keys of objects: what purges list and remove."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.object_keys import (
    blob_at,
    mark_path,
    marks_prefix,
    owner_prefix,
    pair_prefix,
    result_path,
    source_path,
)
from proxy.model.formats import Format
from proxy.model.identifiers import parse_did, spellings
from proxy.model.keys import BlobKey
from tests.cache import blob_cid, key, owner

OWNERS = [
    owner(),
    parse_did("did:web:host.example"),
    parse_did("did:web:localhost%3A8080"),
    parse_did("did:web:" + "a" * 60 + ".example"),
]


def test_every_object_lies_below_the_prefixes_that_purges_list() -> None:
    """Catches a result or a mark that one of the three purges does not find."""
    for did in OWNERS:
        each = key(did=did, cid=blob_cid(1))
        for path in (result_path(each), source_path(each.blob)):
            assert path.startswith(f"{owner_prefix(did)}/")
            assert path.startswith(f"{pair_prefix(each.blob)}/")
        assert mark_path(each.blob).startswith(f"{marks_prefix(each.blob.cid)}/")


def test_a_path_tells_its_blob() -> None:
    """Catches a mark that leads a purge of a blob to no owner, or to another."""
    for did in OWNERS:
        each = key(did=did, cid=blob_cid(1))
        for path in (result_path(each), source_path(each.blob), mark_path(each.blob)):
            assert blob_at(path) == each.blob


def test_no_prefix_of_an_owner_covers_another_owner() -> None:
    """Catches a purge of host.example that takes host.example.org along."""
    short, long = parse_did("did:web:host.example"), parse_did("did:web:host.example.org")
    path = result_path(key(did=long))
    assert not path.startswith(f"{owner_prefix(short)}/")


def test_presets_formats_and_fingerprints_have_objects_of_their_own() -> None:
    """Catches one object for two results: the second would be answered with the first."""
    keys = [
        key(),
        key(preset="banner"),
        key(format_=Format.WEBP),
        key()._replace(fingerprint="0123456789"),
    ]
    paths = {result_path(each) for each in keys} | {source_path(key().blob)}
    assert len(paths) == len(keys) + 1


def test_all_cids_of_the_same_bytes_share_their_objects() -> None:
    """Catches a purge of one spelling that leaves the objects of the others."""
    found = {
        (result_path(each), mark_path(each.blob))
        for cid in spellings(blob_cid())
        for each in [key(cid=cid)]
    }
    assert len(found) == 1


@given(st.text() | st.lists(st.sampled_from(["v1", "owners", "blobs", "plc", "web", "_", ""])))
def test_any_path_is_judged(parts: str | list[str]) -> None:
    """Catches an exception for an object that somebody else put there."""
    found = blob_at(parts if isinstance(parts, str) else "/".join(parts))
    assert found is None or isinstance(found, BlobKey)

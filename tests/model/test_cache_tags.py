"""Tags: short, plain, and the same for everything that a purge means."""

from __future__ import annotations

import re

import pytest

from proxy.model.cache_tags import MAX_TAG, content_tag, owner_tag
from proxy.model.identifiers import parse_cid, parse_did, spellings
from tests.cache import blob_cid

PLC = parse_did("did:plc:z72i7hdynmk6r22z27h6tvur")
LONGEST = parse_did("did:web:" + ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 57, "com"]))
PORT = parse_did("did:web:localhost%3A2583")


def test_a_tag_names_its_owner() -> None:
    """Catches a tag that changes: what carries the old one is out of reach of every purge."""
    assert owner_tag(PLC) == "plc-z72i7hdynmk6r22z27h6tvur"
    assert owner_tag(parse_did("did:web:alice.example.com")) == "web-alice.example.com"


@pytest.mark.parametrize("did", [PLC, LONGEST, PORT])
def test_every_owner_has_a_tag_that_a_cdn_accepts(did: str) -> None:
    """Catches a hostname that is longer than a tag may be, and a separator of tags in one."""
    tag = owner_tag(parse_did(did))
    assert re.fullmatch(r"[a-z0-9.-]+", tag)
    assert len(tag) <= MAX_TAG


def test_owners_whose_names_are_hashed_have_different_tags() -> None:
    """Catches long names that are cut: a purge would reach strangers' pictures."""
    other = parse_did(LONGEST.removesuffix("com") + "org")
    assert owner_tag(other) != owner_tag(LONGEST)
    assert owner_tag(parse_did("did:web:localhost%3A2584")) != owner_tag(PORT)


def test_all_cids_of_the_same_bytes_have_one_tag() -> None:
    """Catches a block of one spelling that leaves the copies of another."""
    tags = {content_tag(each) for each in spellings(blob_cid(1))}
    assert tags == {f"cid-{blob_cid(1).removeprefix('bafkrei')}"}
    assert content_tag(blob_cid(2)) not in tags
    v0 = parse_cid("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG")
    assert content_tag(v0) == "cid-e5nqv6kd3qnfjupgvz34woh3oksc3iau6abmyajn7qvtf6d2ho34"

"""One digest has several CIDs: what is decided of one holds for all, on every route.

atproto, Data Model, "Link and CID Formats": links to blobs are CIDv1, raw, sha2-256. CIDv0 and its
CIDv1 spelling are accepted beside it; the codec of records is not.
"""

from __future__ import annotations

import json

import pytest
from libipld import encode_cid

from proxy.model.identifiers import Cid, Did, cid_digest, spellings
from tests.fakes.sites import Blob
from tests.fakes.world import World, tiny_png
from tests.moderation.test_policy import FakePolicy
from tests.processes import files_in
from tests.web import Client, img, serving
from tests.web.test_admin import WITH_TOKEN, admin, told

pytestmark = pytest.mark.usefixtures("both_ways")

CODECS = [0x00, 0x51, 0x71, 0x72, 0x0129, 0x0200]
"""Codecs that no blob has: identity, DAG-CBOR and others."""

INDEXES = pytest.mark.parametrize("at", range(3), ids=["raw", "dag-pb", "version 0"])


def add_under_all_cids(world: World) -> tuple[Did, tuple[Cid, ...]]:
    """A blob that its PDS answers with under every accepted CID of it."""
    did, cid = world.add_blob()
    for other in spellings(cid):
        world.pds.accounts[did].blobs[other] = Blob(tiny_png(), "image/png")
    return did, spellings(cid)


def targets_of(did: Did, cid: Cid) -> list[str]:
    """Every route on which a blob is named."""
    return [
        img(did, cid),
        img(did, cid, suffix="@webp"),
        img(did, cid, "avatar_small"),
        f"/blob/{did}/{cid}",
    ]


async def statuses(client: Client, did: Did, cids: tuple[Cid, ...]) -> set[int]:
    """The statuses of all ways to a byte, and to the word that a copy is still good."""
    found = set()
    for target in (target for cid in cids for target in targets_of(did, cid)):
        for method in ("GET", "HEAD"):
            found.add((await client.ask(target, method=method)).status)
            none_match = ("If-None-Match", "*")
            found.add((await client.ask(target, none_match, method=method)).status)
    return found


@INDEXES
async def test_a_block_by_any_cid_stops_every_route_for_every_cid_of_the_same_bytes(
    at: int, world: World
) -> None:
    """Catches a blocked picture that is served from memory, from the cache, from its PDS or as
    still good, under another CID or by another owner."""
    did, cids = add_under_all_cids(world)
    other, _ = add_under_all_cids(world)
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        assert await statuses(client, did, cids) == {200, 304}
        await told(client, "POST", "blocks", {"cid": cids[at]})
        assert await statuses(client, did, cids) == {404}
        assert await statuses(client, other, cids) == {404}, "of an owner that was not asked for"
        assert files_in(world.cache_path) == []
        ((listed),) = (await told(client, "GET", "blocks"))["blocks"]
        assert listed["cid"] == cids[at], "as it was typed"
        assert await told(client, "DELETE", "blocks", {"cid": cids[at - 1]}) == {"lifted": True}
        assert await statuses(client, did, cids) == {200, 304}


@INDEXES
async def test_a_block_of_a_pair_holds_for_every_cid_and_leaves_other_owners(
    at: int, world: World
) -> None:
    """Catches a pair that is taken for the blob of everybody, or for one CID."""
    did, cids = add_under_all_cids(world)
    other, _ = add_under_all_cids(world)
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        await told(client, "POST", "blocks", {"did": did, "cid": cids[at]})
        assert await statuses(client, did, cids) == {404}
        assert await statuses(client, other, cids) == {200, 304}


@INDEXES
async def test_a_purge_by_any_cid_removes_what_every_cid_left(at: int, world: World) -> None:
    """Catches a purge that leaves the files of another CID."""
    did, cids = add_under_all_cids(world)
    async with serving(world) as client:
        await statuses(client, did, cids)
    kept = len(files_in(world.cache_path))
    assert kept == 3 * len(cids)
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        assert await told(client, "POST", "purge", {"cid": cids[at]}) == {"removed": kept}
    assert files_in(world.cache_path) == []


async def test_the_policy_service_is_asked_about_the_bytes_once(world: World) -> None:
    """Catches a picture that is taken down, and is asked for anew, and served, by another CID."""
    did, cids = add_under_all_cids(world)
    site = FakePolicy()
    world.directory_network.add(site)
    site.statuses[f"/v1/{did}/{cids[0]}"] = 410
    config = world.config(policy={"url": f"{site.url}/v1"})
    async with serving(world, config) as client:
        assert await statuses(client, did, cids[::-1]) == {404}
    assert [request.target for request in site.requests] == [f"/v1/{did}/{cids[0]}"]


@pytest.mark.parametrize("codec", CODECS)
async def test_a_cid_that_cannot_be_of_a_blob_is_refused_on_every_route(
    codec: int, world: World
) -> None:
    """Catches one digest with any number of CIDs, each with entries of its own in the cache."""
    did, cid = world.add_blob()
    number = bytes([codec]) if codec < 0x80 else bytes([codec & 0x7F | 0x80, codec >> 7])
    other = Cid(encode_cid(b"\x01" + number + b"\x12\x20" + cid_digest(cid)))
    world.pds.accounts[did].blobs[other] = Blob(tiny_png(), "image/png")
    async with serving(world, world.config(**WITH_TOKEN)) as client:
        for target in targets_of(did, other):
            reply = await client.get(target)
            assert (reply.status, reply.text.strip()) == (400, "invalid CID format")
        for method, route in (("POST", "blocks"), ("DELETE", "blocks"), ("POST", "purge")):
            reply = await admin(client, method, route, {"cid": other})
            assert reply.status == 400
            assert "CID" in json.loads(reply.body)["error"]
    assert world.pds.blob_requests == 0
    assert files_in(world.cache_path) == []

"""A whole service that moderates: every source of decisions reaches what is served, and the CDN."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import BlobBlocked, BlobNotFound
from proxy.lifecycle import open_moderator
from proxy.model.cache_tags import content_tag, owner_tag
from proxy.model.formats import OUTPUTS
from proxy.model.identifiers import Cid, Did, spellings
from proxy.model.keys import BlobKey
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.service import Service
from proxy.urls import public_urls
from tests.fakes import faults
from tests.fakes.cdns import BASE, SETTINGS, FakeBunny, FakeCloudflare
from tests.fakes.network import Conversation, Response, honest
from tests.fakes.sites import GET_BLOB
from tests.fakes.streams import FakeJetstream, FakeLabeler
from tests.fakes.world import World
from tests.processes import files_in, until

pytestmark = pytest.mark.slow

CDN: dict[str, Any] = {
    "cdn": {**SETTINGS["bunny"], "purge": "urls"},
    "server": {"cdn_url": BASE},
}


@pytest.fixture
def bunny(world: World) -> FakeBunny:
    bunny = FakeBunny()
    bunny.lift_limits()  # it has a request for each URL, and takes a few in a second
    world.directory_network.add(bunny)
    return bunny


@asynccontextmanager
async def holding(
    world: World, *pictures: tuple[Did, Cid], **sections: dict[str, Any]
) -> AsyncIterator[Service]:
    """A service that has these pictures on disk."""
    async with world.service(world.config(**sections)) as service:
        for did, cid in pictures:
            await service.get_image("avatar_thumbnail", did, cid)
        await until(lambda: len(files(world)) == len(pictures))
        yield service


def files(world: World) -> list[Path]:
    return files_in(world.cache_path)


def urls_of(*pictures: tuple[Did, Cid]) -> set[str]:
    return {url for each in pictures for url in public_urls(DEFAULT_PRESETS, BlobKey(*each), BASE)}


def all_cids(*pictures: tuple[Did, Cid]) -> list[tuple[Did, Cid]]:
    return [(did, other) for did, cid in pictures for other in spellings(cid)]


async def test_a_block_of_an_owner_tells_the_cdn_every_url_of_what_was_cached(
    world: World, bunny: FakeBunny
) -> None:
    """Catches a CDN that goes on serving what this service does not."""
    did = world.make_account()
    pictures = [world.add_blob(did=did), world.add_blob(b"\x89PNG\r\n\x1a\nother", did=did)]
    other = world.add_blob()
    async with holding(world, pictures[0], other, **CDN) as service:
        await service.moderator.block(Selection(did=did), by="test")
        await until(lambda: set(bunny.purged) == urls_of(pictures[0]))
        assert len(files(world)) == 1
    # The original, and what /info tells.
    assert len(bunny.purged) == (len(OUTPUTS) + 1) * len(DEFAULT_PRESETS) + 2


@pytest.mark.parametrize("by_cid", [False, True])
async def test_by_tag_a_block_reaches_what_this_machine_evicted_or_never_had(
    by_cid: bool, world: World
) -> None:
    """Catches a purge that looks up in the cache which copies there may be."""
    cdn = FakeCloudflare()
    world.directory_network.add(cdn)
    did, cid = world.add_blob()
    selection = Selection(cid=cid) if by_cid else Selection(did=did)
    sections = {"cdn": SETTINGS["cloudflare"], "server": {"cdn_url": BASE}}
    async with holding(world, **sections) as service:
        await service.moderator.block(selection, by="test")
        tag = content_tag(cid) if by_cid else owner_tag(did)
        await until(lambda: cdn.purged == [tag])


async def test_a_block_of_a_blob_reaches_the_cdn_for_every_owner_who_has_it(
    world: World, bunny: FakeBunny
) -> None:
    """Catches an invalidation that asks the cache once it is empty, and a URL with another CID of
    the same bytes that the CDN goes on serving."""
    first, second = world.add_blob(), world.add_blob()
    assert first[1] == second[1]
    async with holding(world, first, second, **CDN) as service:
        await service.moderator.block(Selection(cid=first[1]), by="test")
        await until(lambda: set(bunny.purged) == urls_of(*all_cids(first, second)))


async def test_what_a_command_blocks_a_running_service_tells_the_cdn(
    world: World, bunny: FakeBunny
) -> None:
    """Catches a command line that has no part in the queue."""
    picture = world.add_blob()
    async with holding(world, picture, **CDN) as service:
        async with open_moderator(service.config) as moderator:
            await moderator.block(Selection(*picture), by="cli:test")
        await until(lambda: set(bunny.purged) == urls_of(*all_cids(picture)))
        with pytest.raises(BlobBlocked):
            await service.get_image("avatar_thumbnail", *picture)


async def test_a_service_with_a_cdn_that_ended_has_closed_its_files(
    world: World, bunny: FakeBunny
) -> None:
    """Catches descriptors that every restart after a crash, and every command, adds to."""
    picture = world.add_blob()
    async with holding(world, picture, **CDN) as service:
        await service.moderator.block(Selection(*picture), by="test")
        await until(lambda: bool(bunny.purged))
    async with open_moderator(world.config(**CDN)) as moderator:
        await moderator.block(Selection(*picture), by="test")
    assert [path for path in open_files() if path.startswith(str(world.cache_path))] == []


def open_files() -> list[str]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing
            found.append(str(descriptor.readlink()))
    return found


async def test_a_blob_that_its_pds_no_longer_gives_out_goes_within_the_age(world: World) -> None:
    """Catches what was taken down there, and is served from here for as long as it is used."""
    gone, stays = world.add_blob(), world.add_blob()
    cache = {"revalidate_days": 0.5 / 86400}
    async with holding(world, gone, stays, cache={"path": world.cache_path, **cache}) as service:
        del world.pds.accounts[gone[0]].blobs[gone[1]]
        await until(lambda: len(files(world)) == 1)
        with pytest.raises(BlobNotFound):
            await service.get_image("avatar_thumbnail", *gone)
        assert (await service.get_image("avatar_thumbnail", *stays)).cache == "hit"
        purged = service.moderator.store.audit(10)
        assert [(each.by, each.did) for each in purged] == [("revalidation", gone[0])]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"blob not found"),
        (410, b""),
        (451, b"<html>"),
        (400, b'{"error":"InvalidRequest","message":"No blob found for CID bafk"}'),
        (400, b'{"message":"No blob found for CID bafk"}'),
        (400, b'{"error":"BlobNotFound"}'),
        (403, b'{"error":"RepoTakendown"}'),
        # Unclear by themselves: the account is gone.
        (400, b'{"error":"InvalidRequest"}'),
        (401, b""),
        (403, b"<html>"),
    ],
)
async def test_each_answer_that_means_gone_purges_within_the_age(
    world: World, status: int, body: bytes
) -> None:
    """Catches: "gone" in other words than Bluesky's is not believed, and is served for ever."""
    gone = world.add_blob()
    cache = {"path": world.cache_path, "revalidate_days": 0.5 / 86400}
    async with holding(world, gone, cache=cache) as service:

        async def answer(conversation: Conversation) -> None:
            if conversation.request.path == GET_BLOB:
                conversation.response = Response(status, body)
            await honest(conversation)

        world.pds.fault = answer
        del world.pds.accounts[gone[0]]
        await until(lambda: files(world) == [])
        with pytest.raises(BlobNotFound):
            await service.get_image("avatar_thumbnail", *gone)


@pytest.mark.parametrize("status", [400, 401, 403, 405, 429, 500, 503])
async def test_an_answer_that_means_nothing_purges_only_what_was_not_confirmed_for_too_long(
    world: World, status: int
) -> None:
    """Catches a purge on a firewall's word, and what is served for ever from a dead PDS."""
    kept = world.add_blob()
    cache = {"path": world.cache_path, "revalidate_days": 0.5 / 86400}
    async with holding(world, kept, cache=cache) as service:
        world.pds.fault = faults.answers(status)
        await until(lambda: any(each.method == "HEAD" for each in world.pds.requests))
        assert (await service.get_image("avatar_thumbnail", *kept)).cache == "hit"
    async with holding(world, cache={**cache, "unconfirmed_days": 1 / 86400}):
        await until(lambda: files(world) == [])


async def test_only_the_account_that_is_deleted_is_purged(world: World) -> None:
    """Catches a feed that is configured, and not followed."""
    jetstream = FakeJetstream()
    world.directory_network.add(jetstream)
    gone, stays = world.add_blob(), world.add_blob()
    accounts = {"url": jetstream.url.replace("https", "wss")}
    async with holding(world, gone, stays, accounts=accounts):
        await until(lambda: bool(jetstream.open))
        fields = {"active": False, "status": "deleted", "did": gone[0], "seq": 1, "time": ""}
        event = {"did": gone[0], "time_us": time.time_ns() // 1000, "kind": "account"}
        jetstream.send({**event, "account": fields})
        await until(lambda: len(files(world)) == 1)


async def test_a_takedown_by_a_labeler_blocks_until_it_is_taken_back(world: World) -> None:
    """Catches a label that is verified, and leads to nothing."""
    labeler = FakeLabeler()
    world.network.add(labeler)
    world.plc.documents[labeler.did] = labeler.document
    picture = world.add_blob()
    async with holding(world, picture, labels={"subscribe": [labeler.did]}) as service:
        await until(lambda: bool(labeler.open))
        labeler.label(picture[0], time.time())
        await until(lambda: files(world) == [])
        with pytest.raises(BlobBlocked):
            await service.get_image("avatar_thumbnail", *picture)
        labeler.label(picture[0], time.time() + 1, neg=True)

        async def is_served() -> bool:
            try:
                await service.get_image("avatar_thumbnail", *picture)
            except BlobBlocked:
                return False
            return True

        await until(is_served)
        asked = service.moderator.store.audit(10)
        assert [(each.action, each.by) for each in asked] == [
            ("block", f"labeler:{labeler.did}"),
            ("lift", f"labeler:{labeler.did}"),
        ]

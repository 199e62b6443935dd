"""Records, and an account's blobs, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from proxy.accounts import records as module
from proxy.accounts.did_documents import DidResolver
from proxy.accounts.records import MAX_ANSWER, Records
from proxy.egress.gateway import Gateway, fetch_channels_of
from proxy.errors import (
    AccountNotFound,
    FetchFailed,
    ForbiddenDestination,
    ImageProxyError,
    RateLimited,
    RecordNotFound,
    UpstreamTimeout,
)
from proxy.model.identifiers import Cid
from tests.fakes import faults
from tests.fakes.network import Fault
from tests.fakes.sites import GET_RECORD, LIST_BLOBS, FakePds, cid_of
from tests.fakes.world import World

PROFILE = "app.bsky.actor.profile"
FIRST, SECOND = cid_of(b"1"), cid_of(b"2")


def blob(cid: str, mime: str = "image/png") -> dict[str, Any]:
    """A reference to a blob, as records have it."""
    return {"$type": "blob", "ref": {"$link": cid}, "mimeType": mime, "size": 1}


@asynccontextmanager
async def reading(world: World) -> AsyncIterator[Records]:
    config = world.config(fetch={"allow_http": False})
    gateway = Gateway(
        config.fetch, world.network, world.directory_network, fetch_channels_of(config.fetch)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        yield Records(config, gateway, DidResolver(config, gateway, nursery))
        nursery.cancel_scope.cancel()
    assert world.open_wires == 0


async def test_a_record_is_asked_of_its_owners_pds(client_world: World) -> None:
    world = client_world
    did = world.make_account()
    world.pds.add_record(did, f"{PROFILE}/self", {"avatar": blob(FIRST)})
    async with reading(world) as records:
        assert await records.get(did, PROFILE, "self") == {"avatar": blob(FIRST)}
    (request,) = world.pds.requests
    assert request.target == f"{GET_RECORD}?repo={did}&collection={PROFILE}&rkey=self"


async def test_a_record_that_is_not_there_is_told_from_a_repo_that_is_not(world: World) -> None:
    """Catches a second collection that is never asked for, or asked for in vain."""
    did = world.make_account()
    async with reading(world) as records:
        with pytest.raises(RecordNotFound):
            await records.get(did, PROFILE, "self")
        world.pds.faults.append(faults.answers(400, b'{"error":"RepoDeactivated"}'))
        with pytest.raises(AccountNotFound) as caught:
            await records.get(did, PROFILE, "self")
    assert type(caught.value) is AccountNotFound


async def test_a_record_of_an_account_that_moved_is_asked_of_its_new_pds(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches an avatar that is gone for an hour after its account has moved."""
    did = world.make_account()
    world.pds.add_record(did, f"{PROFILE}/self", {"old": 1})
    async with reading(world) as records:
        assert await records.get(did, PROFILE, "self") == {"old": 1}
        new = FakePds("new.example")
        world.network.add(new)
        world.move_account(did, new)
        new.add_record(did, f"{PROFILE}/self", {"new": 1})
        del world.pds.accounts[did]
        await trio.sleep(61)
        assert await records.get(did, PROFILE, "self") == {"new": 1}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.answers(404), AccountNotFound),
        (faults.answers(500), FetchFailed),
        (faults.answers(429), RateLimited),
        (faults.answers(400, b'{"error":"InvalidRequest","message":"other"}'), FetchFailed),
        (faults.answers(400, b"[]"), FetchFailed),
        (faults.answers(200, b"not JSON"), FetchFailed),
        (faults.answers(200, b"[" * MAX_ANSWER), FetchFailed),
        (faults.answers(200, b"[]"), FetchFailed),
        (faults.answers(200, b'{"value":[]}'), FetchFailed),
        (faults.answers(200, b"{}" + b" " * MAX_ANSWER), FetchFailed),
        (faults.reset, FetchFailed),
        (faults.hang, UpstreamTimeout),
        (faults.redirects("https://127.0.0.1/"), ForbiddenDestination),
    ],
)
async def test_a_pds_that_misbehaves_is_a_row_of_the_table(
    client_world: World,
    fault: Fault,
    error: type[ImageProxyError],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches answers without a limit, and a 500 that a stranger brings about."""
    world = client_world
    did = world.make_account()
    world.pds.fault = fault
    async with reading(world) as records:
        with pytest.raises(ImageProxyError) as caught:
            await records.get(did, PROFILE, "self")
    assert type(caught.value) is error


async def test_all_blobs_come_page_by_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the first page alone, and a page that comes twice."""
    monkeypatch.setattr(module, "PAGE", 2)
    did = world.make_account()
    added = sorted(world.pds.add_blob(did, b"%d" % number) for number in range(5))
    found: list[Cid] = []
    async with reading(world) as records:
        cids, cursor = await records.blobs(did)
        found += cids
        while cursor:
            cids, cursor = await records.blobs(did, cursor)
            found += cids
    assert found == added
    assert world.pds.requests_by_path[LIST_BLOBS] == 4


@pytest.mark.parametrize(
    ("body", "page"),
    [
        (f'{{"cids":["{FIRST}","bafyabc",7],"cursor":"x"}}', ([FIRST], "x")),
        (f'{{"cids":["{FIRST}"]}}', ([FIRST], "")),
        ('{"cids":[],"cursor":"x"}', ([], "")),
        (f'{{"cids":["{FIRST}"],"cursor":"before"}}', ([FIRST], "")),
    ],
)
async def test_a_page_says_where_it_goes_on(
    world: World, body: str, page: tuple[list[Cid], str]
) -> None:
    """Catches a PDS that repeats itself and is asked for ever."""
    did = world.make_account()
    world.pds.fault = faults.answers(200, body.encode())
    async with reading(world) as records:
        assert await records.blobs(did, "before") == page
    assert world.pds.requests[0].query["cursor"] == "before"


@pytest.mark.parametrize("body", [b"{}", b'{"cids":{}}', b'{"cids":[],"cursor":7}'])
async def test_a_page_of_another_shape_is_a_bad_answer(world: World, body: bytes) -> None:
    did = world.make_account()
    world.pds.fault = faults.answers(200, body)
    async with reading(world) as records:
        with pytest.raises(FetchFailed):
            await records.blobs(did)

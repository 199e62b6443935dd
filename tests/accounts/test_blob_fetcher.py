"""From a PDS to verified bytes: the URL, every way of saying no, and the checks."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from libipld import encode_cid

from proxy.accounts.blob_fetcher import PdsFetcher
from proxy.egress.gateway import Gateway, fetch_channels_of
from proxy.errors import (
    BlobNotFound,
    Busy,
    CidMismatch,
    FetchFailed,
    ForbiddenDestination,
    ImageProxyError,
    ImageTooLarge,
    RateLimited,
    UpstreamTimeout,
)
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey
from tests.fakes import faults
from tests.fakes.network import Conversation, Fault, honest
from tests.fakes.sites import Blob, FakePds, cid_of, new_plc_did
from tests.fakes.world import World

MB = 1024 * 1024


@asynccontextmanager
async def fetching(world: World, **fetch: Any) -> AsyncIterator[PdsFetcher]:
    config = world.config(fetch=fetch)
    gateway = Gateway(
        config.fetch, world.network, world.directory_network, fetch_channels_of(config.fetch)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        yield PdsFetcher(config, gateway)
        nursery.cancel_scope.cancel()
    assert world.open_wires == 0


async def failure(fetcher: PdsFetcher, pds: str, blob: BlobKey) -> ImageProxyError:
    with pytest.raises(ImageProxyError) as caught:
        await fetcher.fetch(pds, blob)
    return caught.value


async def test_the_bytes_of_a_blob_arrive_unchanged(client_world: World) -> None:
    """Catches: the bytes of a blob arrive changed."""
    data = bytes(range(256)) * 2048
    blob = BlobKey(*client_world.add_blob(data))
    async with fetching(client_world) as fetcher:
        assert await fetcher.fetch(client_world.pds.url, blob) == data


async def test_a_cid_v0_is_compared_by_its_digest(client_world: World) -> None:
    """Catches: a CID v0 is compared as text."""
    did = client_world.make_account()
    cid = Cid(encode_cid(b"\x12\x20" + hashlib.sha256(b"old").digest()))
    client_world.pds.accounts[did].blobs[cid] = Blob(b"old")
    async with fetching(client_world) as fetcher:
        assert await fetcher.fetch(client_world.pds.url, BlobKey(did, cid)) == b"old"


@pytest.mark.parametrize(
    ("did", "escaped"),
    [
        (Did("did:plc:ewvi7nxzyoun6zhxrhs64oiz"), "did:plc:ewvi7nxzyoun6zhxrhs64oiz"),
        (Did("did:web:someone.example"), "did:web:someone.example"),
        # The escape is part of the DID: sent as it is, the PDS would decode it to a colon.
        (Did("did:web:localhost%3A2583"), "did:web:localhost%253A2583"),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_pds_reads_the_did_and_cid_that_were_meant(
    client_world: World, did: Did, escaped: str, slash: str
) -> None:
    """Catches: a URL that the PDS reads as another DID."""
    world = client_world
    world.pds.add_account(did)
    cid = world.pds.add_blob(did, b"data")
    async with fetching(world) as fetcher:
        assert await fetcher.fetch(world.pds.url + slash, BlobKey(did, cid)) == b"data"
    (request,) = world.pds.requests
    assert request.target == f"/xrpc/com.atproto.sync.getBlob?did={escaped}&cid={cid}"
    assert request.query == {"did": did, "cid": cid}


@pytest.mark.parametrize(
    "pds",
    [
        "",
        "pds.example",
        "https://",
        "https:pds.example",
        "ftp://pds.example",
        "https://pds.example/path",
        "https://pds.example?query",
        "https://pds.example#fragment",
        "https://user@pds.example",
        "https://pds.example:99999",
        "https://pds.example:22",
        "https://127.0.0.1",
        "https://[::1]",
        "https://2130706433",
        "https://localhost",
        "https://pds.example\n",
        "https://p\u00efs.example",
        "\ud800",
    ],
)
async def test_no_packet_leaves_for_an_endpoint_that_is_not_an_origin(
    world: World, pds: str
) -> None:
    """Catches: an endpoint that is no origin lets a packet out."""
    blob = BlobKey(*world.add_blob(b"data"))
    async with fetching(world) as fetcher:
        error = await failure(fetcher, pds, blob)
    assert type(error) is ForbiddenDestination
    assert (error.status, error.public_message) == (502, FetchFailed.message)
    assert world.network.asked == []


async def test_plain_http_is_used_only_where_it_is_allowed(world: World) -> None:
    """Catches: plain HTTP is used without being allowed."""
    plain = FakePds("plain.example", port=80, scheme="http")
    world.network.add(plain)
    blob = BlobKey(*world.add_blob(b"data", pds=plain))
    async with fetching(world, allow_http=True) as fetcher:
        assert await fetcher.fetch(plain.url, blob) == b"data"
    async with fetching(world, allow_http=False) as fetcher:
        assert type(await failure(fetcher, plain.url, blob)) is ForbiddenDestination
    assert plain.connections == 1


# Saying no.


async def test_a_blob_or_account_that_a_pds_does_not_have_is_not_found(
    client_world: World,
) -> None:
    """Catches: a blob or account that a PDS does not have is a failure."""
    world = client_world
    did, cid = world.add_blob(b"data")
    account = world.pds.accounts[did]
    async with fetching(world) as fetcher:

        async def outcome(did: Did = did, cid: Cid = cid) -> type[ImageProxyError]:
            return type(await failure(fetcher, world.pds.url, BlobKey(did, cid)))

        assert await outcome(cid=cid_of(b"never uploaded")) is BlobNotFound
        assert await outcome(did=new_plc_did()) is BlobNotFound
        account.blobs[cid].takendown = True
        assert await outcome() is BlobNotFound
        account.blobs[cid].takendown = False
        account.status = "takendown"
        assert await outcome() is BlobNotFound
        account.status = "deactivated"
        assert await outcome() is BlobNotFound
        account.status = "active"
        assert await fetcher.fetch(world.pds.url, BlobKey(did, cid)) == b"data"


# Failing.


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.answers(500), FetchFailed),
        (faults.answers(429), RateLimited),
        (faults.answers(429, b"", ("Retry-After", "9")), RateLimited),
        (faults.answers(503, b"", ("Retry-After", "9")), RateLimited),
        (faults.answers(503), FetchFailed),
        (faults.answers(403), FetchFailed),
        (faults.reset, FetchFailed),
        (faults.truncated, FetchFailed),
        (faults.chunked_without_end, FetchFailed),
        (faults.hang, UpstreamTimeout),
        (faults.hang_in_body, UpstreamTimeout),
        (faults.trickle(1), UpstreamTimeout),
        (faults.with_body(lambda data: data + b"!"), CidMismatch),
        (faults.with_body(lambda data: data[1:]), CidMismatch),
        (faults.with_body(lambda data: b""), CidMismatch),
        (faults.with_body(bytes.swapcase), CidMismatch),
    ],
)
async def test_a_pds_that_misbehaves_gives_its_error_of_the_table(
    client_world: World,
    fault: Fault,
    error: type[ImageProxyError],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a PDS that misbehaves comes out as the wrong error."""
    blob = BlobKey(*client_world.add_blob(b"some data"))
    client_world.pds.fault = fault
    async with fetching(client_world) as fetcher:
        assert type(await failure(fetcher, client_world.pds.url, blob)) is error


async def test_the_time_that_a_pds_asks_for_is_kept(
    client_world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: the time that a PDS asks for is lost."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    world.pds.faults = [faults.answers(429, b"", ("Retry-After", "30"))]
    async with fetching(world) as fetcher:
        for left in (30, 20):
            error = await failure(fetcher, world.pds.url, blob)
            assert isinstance(error, RateLimited)
            assert error.retry_after == pytest.approx(left)
            await trio.sleep(10)
        assert len(world.pds.requests) == 1
        await trio.sleep(10)
        assert await fetcher.fetch(world.pds.url, blob) == b"data"


async def test_a_pds_that_refuses_or_is_nowhere_is_a_failed_fetch(client_world: World) -> None:
    """Catches: a PDS that refuses or is nowhere is a defect."""
    blob = BlobKey(*client_world.add_blob(b"data"))
    client_world.pds.refuses = -1
    async with fetching(client_world) as fetcher:
        for url in (client_world.pds.url, "https://nowhere.example"):
            assert type(await failure(fetcher, url, blob)) is FetchFailed


async def test_an_empty_blob_is_not_a_missing_one(client_world: World) -> None:
    """Catches: an empty blob is taken for a missing one."""
    blob = BlobKey(*client_world.add_blob(b""))
    async with fetching(client_world) as fetcher:
        assert await fetcher.fetch(client_world.pds.url, blob) == b""


async def test_a_cancelled_fetch_stops(client_world: World) -> None:
    """Catches: a cancelled fetch goes on."""
    blob = BlobKey(*client_world.add_blob(b"data"))
    seen = trio.Event()
    client_world.pds.fault = faults.gated(trio.Event(), seen=seen)
    async with fetching(client_world) as fetcher:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.fetch, client_world.pds.url, blob)
            await seen.wait()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert client_world.open_wires == 0


async def test_a_full_channel_is_busy_and_no_failure_of_the_pds(client_world: World) -> None:
    """Catches: a full channel is a failure of the PDS."""
    world = client_world
    did = world.make_account()
    blobs = [BlobKey(did, world.pds.add_blob(did, bytes([number]))) for number in range(3)]
    world.pds.fault = faults.gated(trio.Event())
    async with (
        fetching(world, queue_size=1, workers=1, per_host=1) as fetcher,
        trio.open_nursery() as nursery,
    ):
        for blob in blobs[:2]:
            nursery.start_soon(fetcher.fetch, world.pds.url, blob)
            await trio.testing.wait_all_tasks_blocked()
        assert type(await failure(fetcher, world.pds.url, blobs[2])) is Busy
        nursery.cancel_scope.cancel()


# The size limit, one megabyte here.


@pytest.mark.parametrize("fault", [honest, faults.chunked])
@pytest.mark.parametrize("size", [MB // 2, MB - 1, MB])
async def test_a_blob_within_the_limit_arrives(
    client_world: World, size: int, fault: Fault
) -> None:
    """Catches: a blob within the limit is refused."""
    data = bytes(size)
    blob = BlobKey(*client_world.add_blob(data))
    client_world.pds.fault = fault
    async with fetching(client_world, max_source_mb=1) as fetcher:
        assert await fetcher.fetch(client_world.pds.url, blob) == data


@pytest.mark.parametrize("fault", [honest, faults.chunked, faults.until_close])
@pytest.mark.parametrize("size", [MB + 1, 2 * MB])
async def test_a_blob_over_the_limit_is_refused(
    client_world: World, size: int, fault: Fault
) -> None:
    """Catches: a blob over the limit passes."""
    blob = BlobKey(*client_world.add_blob(bytes(size)))
    client_world.pds.fault = fault
    async with fetching(client_world, max_source_mb=1) as fetcher:
        assert type(await failure(fetcher, client_world.pds.url, blob)) is ImageTooLarge


async def test_a_blob_too_large_by_its_header_is_refused_unread(client_world: World) -> None:
    """Catches: a blob too large by its header is read first."""

    async def head_alone(conversation: Conversation) -> None:
        await faults.with_length(str(2 * MB))(conversation)
        await trio.sleep_forever()

    blob = BlobKey(*client_world.add_blob(b""))
    client_world.pds.fault = head_alone
    async with fetching(client_world, max_source_mb=1) as fetcher:
        assert type(await failure(fetcher, client_world.pds.url, blob)) is ImageTooLarge


# Whether a blob is still there.


def refuses_head(status: int) -> Fault:
    """A server that answers nothing but GETs."""

    async def play(conversation: Conversation) -> None:
        if conversation.request.method == "HEAD":
            await conversation.send(f"HTTP/1.1 {status} No\r\nContent-Length: 9\r\n\r\n".encode())
        else:
            await honest(conversation)

    return play


async def test_a_head_is_enough_to_find_a_blob(client_world: World) -> None:
    """Catches: a blob that is there is asked for by more than a HEAD."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    async with fetching(world) as fetcher:
        assert await fetcher.exists(world.pds.url, blob)
    assert [request.method for request in world.pds.requests] == ["HEAD"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<h1>For sale", (("Content-Type", "text/html"),)),
        (b"<h1>For sale", (("Content-Type", " Text/HTML; charset=utf-8"),)),
        (b"for sale", (("Content-Type", "text/plain"),)),
        (b"<html/>", (("Content-Type", "application/xhtml+xml"),)),
        (b'{"status":"ok"}', (("Content-Type", "application/json"),)),
        (b"for sale", ()),
        (b"", (("Content-Type", "image/png"),)),
    ],
    ids=["HTML", "HTML in capitals", "text", "XHTML", "JSON", "no type", "an empty picture"],
)
async def test_a_page_for_every_path_is_no_blob(
    client_world: World, body: bytes, headers: tuple[tuple[str, str], ...]
) -> None:
    """Catches: the domain of a dead PDS was sold, and its pictures are confirmed for ever."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    world.pds.fault = faults.answers(200, body, *headers)
    async with fetching(world) as fetcher:
        with pytest.raises(CidMismatch):
            await fetcher.exists(world.pds.url, blob)


@pytest.mark.parametrize("mime", ["text/plain", "application/json", "*/*", "image"])
async def test_a_blob_that_its_pds_calls_no_picture_is_there(
    client_world: World, mime: str
) -> None:
    """Catches: a picture that was uploaded under a wrong type goes after a month."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data", mime=mime))
    async with fetching(world) as fetcher:
        assert await fetcher.exists(world.pds.url, blob)
        del world.pds.accounts[blob.did].blobs[blob.cid]
        assert not await fetcher.exists(world.pds.url, blob)


@pytest.mark.parametrize("end", ["takendown", "deactivated", "gone", "blob down", "blob gone"])
async def test_the_reason_for_a_refused_head_is_asked_for(client_world: World, end: str) -> None:
    """Catches: a refused HEAD whose reason nobody asks for."""
    world = client_world
    did, cid = world.add_blob(b"data")
    account = world.pds.accounts[did]
    match end:
        case "takendown":
            account.status = "takendown"
        case "deactivated":
            account.status = "deactivated"
        case "gone":
            del world.pds.accounts[did]
        case "blob down":
            account.blobs[cid].takendown = True
        case "blob gone":
            del account.blobs[cid]
    async with fetching(world) as fetcher:
        assert not await fetcher.exists(world.pds.url, BlobKey(did, cid))


@pytest.mark.parametrize("status", [400, 404, 405, 500, 501])
async def test_a_blob_of_a_pds_without_head_is_found_by_get(
    client_world: World, status: int
) -> None:
    """Catches: a PDS without HEAD whose every blob counts as gone."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    world.pds.fault = refuses_head(status)
    async with fetching(world) as fetcher:
        assert await fetcher.exists(world.pds.url, blob)
        del world.pds.accounts[blob.did].blobs[blob.cid]
        assert not await fetcher.exists(world.pds.url, blob)


async def test_a_pds_that_says_by_a_500_that_there_is_no_such_blob_is_believed(
    client_world: World,
) -> None:
    """Catches: what is deleted at a Pegasus is a 502, and its copy is served for another month."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    body = b'{"error":"InternalServerError","message":"blob not found"}'
    world.pds.fault = faults.answers(500, body)
    async with fetching(world) as fetcher:
        assert not await fetcher.exists(world.pds.url, blob)
        with pytest.raises(BlobNotFound):
            await fetcher.fetch(world.pds.url, blob)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.answers(500, b""), FetchFailed),
        (faults.answers(429, b""), RateLimited),
        (faults.answers(403, b""), FetchFailed),
        (faults.answers(204, b""), FetchFailed),
        (faults.answers(400, b'{"error":"InvalidRequest","message":"Bad CID"}'), FetchFailed),
        (faults.reset, FetchFailed),
        (faults.hang, UpstreamTimeout),
    ],
)
async def test_a_pds_in_trouble_has_not_lost_its_blobs(
    client_world: World,
    fault: Fault,
    expected: type[ImageProxyError],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a PDS in trouble that is taken to have lost its blobs."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    world.pds.fault = fault
    async with fetching(world) as fetcher:
        with pytest.raises(expected):
            await fetcher.exists(world.pds.url, blob)


async def test_a_host_that_asks_for_fewer_requests_gets_no_second_one(client_world: World) -> None:
    """Catches: a host that asks for fewer requests and gets two."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    world.pds.fault = faults.answers(429, b"")
    async with fetching(world) as fetcher:
        with pytest.raises(RateLimited):
            await fetcher.exists(world.pds.url, blob)
    assert len(world.pds.requests) == 1


async def test_an_endpoint_that_may_not_be_fetched_from_is_not_asked_either(world: World) -> None:
    """Catches: an endpoint that may not be fetched from but may be asked."""
    blob = BlobKey(*world.add_blob(b"data"))
    async with fetching(world) as fetcher:
        with pytest.raises(ForbiddenDestination):
            await fetcher.exists("https://127.0.0.1", blob)
    assert world.network.asked == []

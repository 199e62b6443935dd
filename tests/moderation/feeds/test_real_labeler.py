"""Against Bluesky's own labeler, PDS and directory: what the fakes cannot prove.

Skipped where these cannot run, unless ``tests.required`` says that they must.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import trio
from libipld import decode_dag_cbor_multi

from proxy.accounts.did_documents import DidResolver
from proxy.config import Config
from proxy.coordination.folder import FolderCoordination
from proxy.egress.endpoint import Origin
from proxy.egress.gateway import guarded_networks, standalone_gateway
from proxy.egress.guard import GuardedNetwork
from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from proxy.moderation.feeds.event_frames import CursorRefused, decode_frame
from proxy.moderation.feeds.label_records import RecordGone, RecordReader
from proxy.moderation.feeds.labels import LabelledRecord
from proxy.moderation.feeds.run import run_feeds
from proxy.moderation.feeds.websocket import Server, open_socket
from proxy.observability.metrics import Metrics
from proxy.wiring import feed_store_of
from tests import devnet as real
from tests.devnet import Account, Devnet, DevnetUnavailable, blob_cid
from tests.devnet.ozone import Ozone, run_ozone
from tests.fakes.network import FakeNetwork, Request
from tests.fakes.sites import GET_RECORD, FakePds
from tests.fakes.streams import EventStream, FakeLabeler
from tests.fakes.world import tiny_png
from tests.moderation.feeds import EPOCH, Told
from tests.required import skip_unless_required

pytestmark = [pytest.mark.pds, pytest.mark.time_limit(600)]

PATIENCE = 30.0
"""Seconds after which what should happen counts as not happening."""

_handles = itertools.count(1)


@asynccontextmanager
async def running_devnet() -> AsyncIterator[Devnet]:
    try:
        async with real.run_devnet() as devnet:
            yield devnet
    except DevnetUnavailable as error:
        unavailable(error)


@asynccontextmanager
async def running_ozone(devnet: Devnet) -> AsyncIterator[Ozone]:
    try:
        async with run_ozone(devnet) as ozone:
            yield ozone
    except DevnetUnavailable as error:
        unavailable(error)


def unavailable(error: DevnetUnavailable) -> None:
    skip_unless_required(f"not all of it runs here: {error}")


@asynccontextmanager
async def following(
    devnet: Devnet, folder: Path, told: Told, *, later: float = 0, **sections: dict[str, Any]
) -> AsyncIterator[DidResolver]:
    """Run feeds whose clock is so many seconds ahead."""
    config = config_of(devnet, folder, **sections)
    networks = guarded_networks(config.fetch)

    async def is_cached(did: Did) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async with trio.open_nursery() as nursery:
        gateway = standalone_gateway(config.fetch, *networks)
        nursery.start_soon(gateway.run)
        resolver = DidResolver(config, gateway, nursery)

        async def run() -> None:
            await run_feeds(
                config,
                feed_store_of(config),
                decisions=told,
                cursors=told,
                is_cached=is_cached,
                purge_elsewhere=told.purge_elsewhere,
                resolver=resolver,
                gateway=gateway,
                networks=networks,
                leadership=FolderCoordination(config.cache.path).leadership("feeds"),
                metrics=Metrics(),
                clock=lambda: time.time() + later,
            )

        nursery.start_soon(run)
        with trio.fail_after(4 * PATIENCE):
            yield resolver
        nursery.cancel_scope.cancel()


def config_of(devnet: Devnet, folder: Path, **sections: dict[str, Any]) -> Config:
    own: dict[str, dict[str, Any]] = {
        "identity": {"plc_url": devnet.plc_url},
        "fetch": {"allow_http": True, "allow_private_hosts": True},
        "cache": {"path": folder / "cache"},
    }
    return Config.model_validate({**own, **sections})


async def until(told: Told, condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        await told.until(condition)


async def new_account(devnet: Devnet) -> Account:
    return await real.create_account(devnet, f"fed{next(_handles)}.test")


async def new_post(devnet: Devnet, account: Account) -> tuple[dict[str, str], Cid]:
    """A post with a picture, as a subject, and the picture's CID."""
    color = (next(_handles), 7, 7)
    blob = await real.upload_blob(devnet, account, tiny_png(color), "image/png")
    uri = await real.create_post(devnet, account, [blob])
    record = await get_record(devnet, uri)
    subject = {"$type": "com.atproto.repo.strongRef", "uri": uri, "cid": record["cid"]}
    return subject, Cid(blob_cid(blob))


async def get_record(devnet: Devnet, uri: str) -> dict[str, Any]:
    status, body = await asked(devnet, record_target(uri))
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    return found


def record_target(uri: str) -> str:
    did, collection, key = uri.removeprefix("at://").split("/")
    return f"{GET_RECORD}?repo={did}&collection={collection}&rkey={key}"


async def asked(devnet: Devnet, target: str) -> tuple[int, bytes]:
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        answer = await client.get(devnet.pds_url + target)
        return answer.status_code, answer.content


def repo(account: Account) -> dict[str, str]:
    return {"$type": "com.atproto.admin.defs#repoRef", "did": account.did}


async def first_frames(server: Server, target: str, count: int) -> list[bytes]:
    with trio.fail_after(PATIENCE):
        async with open_socket(server, target, max_message=5_000_000) as socket:
            frames = [await socket.receive() for _ in range(count)]
    assert all(isinstance(message, bytes) for message in frames)
    return [bytes(message) for message in frames if isinstance(message, bytes)]


def guarded(url: str) -> Server:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    network = GuardedNetwork(allow_private_hosts=True)
    return Server(network, Origin("http", parts.hostname, parts.port))


SUBSCRIBE_LABELS = "/xrpc/com.atproto.label.subscribeLabels"


async def test_a_moderators_takedown_blocks_until_it_is_taken_back(tmp_path: Path) -> None:
    """Account, record, blob, negation, expiry, a value that is not configured, a restart.

    Catches: a moderator's takedown that blocks nothing, or forever.
    """
    told = Told()
    async with running_devnet() as devnet, running_ozone(devnet) as ozone:
        account, poster, marked = [await new_account(devnet) for _ in range(3)]
        post, picture = await new_post(devnet, poster)
        _other, other_picture = await new_post(devnet, poster)
        labels = {"subscribe": (ozone.did,), "values": ("!takedown", "gore")}
        async with following(devnet, tmp_path, told, labels=labels):
            await ozone.take_down(repo(account))
            await ozone.take_down(post)
            await ozone.label(marked.did, create=["spam"])
            await ozone.label(poster.did, cid=other_picture, create=["gore"])
            whole = Selection(did=Did(account.did))
            of_post = Selection(did=Did(poster.did), cid=picture)
            of_blob = Selection(did=Did(poster.did), cid=other_picture)
            await until(told, lambda: len(told.standing) == 3)
            assert told.blocked == {whole, of_post, of_blob}
            await ozone.label(account.did, negate=["!takedown"])
            await until(told, lambda: whole not in told.blocked)
            await until(told, lambda: bool(told.cursors))

        # While nobody follows.
        await ozone.label(post["uri"], cid=post["cid"], negate=["!takedown"])
        await ozone.label(marked.did, create=["!takedown"], hours=1)
        async with following(devnet, tmp_path, told, labels=labels):
            expiring = Selection(did=Did(marked.did))
            await until(told, lambda: expiring in told.blocked)
            assert told.blocked == {of_blob, expiring}
        async with following(devnet, tmp_path, told, later=3601, labels=labels):
            await until(told, lambda: told.blocked == {of_blob})

        await check_frames(ozone)


async def check_frames(ozone: Ozone) -> None:
    """The fake labeler's words are the real one's."""
    (theirs,) = await first_frames(guarded(ozone.url), f"{SUBSCRIBE_LABELS}?cursor=0", 1)
    (refusal,) = await first_frames(guarded(ozone.url), f"{SUBSCRIBE_LABELS}?cursor=9999", 1)
    with pytest.raises(CursorRefused):
        decode_frame(refusal)

    async with trio.open_nursery() as nursery:
        network = FakeNetwork(nursery)
        fake = FakeLabeler()
        network.add(fake)
        server = Server(network, Origin("https", fake.host, 443))
        fake.label(ozone.did, EPOCH)
        (ours,) = await first_frames(server, f"{SUBSCRIBE_LABELS}?cursor=0", 1)
        (our_refusal,) = await first_frames(server, f"{SUBSCRIBE_LABELS}?cursor=9999", 1)
        nursery.cancel_scope.cancel()
    assert shape(ours) == shape(theirs)
    assert our_refusal == refusal


def shape(frame: bytes) -> Any:
    """A frame with types in place of values, but for its header."""
    header, body = decode_dag_cbor_multi(frame)
    return header, typed(body)


def typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: typed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [typed(part) for part in value]
    return type(value).__name__


async def deactivate(devnet: Devnet, account: Account) -> None:
    await real.deactivate_account(devnet, account)


async def delete(devnet: Devnet, account: Account) -> None:
    await real.delete_account(devnet, account.did)


async def take_down(devnet: Devnet, account: Account) -> None:
    await real.takedown_account(devnet, account.did)


ENDS: dict[str, Callable[[Devnet, Account], Awaitable[None]]] = {
    "deactivated": deactivate,
    "deleted": delete,
    "takendown": take_down,
}


async def test_an_account_that_its_pds_ends_is_purged(tmp_path: Path) -> None:
    """A PDS serves the stream that a relay does.

    Catches: an account that its PDS ends stays cached.
    """
    told = Told()
    async with running_devnet() as devnet:
        url = devnet.pds_url.replace("http://", "ws://")
        accounts = {"url": url, "kind": "relay"}
        owners = {status: await new_account(devnet) for status in ENDS}
        async with following(devnet, tmp_path, told, accounts=accounts) as resolver:
            for owner in owners.values():
                await resolver.resolve(Did(owner.did))
            # Events come from the moment on at which it is connected: until the first one does.
            while not told.purged:
                stray = await new_account(devnet)
                await deactivate(devnet, stray)
                with trio.move_on_after(2):
                    await told.until(lambda: bool(told.purged))
            for status, owner in owners.items():
                await ENDS[status](devnet, owner)
                purge = (Selection(did=Did(owner.did)), f"account is {status}")
                await until(told, partial(told.has_purged, *purge))
            assert told.standing == set()
            await until(told, lambda: bool(told.cursors))

        # While nobody follows.
        late = await new_account(devnet)
        await take_down(devnet, late)
        async with following(devnet, tmp_path, told, accounts=accounts):
            purge = (Selection(did=Did(late.did)), "account is takendown")
            await until(told, partial(told.has_purged, *purge))

        # The fake refuses a cursor from the future as the real one does.
        target = "/xrpc/com.atproto.sync.subscribeRepos?cursor=999999"
        (refusal,) = await first_frames(guarded(devnet.pds_url), target, 1)
        async with trio.open_nursery() as nursery:
            network = FakeNetwork(nursery)
            network.add(EventStream("relay.example"))
            server = Server(network, Origin("https", "relay.example", 443))
            assert await first_frames(server, target, 1) == [refusal]
            nursery.cancel_scope.cancel()


async def test_the_fake_pds_has_the_records_of_the_real_one(tmp_path: Path) -> None:
    """Catches: the fake PDS has other records than the real one."""
    async with running_devnet() as devnet:
        account = await new_account(devnet)
        post, picture = await new_post(devnet, account)
        config = config_of(devnet, tmp_path)
        async with trio.open_nursery() as nursery:
            gateway = standalone_gateway(config.fetch, *guarded_networks(config.fetch))
            nursery.start_soon(gateway.run)
            reader = RecordReader(config, gateway, DidResolver(config, gateway, nursery))
            did, collection, key = post["uri"].removeprefix("at://").split("/")
            version = LabelledRecord(Did(did), collection, key, post["cid"])
            assert await reader.blobs(version) == {picture}
            with pytest.raises(RecordGone):
                await reader.blobs(LabelledRecord(Did(did), collection, key, str(picture)))
            with pytest.raises(RecordGone):
                await reader.blobs(LabelledRecord(Did(did), collection, "none"))
            nursery.cancel_scope.cancel()

        fake = FakePds()
        fake.add_account(Did(did))
        fake.add_record(
            Did(did), f"{collection}/{key}", (await get_record(devnet, post["uri"]))["value"]
        )
        for uri in (post["uri"], f"at://{did}/{collection}/none"):
            status, body = await asked(devnet, record_target(uri))
            answer = fake.answer(Request(record_target(uri), {}))
            assert answer.status == status
            ours, theirs = json.loads(answer.body), json.loads(body)
            # The fake's CID is one of the same kind, but not of the record's CBOR.
            assert len(ours.pop("cid", "")) == len(theirs.pop("cid", ""))
            assert ours == theirs

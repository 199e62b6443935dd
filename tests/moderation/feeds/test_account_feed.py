"""Account events that are followed: what is cached of accounts that are gone is purged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from proxy.cache.disk import DiskCache
from proxy.model.identifiers import Did
from proxy.model.selection import Selection
from proxy.moderation.feeds.account_feed import AGAIN_SECONDS, JETSTREAM, MAX_MESSAGE
from proxy.moderation.feeds.follower import SAVE_SECONDS
from proxy.moderation.feeds.run import FORGET_SECONDS
from proxy.wiring import _is_cached
from tests.cache import entry, key
from tests.fakes.sites import FakePds, new_plc_did
from tests.fakes.streams import Connection, EventStream, FakeJetstream, frame
from tests.fakes.world import World
from tests.moderation.feeds import Told, following

NOW = 1_800_000_000_000_000
"""Microseconds since the epoch, as a Jetstream has them."""


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def jetstream(world: World) -> FakeJetstream:
    jetstream = FakeJetstream()
    # Beside the directory, not beside strangers: it may be on the operator's own network.
    world.directory_network.add(jetstream)
    return jetstream


@pytest.fixture
def relay(world: World) -> EventStream:
    relay = EventStream("relay.example", port=2470, scheme="http")
    world.directory_network.add(relay)
    return relay


JETSTREAM_URL: dict[str, Any] = {"url": "wss://jetstream.example"}
RELAY_URL: dict[str, Any] = {"url": "ws://relay.example:2470", "kind": "relay"}


def account(did: str, at: int, *, active: bool = False, status: str = "deleted") -> dict[str, Any]:
    fields: dict[str, Any] = {"active": active, "did": did, "seq": 1, "time": "2027-01-15T08:00Z"}
    if not active:
        fields["status"] = status
    return {"did": did, "time_us": at, "kind": "account", "account": fields}


def identity(did: str, at: int) -> dict[str, Any]:
    return {"did": did, "time_us": at, "kind": "identity", "identity": {"did": did, "seq": 1}}


async def connected(stream: FakeJetstream | EventStream) -> None:
    await stream.until(lambda: bool(stream.requests))
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("status", ["takendown", "suspended", "deleted", "deactivated", "new"])
async def test_what_is_cached_of_an_account_that_is_gone_is_purged(
    status: str, world: World, told: Told, jetstream: FakeJetstream
) -> None:
    """Catches: what is cached of an account that is gone stays."""
    did = new_plc_did()
    async with following(world, told, accounts=JETSTREAM_URL) as found:
        await connected(jetstream)
        jetstream.send(account(did, NOW, status=status))
        await told.until(lambda: bool(told.purged))
        assert told.purged == [(Selection(did=did), f"account is {status}")]
        assert told.standing == set()
        assert found.count("feed_connections", feed="accounts") == 1
        assert found.count("feed_events_total", feed="accounts", outcome="purged") == 1
    assert jetstream.requests[0].target == JETSTREAM
    assert world.network.asked == []


async def test_accounts_that_are_not_gone_or_not_cached_are_not_purged(
    world: World, told: Told, jetstream: FakeJetstream
) -> None:
    """Catches: a purge of accounts that are not gone, or not cached; copies elsewhere that stay."""
    cached, other = new_plc_did(), new_plc_did()
    async with following(world, told, accounts=JETSTREAM_URL, is_cached=lambda did: did == cached):
        await connected(jetstream)
        jetstream.send(account(other, NOW))
        jetstream.send(account(cached, NOW + 1, active=True))
        jetstream.send({"did": cached, "time_us": NOW + 2, "kind": "commit", "commit": {}})
        jetstream.send(identity(cached, NOW + 3))
        jetstream.send(account("did:key:zQ3sh", NOW + 4))
        jetstream.send(account(cached, NOW + 5))
        await told.until(lambda: bool(told.purged))
    assert [selection.did for selection, _reason in told.purged] == [cached]
    assert told.purged_elsewhere == [other]


async def test_what_was_being_fetched_of_an_account_when_it_was_gone_is_purged_later(
    world: World, told: Told, jetstream: FakeJetstream, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a picture that was not cached yet when its account was gone, and then stays."""
    did, cached = new_plc_did(), set[str]()
    async with following(world, told, accounts=JETSTREAM_URL, is_cached=cached.__contains__):
        await connected(jetstream)
        jetstream.send(account(did, NOW))
        await told.until(lambda: told.purged_elsewhere == [did])
        cached.add(did)
        await trio.sleep(AGAIN_SECONDS / 2)
        jetstream.send(identity(new_plc_did(), NOW + 1))
        await trio.testing.wait_all_tasks_blocked()
        assert told.purged == [], "it is not the time yet"
        await trio.sleep(AGAIN_SECONDS / 2)
        jetstream.send(identity(new_plc_did(), NOW + 2))
        await told.until(lambda: bool(told.purged))
        jetstream.send(identity(new_plc_did(), NOW + 3))
        await trio.sleep(AGAIN_SECONDS)
    assert told.purged == [(Selection(did=did), "account is deleted")]
    assert told.purged_elsewhere == [did]


async def test_an_owner_of_whom_the_index_has_lost_the_files_is_cached(tmp_path: Path) -> None:
    """Catches an account that is gone while the index is made anew, and whose pictures stay."""
    disk = DiskCache(tmp_path, max_bytes=1000, fsync=False)
    await disk.put(key(), entry(10))
    assert await _is_cached(disk, key().blob.did)
    assert not await _is_cached(disk, new_plc_did())
    with disk._folder._index.writing() as rows:
        for record in rows.selected(Selection(did=key().blob.did)):
            rows.remove(record.file)
    assert await _is_cached(disk, key().blob.did)
    await disk.purge(Selection(did=key().blob.did))
    assert not await _is_cached(disk, key().blob.did)
    await disk.aclose()


@pytest.mark.parametrize("kind", ["identity", "account"])
async def test_a_did_document_is_forgotten_when_it_changes(
    kind: str, world: World, told: Told, jetstream: FakeJetstream
) -> None:
    """Catches: a DID document outlives its change."""
    did, other = world.make_account(), world.make_account()
    async with following(world, told, accounts=JETSTREAM_URL) as found:
        await connected(jetstream)
        for each in (did, other):
            assert await found.resolver.resolve(each) == world.pds.url
        moved = FakePds("moved.example")
        for each in (did, other):
            world.move_account(each, moved)
        jetstream.send(identity(did, NOW) if kind == "identity" else account(did, NOW, active=True))
        jetstream.send(account(new_plc_did(), NOW + 1))
        await told.until(lambda: bool(told.purged))
        assert await found.resolver.resolve(did) == moved.url
        assert await found.resolver.resolve(other) == world.pds.url


async def test_a_process_that_does_not_follow_forgets_a_changed_document_too(
    world: World, told: Told, jetstream: FakeJetstream, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a process that does not follow keeps a changed document."""
    did = world.make_account()
    second = Told()
    async with (
        following(world, told, accounts=JETSTREAM_URL),
        following(world, second, is_inner=True, accounts=JETSTREAM_URL) as other,
    ):
        await connected(jetstream)
        await trio.sleep(60)
        assert len(jetstream.requests) == 1
        await other.resolver.resolve(did)
        moved = FakePds("moved.example")
        world.move_account(did, moved)
        jetstream.send(identity(did, NOW))
        await trio.sleep(2 * FORGET_SECONDS)
        assert await other.resolver.resolve(did) == moved.url


async def test_events_of_a_pause_are_made_up_for(
    world: World, told: Told, jetstream: FakeJetstream, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: events of a pause are lost."""
    before, during = new_plc_did(), new_plc_did()
    jetstream.send(account(new_plc_did(), NOW - 10))
    async with following(world, told, accounts=JETSTREAM_URL):
        await connected(jetstream)
        jetstream.send(account(before, NOW))
        await trio.sleep(2 * SAVE_SECONDS)
    # What was before the first connection could not have been cached.
    assert [selection.did for selection, _reason in told.purged] == [before]
    jetstream.send(account(during, NOW + 5))
    async with following(world, told, accounts=JETSTREAM_URL):
        await told.until(lambda: (Selection(did=during), "account is deleted") in told.purged)
    assert [request.query.get("cursor") for request in jetstream.requests] == [None, str(NOW)]


async def test_an_event_that_could_not_be_carried_out_is_tried_again(
    world: World, told: Told, jetstream: FakeJetstream, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: an event that could not be carried out is lost."""
    first, second = new_plc_did(), new_plc_did()
    async with following(world, told, accounts=JETSTREAM_URL):
        await connected(jetstream)
        jetstream.send(account(first, NOW))
        await trio.sleep(2 * SAVE_SECONDS)
        told.failures = [OSError("no space")] * 3
        jetstream.send(account(second, NOW + 1))
        await told.until(lambda: any(each.did == second for each, _reason in told.purged))


async def test_the_cursor_stays_at_the_latest_event_though_an_older_one_follows(
    world: World, told: Told, jetstream: FakeJetstream, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a cursor that goes back: the next connection would begin too early, for ever."""
    latest, older = new_plc_did(), new_plc_did()
    async with following(world, told, accounts=JETSTREAM_URL):
        await connected(jetstream)
        jetstream.send(account(latest, NOW + 10))
        jetstream.send(account(older, NOW))
        await told.until(lambda: any(each.did == older for each, _reason in told.purged))
        await trio.sleep(2 * SAVE_SECONDS)
        assert list(told.cursors.values()) == [NOW + 10]
        jetstream.send(account(latest, NOW + 5))
        await trio.sleep(2 * SAVE_SECONDS)
    assert list(told.cursors.values()) == [NOW + 10]


# The relay.


def relayed(seq: int, did: Did, *, active: bool = False, status: str = "deleted") -> bytes:
    body = {"seq": seq, "did": did, "time": "2027-01-15T08:00:00Z", "active": active}
    return frame("#account", body if active else {**body, "status": status})


async def test_a_relays_events_mean_the_same_as_a_jetstreams(
    world: World, told: Told, relay: EventStream, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a relay's events mean something else than a Jetstream's."""
    did = new_plc_did()
    async with following(world, told, accounts=RELAY_URL):
        await connected(relay)
        relay.send(10, frame("#commit", {"seq": 10, "repo": did, "blocks": bytes(100_000)}))
        relay.send(11, relayed(11, new_plc_did(), active=True))
        relay.send(12, frame("#identity", {"seq": 12, "did": did, "time": "x", "handle": "a.b"}))
        relay.send(13, frame("#of-the-future", {"seq": 13}))
        relay.send(14, relayed(14, did, status="takendown"))
        await told.until(lambda: bool(told.cursors))
    assert told.purged == [(Selection(did=did), "account is takendown")]
    assert list(told.cursors.values()) == [14]
    assert [request.target for request in relay.requests] == [
        "/xrpc/com.atproto.sync.subscribeRepos"
    ]


async def test_a_relay_that_lost_its_numbers_or_events_is_followed_on(
    world: World, told: Told, relay: EventStream, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a relay that lost its numbers or events stops everything."""
    did, late = new_plc_did(), new_plc_did()
    relay.send(1, relayed(1, new_plc_did()))
    async with following(world, told, accounts=RELAY_URL):
        await connected(relay)
        relay.send(50, relayed(50, new_plc_did()))
        await told.until(lambda: list(told.cursors.values()) == [50])
    relay.send(60, relayed(60, did))
    relay.kept_from = 60
    async with following(world, told, accounts=RELAY_URL) as found:
        await told.until(lambda: list(told.cursors.values()) == [60])
        assert found.count("feed_events_total", feed="accounts", outcome="gap") == 1
    relay.frames, relay.kept_from = {1: relayed(1, new_plc_did())}, 0
    async with following(world, told, accounts=RELAY_URL) as found:
        await relay.until(lambda: len(relay.requests) == 4)
        await trio.testing.wait_all_tasks_blocked()
        relay.send(2, relayed(2, late))
        await told.until(lambda: list(told.cursors.values()) == [2])
        assert found.count("feed_events_total", feed="accounts", outcome="gap") == 1
    assert [request.query.get("cursor") for request in relay.requests] == [None, "50", "60", None]
    assert [selection.did for selection, _reason in told.purged[-2:]] == [did, late]


@pytest.mark.parametrize(
    "message",
    [b"{}", "{}", "[" * 1000, b"\xff", bytes(MAX_MESSAGE + 1)],
    ids=lambda message: ascii(message)[:20],
)
async def test_garbage_is_left_after_a_pause_and_the_service_goes_on(
    message: str | bytes,
    world: World,
    told: Told,
    jetstream: FakeJetstream,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: garbage ends the service or is read in a tight loop."""

    async def garbage(connection: Connection) -> None:
        await connection.send_message(message)
        await trio.sleep_forever()

    jetstream.plays = [garbage] * 1000
    async with following(world, told, accounts=JETSTREAM_URL):
        await trio.sleep(600)
        assert 5 < len(jetstream.requests) < 20
        jetstream.plays.clear()
        tries = len(jetstream.requests)
        await jetstream.until(lambda: len(jetstream.requests) > tries)
        await trio.testing.wait_all_tasks_blocked()
        jetstream.send(account(new_plc_did(), NOW))
        await told.until(lambda: bool(told.purged))

"""Labelers that are followed: what they label is blocked, and nothing else is."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from proxy.moderation.feeds import label_enforcer
from proxy.moderation.feeds.follower import SAVE_SECONDS
from proxy.moderation.feeds.label_records import blobs_in
from tests.fakes import faults
from tests.fakes.network import honest
from tests.fakes.sites import cid_of, new_plc_did, record_cid
from tests.fakes.steps import cancelled_at_every_step
from tests.fakes.streams import Connection, FakeLabeler, SigningKey, frame, iso
from tests.fakes.world import World
from tests.moderation import feeds
from tests.moderation.feeds import EPOCH, Told, following, wall_clock

POST = "app.bsky.feed.post"


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def labeler(world: World) -> FakeLabeler:
    return add_labeler(world, "labeler.example")


def add_labeler(world: World, host: str) -> FakeLabeler:
    labeler = FakeLabeler(host)
    world.network.add(labeler)
    world.plc.documents[labeler.did] = labeler.document
    return labeler


def labels(*labelers: FakeLabeler, **more: Any) -> dict[str, Any]:
    return {"subscribe": tuple(labeler.did for labeler in labelers), **more}


def posted(world: World, *pictures: bytes, key: str = "a") -> tuple[Did, str, list[Cid]]:
    """An account whose post shows pictures; its DID, the post's URI, their CIDs."""
    did = world.make_account()
    uri = world.pds.add_record(did, f"{POST}/{key}", post(*map(cid_of, pictures)))
    return did, uri, [cid_of(picture) for picture in pictures]


def post(*cids: Cid) -> dict[str, Any]:
    images = [
        {"image": {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/png", "size": 1}}
        for cid in cids
    ]
    return {"$type": POST, "embed": {"$type": "app.bsky.embed.images", "images": images}}


async def after_all(labeler: FakeLabeler, told: Told) -> None:
    """Wait until the labeler's last label is carried out: one more comes behind it."""
    last = Selection(did=new_plc_did())
    assert last.did is not None
    labeler.label(last.did, EPOCH)
    await told.until(lambda: last in told.blocked)


# Subjects.


async def test_a_label_on_an_account_or_a_blob_blocks_exactly_that(
    world: World, told: Told, labeler: FakeLabeler
) -> None:
    """Catches: a label on an account or a blob blocks nothing or too much."""
    did, other = new_plc_did(), new_plc_did()
    cid = cid_of(b"picture")
    labeler.label(did, EPOCH)
    labeler.label(other, EPOCH, cid=cid)
    async with following(world, told, labels=labels(labeler)) as found:
        await told.until(lambda: len(told.standing) == 2)
        assert told.blocked == {Selection(did=did), Selection(did=other, cid=cid)}
        assert {by for by, _selection in told.standing} == {f"labeler:{labeler.did}"}
        assert told.reasons[0] == f"!takedown on {did}"
        assert found.count("feed_events_total", feed="labels", outcome="blocked") == 2
        assert found.count("feed_connections", feed="labels") == 1
    assert [request.target for request in labeler.requests] == [
        "/xrpc/com.atproto.label.subscribeLabels?cursor=0"
    ]


async def test_a_label_on_a_record_blocks_its_pictures(
    world: World, told: Told, labeler: FakeLabeler
) -> None:
    """Catches: a label on a record does not block its pictures."""
    did, uri, cids = posted(world, b"one", b"two")
    labeler.label(uri, EPOCH, cid=record_cid(post(*cids)))
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: len(told.standing) == 2)
    assert told.blocked == {Selection(did=did, cid=cid) for cid in cids}
    assert [request.path for request in world.pds.requests] == ["/xrpc/com.atproto.repo.getRecord"]


async def test_a_labelled_record_is_read_in_a_thread_of_the_readers_own(
    world: World, told: Told, labeler: FakeLabeler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a record of 2 MB, which may take half a second, holds up the event loop."""
    limiters: dict[object, trio.CapacityLimiter | None] = {}

    async def run_sync(
        work: Callable[..., Any], *args: Any, limiter: trio.CapacityLimiter | None = None
    ) -> Any:
        limiters[work] = limiter
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    _did, uri, _cids = posted(world, b"one")
    labeler.label(uri, EPOCH)
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: bool(told.standing))
    limiter = limiters[blobs_in]
    assert limiter is not None
    assert limiter.total_tokens == 1


async def test_a_picture_is_blocked_for_every_owner_where_the_operator_says_so(
    world: World, told: Told, labeler: FakeLabeler
) -> None:
    """Catches: a picture is still served of others whom the operator meant."""
    _did, uri, (cid,) = posted(world, b"one")
    labeler.label(uri, EPOCH)
    async with following(world, told, labels=labels(labeler, scope="everywhere")):
        await told.until(lambda: bool(told.standing))
    assert told.blocked == {Selection(cid=cid)}


@pytest.mark.parametrize("end", ["deleted", "edited", "account deleted", "unknown DID"])
async def test_a_record_that_is_gone_blocks_nothing_and_holds_up_no_label(
    end: str, world: World, told: Told, labeler: FakeLabeler
) -> None:
    """Catches: a record that is gone holds up the labels after it or blocks another."""
    did, uri, (cid,) = posted(world, b"one")
    labeler.label(uri, EPOCH, cid=record_cid(post(cid)))
    if end == "edited":
        world.pds.add_record(did, f"{POST}/a", post(cid_of(b"harmless")))
    elif end == "deleted":
        del world.pds.accounts[did].records[f"{POST}/a"]
    elif end == "unknown DID":
        del world.plc.documents[did]
    else:
        world.pds.fault = faults.answers(400, b'{"error": "RepoNotFound", "message": "gone"}')
    async with following(world, told, labels=labels(labeler)) as found:
        await after_all(labeler, told)
        while not found.count("feed_events_total", feed="labels", outcome="gone"):
            await trio.testing.wait_all_tasks_blocked()
        assert {selection.cid for selection in told.blocked} == {None}


async def test_a_label_waits_for_a_pds_that_is_down_and_holds_up_no_other(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a PDS that is down makes a label forgotten or holds up others."""
    did, uri, (cid,) = posted(world, b"one")
    world.pds.faults = [faults.answers(502), faults.answers(200, b"<html>"), faults.hang]
    world.pds.fault = faults.answers(400, b'{"error": "InvalidRequest"}')
    labeler.label(uri, EPOCH)
    async with following(world, told, labels=labels(labeler)) as found:
        await after_all(labeler, told)
        await trio.sleep(label_enforcer.FIRST_RETRY * 40)
        assert found.count("feed_events_total", feed="labels", outcome="unknown") == 6
        assert Selection(did=did, cid=cid) not in told.blocked
        assert found.count("labels_waiting") == 1
        world.pds.fault = honest
        await told.until(lambda: Selection(did=did, cid=cid) in told.blocked)


async def test_records_of_many_are_asked_for_a_few_at_a_time(
    world: World, told: Told, labeler: FakeLabeler
) -> None:
    """Catches: records of many are asked for all at once."""
    gate = trio.Event()
    world.pds.fault = faults.gated(gate)
    for number in range(3 * label_enforcer.MAX_ASKED):
        _did, uri, _cids = posted(world, str(number).encode())
        labeler.label(uri, EPOCH)
    async with following(world, told, labels=labels(labeler)):
        await after_all(labeler, told)
        while len(world.pds.requests) < label_enforcer.MAX_ASKED:
            await trio.testing.wait_all_tasks_blocked()
        await after_all(labeler, told)
        assert len(world.pds.requests) == label_enforcer.MAX_ASKED
        gate.set()
        await told.until(lambda: len(told.standing) == 3 * label_enforcer.MAX_ASKED + 2)


# The end of a label.


async def test_a_negated_label_blocks_no_more(
    world: World, told: Told, labeler: FakeLabeler
) -> None:
    """Catches: a negated label goes on blocking."""
    did, uri, (cid,) = posted(world, b"one")
    account = new_plc_did()
    labeler.label(account, EPOCH)
    labeler.label(uri, EPOCH)
    async with following(world, told, labels=labels(labeler)) as found:
        await told.until(lambda: len(told.standing) == 2)
        # The record may be gone by then.
        del world.pds.accounts[did].records[f"{POST}/a"]
        labeler.label(account, EPOCH + 1, neg=True)
        labeler.label(uri, EPOCH + 1, neg=True)
        await told.until(lambda: not told.standing)
        assert set(told.lifted) == {Selection(did=account), Selection(did=did, cid=cid)}
        assert found.count("feed_events_total", feed="labels", outcome="lifted") == 2


async def test_a_label_that_is_negated_while_its_record_is_asked_for_does_not_block(
    world: World, told: Told, labeler: FakeLabeler
) -> None:
    """Catches: a label that is negated while its record is asked for blocks."""
    gate = trio.Event()
    world.pds.fault = faults.gated(gate)
    _did, uri, _cids = posted(world, b"one")
    labeler.label(uri, EPOCH)
    async with following(world, told, labels=labels(labeler)) as found:
        while not world.pds.requests:
            await trio.testing.wait_all_tasks_blocked()
        labeler.label(uri, EPOCH + 1, neg=True)
        await after_all(labeler, told)
        gate.set()
        _did, other, (cid,) = posted(world, b"two")
        labeler.label(other, EPOCH)
        await told.until(lambda: any(selection.cid == cid for selection in told.blocked))
        assert found.count("feed_events_total", feed="labels", outcome="blocked") == 2


async def test_an_expired_label_blocks_no_more_also_after_a_restart(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: an expired label goes on blocking also over a restart."""
    soon, late, past = new_plc_did(), new_plc_did(), new_plc_did()
    labeler.label(past, EPOCH - 10, exp=iso(EPOCH - 5))
    labeler.label(soon, EPOCH, exp=iso(EPOCH + 3600))
    labeler.label(late, EPOCH, exp=iso(EPOCH + 10 * 86400))
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: len(told.standing) == 2)
        assert told.blocked == {Selection(did=soon), Selection(did=late)}
        await told.until(lambda: len(told.standing) == 1)
        assert trio.current_time() >= 3600
    assert told.blocked == {Selection(did=late)}
    await trio.sleep(20 * 86400)
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: not told.standing)


async def test_a_label_that_ended_by_a_wrong_clock_blocks_again(
    world: World,
    told: Told,
    labeler: FakeLabeler,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: a clock that was ahead for a moment ends takedowns for ever."""
    did = new_plc_did()
    labeler.label(did, EPOCH, exp=iso(EPOCH + 30 * 86400))
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: told.blocked == {Selection(did=did)})
    with monkeypatch.context() as ahead:
        ahead.setattr(feeds, "wall_clock", lambda: wall_clock() + 365 * 86400)
        async with following(world, told, labels=labels(labeler)):
            await told.until(lambda: not told.standing)
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: told.blocked == {Selection(did=did)})


async def test_a_block_stays_while_another_label_asks_for_it(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Two posts with one picture, and two values for one account.

    Catches: a block is lifted while another label asks for it.
    """
    did, first, (cid,) = posted(world, b"one")
    second = world.pds.add_record(did, f"{POST}/b", post(cid))
    both = labels(labeler, values=("!takedown", "!suspend"))
    labeler.label(first, EPOCH)
    labeler.label(second, EPOCH)
    labeler.label(did, EPOCH)
    labeler.label(did, EPOCH, val="!suspend", exp=iso(EPOCH + 60))
    async with following(world, told, labels=both):
        await told.until(lambda: len(told.reasons) == 4)
        labeler.label(first, EPOCH + 1, neg=True)
        await trio.sleep(61)
        await after_all(labeler, told)
        assert {Selection(did=did), Selection(did=did, cid=cid)} <= told.blocked
        labeler.label(second, EPOCH + 1, neg=True)
        labeler.label(did, EPOCH + 1, neg=True)
        await told.until(
            lambda: not {Selection(did=did), Selection(did=did, cid=cid)} & told.blocked
        )


async def test_a_newer_label_overrules_an_older_one(
    world: World, told: Told, labeler: FakeLabeler
) -> None:
    """Catches: an older label overrules a newer one."""
    up, down = new_plc_did(), new_plc_did()
    labeler.label(up, EPOCH + 10, neg=True)
    labeler.label(up, EPOCH)
    labeler.label(down, EPOCH + 10)
    labeler.label(down, EPOCH, neg=True)
    async with following(world, told, labels=labels(labeler)):
        await after_all(labeler, told)
        assert Selection(did=down) in told.blocked
        assert Selection(did=up) not in told.blocked


async def test_one_labelers_negation_leaves_anothers_block(
    world: World, told: Told, labeler: FakeLabeler
) -> None:
    """Catches: one labeler's negation lifts another's block."""
    second = add_labeler(world, "second.example")
    did = new_plc_did()
    labeler.label(did, EPOCH)
    second.label(did, EPOCH)
    async with following(world, told, labels=labels(labeler, second)):
        await told.until(lambda: len(told.standing) == 2)
        second.label(did, EPOCH + 1, neg=True)
        await told.until(lambda: len(told.standing) == 1)
    assert told.standing == {(f"labeler:{labeler.did}", Selection(did=did))}


# Labels that must not count.


async def test_a_label_that_is_forged_foreign_or_of_another_value_does_not_block(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a label that is forged foreign or of another value blocks."""
    other = add_labeler(world, "other.example")
    dids = [new_plc_did() for _ in range(9)]
    good = {"src": labeler.did, "val": "!takedown", "cts": iso(EPOCH)}
    forged = labeler.key.signed({**good, "uri": dids[0]})
    labeler.send_labels(
        {**forged, "uri": dids[1]},
        SigningKey().signed({**good, "uri": dids[2]}),
        # What another labeler said is that one's to say, also when its signature holds.
        other.key.signed({**good, "src": other.did, "uri": dids[3]}),
        labeler.key.signed({**good, "src": other.did, "uri": dids[4]}),
        labeler.key.signed({**good, "val": "porn", "uri": dids[5]}),
        {"ver": 1, **good, "uri": dids[6]},
        labeler.key.signed({**good, "uri": "https://example.com"}),
        {"val": "!takedown"},
        labeler.key.signed({**good, "uri": dids[7]}),
    )
    async with following(world, told, labels=labels(labeler)) as found:
        await told.until(lambda: bool(told.standing))
        await after_all(labeler, told)
        assert Selection(did=dids[7]) in told.blocked
        assert len(told.standing) == 2
        assert {
            outcome: found.count("feed_events_total", feed="labels", outcome=outcome)
            for outcome in ("bad signature", "foreign", "malformed", "not served", "blocked")
        } == {"bad signature": 2, "foreign": 2, "malformed": 2, "not served": 1, "blocked": 2}
        # In vain the key was looked up once more, not for each.
        asked = [request.path for request in world.plc.requests].count(f"/{labeler.did}")
        assert asked <= 2


@pytest.mark.parametrize("seconds", [0, 60])
async def test_labels_signed_with_a_rotated_key_hold(
    seconds: int,
    world: World,
    told: Told,
    labeler: FakeLabeler,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a rotated key makes labels dropped, in the first seconds of a connection too."""
    async with following(world, told, labels=labels(labeler)):
        await after_all(labeler, told)
        await trio.sleep(seconds)
        labeler.key = SigningKey()
        world.plc.documents[labeler.did] = labeler.document
        did = new_plc_did()
        labeler.label(did, EPOCH)
        await told.until(lambda: Selection(did=did) in told.blocked)
    assert len(labeler.requests) == 1


async def test_a_label_waits_while_the_directory_is_down(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Whether its signature holds cannot be told then: it has to come again.

    Catches: a label is dropped while the directory is down.
    """
    did = new_plc_did()
    async with following(world, told, labels=labels(labeler)):
        await after_all(labeler, told)
        await trio.sleep(60)
        labeler.key = SigningKey()
        world.plc.documents[labeler.did] = labeler.document
        world.plc.fault = faults.answers(500)
        labeler.label(did, EPOCH)
        await trio.sleep(60)
        assert Selection(did=did) not in told.blocked
        world.plc.fault = honest
        await told.until(lambda: Selection(did=did) in told.blocked)


@pytest.mark.parametrize(
    "change",
    [
        {"service": []},
        {"service": [{"id": "#atproto_labeler", "type": "Other", "serviceEndpoint": "https://a.b"}]},
        {"service": "none"},
        {"id": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"},
        {"service": [
            {"id": "#atproto_labeler", "type": "AtprotoLabeler", "serviceEndpoint": "https://10.0.0.1"}
        ]},
        {"service": [
            {"id": "#atproto_labeler", "type": "AtprotoLabeler", "serviceEndpoint": "file:///etc"}
        ]},
        None,
    ],
    ids=lambda change: ascii(change)[:60],
)  # fmt: skip
async def test_a_labeler_that_cannot_be_found_is_looked_for_again_after_a_pause(
    change: dict[str, Any] | None,
    world: World,
    told: Told,
    labeler: FakeLabeler,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a labeler that cannot be found is asked for in a tight loop or never again."""
    good = world.plc.documents.pop(labeler.did)
    if change is not None:
        world.plc.documents[labeler.did] = {**good, **change}
    async with following(world, told, labels=labels(labeler)) as found:
        await trio.sleep(600)
        assert 5 < found.count("feed_disconnects_total", feed="labels", reason="no labeler") < 25
        assert labeler.connections == 0
        world.plc.documents[labeler.did] = good
        await after_all(labeler, told)


async def test_a_key_of_another_purpose_or_form_is_not_used(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Without ``#atproto_label`` no label is valid (Label specification, "Signatures").

    Catches: a key of another purpose or form is used.
    """
    good = labeler.document
    (method,) = good["verificationMethod"]
    for wrong in ({"id": f"{labeler.did}#atproto"}, {"type": "Other"}, {"publicKeyMultibase": "z"}):
        world.plc.documents[labeler.did] = {**good, "verificationMethod": [{**method, **wrong}]}
        async with following(world, told, labels=labels(labeler)) as found:
            labeler.label(new_plc_did(), EPOCH)
            await trio.sleep(10)
            assert found.count("feed_events_total", feed="labels", outcome="bad signature") > 0
    assert told.standing == set()


# Connections and cursors.


async def test_no_label_is_lost_or_repeated_over_reconnections(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: labels are lost or repeated without end over reconnections."""

    async def drop(connection: Connection) -> None:
        with trio.move_on_after(1):
            await FakeLabeler.play(labeler, connection)

    dids = [new_plc_did() for _ in range(30)]
    labeler.plays = [drop] * 10
    async with following(world, told, labels=labels(labeler)) as found:
        for did in dids:
            labeler.label(did, EPOCH)
            await trio.sleep(1)
        await told.until(lambda: len(told.standing) == 30)
        assert found.count("feed_events_total", feed="labels", outcome="blocked") < 60
    cursors = [int(request.query["cursor"]) for request in labeler.requests]
    assert cursors == sorted(cursors)
    assert cursors[-1] > 0


async def test_a_restart_goes_on_after_what_was_carried_out(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a restart begins from the beginning or after what was not carried out."""
    labeler.label(new_plc_did(), EPOCH)
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: bool(told.cursors))
    assert list(told.cursors.values()) == [1]
    did = new_plc_did()
    labeler.label(did, EPOCH)
    told.failures = [sqlite3.OperationalError("disk I/O error"), OSError("no space")]
    async with following(world, told, labels=labels(labeler)) as found:
        await told.until(lambda: Selection(did=did) in told.blocked)
        assert found.count("feed_disconnects_total", feed="labels", reason="not carried out") == 2
        await told.until(lambda: list(told.cursors.values()) == [2])
    assert [request.query["cursor"] for request in labeler.requests] == ["0", "1", "1", "1"]


async def test_a_cursor_is_kept_after_its_label_was_carried_out(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a cursor is kept before its label was carried out."""
    labeler.label(new_plc_did(), EPOCH)
    told.failures = [OSError("no space")] * 50
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: len(told.failures) < 40)
        await trio.sleep(2 * SAVE_SECONDS)
        assert told.cursors == {}


async def test_a_cursor_from_the_future_begins_anew(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a cursor from the future stops a labeler forever."""
    for _ in range(5):
        labeler.label(new_plc_did(), EPOCH)
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: list(told.cursors.values()) == [5])
    # The labeler lost its numbers.
    labeler.frames.clear()
    labeler._seq = 0
    did = new_plc_did()
    labeler.label(did, EPOCH)
    async with following(world, told, labels=labels(labeler)) as found:
        await told.until(lambda: Selection(did=did) in told.blocked)
        await told.until(lambda: list(told.cursors.values()) == [1])
        assert found.count("feed_events_total", feed="labels", outcome="gap") == 1
    assert [request.query["cursor"] for request in labeler.requests] == ["0", "5", "0"]


async def test_a_gap_is_told_and_the_labeler_followed_on(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a gap stops a labeler or is not told."""
    labeler.label(new_plc_did(), EPOCH)
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: bool(told.cursors))
    for _ in range(5):
        labeler.label(new_plc_did(), EPOCH)
    labeler.kept_from = 5
    async with following(world, told, labels=labels(labeler)) as found:
        await after_all(labeler, told)
        assert len(told.standing) == 4
        assert found.count("feed_events_total", feed="labels", outcome="gap") == 1


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        b"",
        "text",
        frame("#labels", {"seq": 1}),
        frame("#labels", {"labels": []}),
        frame("#labels", {"seq": 2**53, "labels": []}),
        bytes(2 * 1024 * 1024),
    ],
    ids=lambda message: ascii(message)[:40],
)
async def test_garbage_is_left_after_a_pause_and_the_service_goes_on(
    message: str | bytes,
    world: World,
    told: Told,
    labeler: FakeLabeler,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: garbage ends the service or is read in a tight loop."""

    async def garbage(connection: Connection) -> None:
        await connection.send_message(message)
        await trio.sleep_forever()

    labeler.plays = [garbage] * 4
    began = trio.current_time()
    async with following(world, told, labels=labels(labeler)):
        await after_all(labeler, told)
        assert 0.5 + 1 + 2 + 4 <= trio.current_time() - began <= 1 + 2 + 4 + 8 + 1
    assert len(labeler.requests) == 5


async def test_a_server_that_hangs_up_at_once_is_called_less_often(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a server that hangs up at once is called in a tight loop."""

    async def hang_up(connection: Connection) -> None:
        await connection.send_message(frame("#labels", {"seq": 1, "labels": []}))

    labeler.plays = [hang_up] * 10_000
    async with following(world, told, labels=labels(labeler)):
        await trio.sleep(3600)
    # Nine that double, then one in 150 to 300 seconds.
    assert 15 <= len(labeler.requests) <= 35


async def test_a_server_is_not_called_before_it_wants_to_be(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a server is called before it wants to be."""
    labeler.rejects = [429]
    labeler.reject_headers = [(b"retry-after", b"120")]
    async with following(world, told, labels=labels(labeler)):
        await after_all(labeler, told)
    assert trio.current_time() >= 120


async def test_a_labeler_on_a_forbidden_address_is_not_connected_to(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a labeler on a forbidden address is connected to."""
    world.network.forbids.add(labeler.host)
    async with following(world, told, labels=labels(labeler)):
        await trio.sleep(60)
    assert labeler.connections == 0


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
async def test_a_process_that_ends_at_any_moment_loses_no_block_and_no_lifting(
    after: bool, tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Ends it at steps of its work in turn; the next process has to come to the same.

    Catches: a process that ends at any moment leaves a block out or standing forever.
    """
    runs = itertools.count()
    run: Run

    async def attempt() -> None:
        nonlocal run
        run = Run(World(nursery, tmp_path / str(next(runs))))
        run.prepare()
        await run.follow()

    async def then() -> None:
        await run.follow()
        assert run.told.blocked == run.wanted
        assert run.told.cursors, "it would begin from the beginning each time"

    assert await cancelled_at_every_step(attempt, after=after, every=3, then=then) > 50


class Run:
    """An account that is labelled, one that is not any more, a post, and a post that is no more."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told = Told()
        self.wanted: set[Selection] = set()

    def prepare(self) -> None:
        self.labeler = labeler = add_labeler(self.world, "labeler.example")
        down, up = new_plc_did(), new_plc_did()
        did, uri, (cid,) = posted(self.world, b"one")
        _did, lifted, _cids = posted(self.world, b"two")
        # So that the cursor is kept before the posts are known.
        self.world.pds.faults = [faults.answers(502)] * 2
        labeler.label(up, EPOCH)
        labeler.label(lifted, EPOCH)
        labeler.label(down, EPOCH)
        labeler.label(uri, EPOCH)
        labeler.label(up, EPOCH + 1, neg=True)
        labeler.label(lifted, EPOCH + 1, neg=True)
        self.wanted = {Selection(did=down), Selection(did=did, cid=cid)}

    async def follow(self) -> None:
        async with following(self.world, self.told, labels=labels(self.labeler)):
            with trio.fail_after(86400):
                await self.told.until(lambda: self.told.blocked == self.wanted)
            await trio.sleep(2 * SAVE_SECONDS)


# Configuration.


async def test_a_value_or_labeler_that_is_configured_no_more_blocks_no_more(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a value or labeler that is configured no more goes on blocking."""
    second = add_labeler(world, "second.example")
    did, other = new_plc_did(), new_plc_did()
    labeler.label(did, EPOCH)
    labeler.label(other, EPOCH, val="spam")
    second.label(did, EPOCH)
    both = labels(labeler, second, values=("!takedown", "spam"))
    async with following(world, told, labels=both):
        await told.until(lambda: len(told.standing) == 3)
        await told.until(lambda: len(told.cursors) == 2)
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: len(told.standing) == 1)
        assert told.standing == {(f"labeler:{labeler.did}", Selection(did=did))}
        await trio.sleep(2 * SAVE_SECONDS)
    async with following(world, told):
        await told.until(lambda: not told.standing)
    # And what comes back is followed from its beginning.
    async with following(world, told, labels=both):
        await told.until(lambda: len(told.standing) == 3)


async def test_another_scope_holds_only_for_labels_to_come(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    did, uri, (cid,) = posted(world, b"one")
    labeler.label(uri, EPOCH)
    async with following(world, told, labels=labels(labeler)):
        await told.until(lambda: bool(told.cursors and told.standing))
    async with following(world, told, labels=labels(labeler, scope="everywhere")):
        await told.until(lambda: told.blocked == {Selection(cid=cid)})
    assert Selection(did=did, cid=cid) in told.lifted


async def test_without_configuration_no_file_and_no_connection_is_opened(
    world: World, told: Told
) -> None:
    """Catches: nothing configured opens a file or a connection."""
    async with following(world, told):
        await trio.testing.wait_all_tasks_blocked()
    assert not world.cache_path.exists()
    assert world.network.asked == world.directory_network.asked == []


async def test_one_process_on_a_folder_follows_and_the_next_after_its_end(
    world: World, told: Told, labeler: FakeLabeler, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: two processes on a folder both follow or neither after the first ended."""
    async with following(world, told, labels=labels(labeler)):
        await after_all(labeler, told)
        async with trio.open_nursery() as nursery:
            second = Told()
            up = trio.Event()
            done = trio.Event()

            async def follow() -> None:
                async with following(world, second, is_inner=True, labels=labels(labeler)):
                    up.set()
                    await done.wait()

            nursery.start_soon(follow)
            await up.wait()
            await trio.sleep(30)
            assert len(labeler.requests) == 1
            done.set()
    third = Told()
    async with following(world, third, labels=labels(labeler)):
        await after_all(labeler, third)

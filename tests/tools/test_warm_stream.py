"""New pictures of a Jetstream, warmed as they come."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from proxy.cli import cli
from proxy.egress.endpoint import Origin
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey, poster_key
from proxy.moderation.feeds.event_frames import BadFrame
from proxy.service import Service
from proxy.tools import warm_stream as module
from proxy.tools.warm import Warmer
from proxy.tools.warm_stream import BookmarkedCursors, new_pictures, warm_stream
from tests.fakes.sites import cid_of, new_plc_did
from tests.fakes.streams import FakeJetstream
from tests.fakes.world import World, tiny_jpeg, tiny_png
from tests.imaging.videos import video
from tests.processes import imageproxy, run, until, upstream

PROFILE, POST = "app.bsky.actor.profile", "app.bsky.feed.post"
CID = cid_of(b"1")


def record(*cids: Cid) -> dict[str, Any]:
    """A record that refers to pictures."""
    return {
        "images": [
            {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/png", "size": 1}
            for cid in cids
        ]
    }


def event(did: str, time_us: int, *cids: Cid, **commit: Any) -> dict[str, Any]:
    """A commit as a Jetstream sends it."""
    own = {
        "rev": "3l3qo2vutsw2b",
        "operation": "create",
        "collection": PROFILE,
        "rkey": "self",
        "record": record(*cids),
        "cid": "bafyreidwaivazkwu67xztlmuobx35hs2lnfh3kolmgfmucldvhd3sgzcqi",
    }
    return {"did": did, "time_us": time_us, "kind": "commit", "commit": own | commit}


DID = new_plc_did()


@pytest.mark.parametrize(
    ("change", "cids"),
    [
        ({}, [CID]),
        ({"operation": "update"}, [CID]),
        ({"operation": "delete", "record": None}, []),
        ({"operation": "delete"}, []),
        ({"collection": POST}, []),
        ({"record": []}, []),
        ({"record": "x"}, []),
    ],
)
def test_records_that_appear_in_the_wanted_collections_bring_pictures(
    change: dict[str, Any], cids: list[Cid]
) -> None:
    """Catches deletions, and other collections, that are fetched."""
    found = new_pictures(json.dumps(event(DID, 7, CID, **change)), {PROFILE})
    assert found == (7, [BlobKey(DID, cid) for cid in cids])


@pytest.mark.parametrize(
    ("collection", "field"),
    [
        ("sh.tangled.actor.profile", "avatar"),
        ("site.standard.document", "coverImage"),
        ("pub.leaflet.publication", "icon"),
        ("social.grain.photo", "photo"),
    ],
)
def test_collections_of_other_apps_bring_theirs(collection: str, field: str) -> None:
    """Catches a stream that knows the fields of Bluesky alone."""
    blob = {"$type": "blob", "ref": {"$link": CID}, "mimeType": "image/png", "size": 1}
    change = {"collection": collection, "record": {"$type": collection, field: blob}}
    found = new_pictures(json.dumps(event(DID, 7, CID, **change)), {collection})
    assert found == (7, [BlobKey(DID, CID)])


@pytest.mark.parametrize(
    "other",
    [
        {"did": DID, "time_us": 7, "kind": "identity", "identity": {}},
        {"did": DID, "time_us": 7, "kind": "account", "account": {"active": True}},
        {"did": DID, "time_us": 7, "kind": "commit"},
        {"did": DID, "time_us": 7, "kind": "commit", "commit": []},
        {"did": DID, "time_us": 7},
        event("did:key:zQ3shZc2QzApp2oymGvQbzP8eKheVshBHbU4ZYjeXqwSKEn6N", 7, CID),
        event("", 7, CID) | {"did": 5},
    ],
)
def test_other_events_bring_their_cursor_alone(other: dict[str, Any]) -> None:
    """Catches a reader that knows commits alone."""
    assert new_pictures(json.dumps(other), {PROFILE}) == (7, [])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.text()
    | JSON_VALUES.map(json.dumps)
    | st.fixed_dictionaries(
        {"time_us": st.just(7) | JSON_VALUES},
        optional=dict.fromkeys(("did", "kind", "commit"), JSON_VALUES),
    ).map(json.dumps)
)
def test_any_message_is_an_event_or_a_bad_frame(text: str) -> None:
    """Catches a server that ends the run."""
    with suppress(BadFrame):
        assert new_pictures(text, {PROFILE})[1] == []


@dataclass
class Run:
    """A run that follows ``jetstream``.

    Attributes:
        left_out: pictures that came while too many waited.
    """

    world: World
    jetstream: FakeJetstream
    service: Service
    warmer: Warmer
    left_out: int = 0

    def leave_out(self) -> None:
        self.left_out += 1

    async def run(self) -> None:
        await warm_stream(
            self.service,
            self.warmer,
            Origin("https", "jetstream.example", 443),
            self.world.network,
            {PROFILE},
            self.leave_out,
        )


@asynccontextmanager
async def running(
    world: World, jetstream: FakeJetstream, *, per_second: float = 1e6
) -> AsyncIterator[Run]:
    """Follow it for the time of the block."""
    async with world.service() as service, trio.open_nursery() as nursery:
        warmer = Warmer(service, ["avatar", "banner"], at_once=2, per_second=per_second)
        made = Run(world, jetstream, service, warmer)
        nursery.start_soon(made.run)
        await until(lambda: bool(jetstream.open))
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
async def jetstream(world: World) -> FakeJetstream:
    stream = FakeJetstream()
    world.network.add(stream)
    return stream


async def test_a_new_video_has_its_poster_before_anybody_asks(
    world: World, jetstream: FakeJetstream
) -> None:
    """Catches a video that is fetched as a picture, into memory, for nothing."""
    did, cid = world.add_blob(video(), mime="video/mp4")
    embedded = {"video": {"$type": "blob", "ref": {"$link": cid}, "mimeType": "video/mp4"}}
    async with running(world, jetstream) as under_way:
        jetstream.send(event(did, 1, record=embedded))
        await until(lambda: under_way.warmer.tally.made == 1)
        service = under_way.service
        key = poster_key(service.config.presets, service.config.video.preset, did, cid)
        assert service.hit(key) is not None
        assert world.pds.blob_requests == 1


async def test_new_pictures_are_there_before_anybody_asks(
    world: World, jetstream: FakeJetstream
) -> None:
    """Catches a stream that is read, and nothing made of it."""
    did, cid = world.add_blob()
    _, second = world.add_blob(tiny_png((1, 2, 3)), did=did)
    async with running(world, jetstream) as under_way:
        assert jetstream.requests[0].target == f"/subscribe?wantedCollections={PROFILE}"
        jetstream.send(event(did, 1, cid, second))
        await until(lambda: under_way.warmer.tally.made == 2)
        for each in (cid, second):
            assert (await under_way.service.get_image("avatar", did, each)).cache == "hit"
        # The same record again costs nothing.
        jetstream.send(event(did, 2, cid))
        await until(lambda: under_way.warmer.tally.cached == 1)
    assert world.pds.blob_requests == 2


async def test_a_run_goes_on_where_the_last_one_was(
    world: World, jetstream: FakeJetstream, tmp_path: Path
) -> None:
    """Catches a gap for every restart."""
    did, cid = world.add_blob()
    await BookmarkedCursors(world.cache_path).set_cursor(
        f"pictures https://jetstream.example {PROFILE}", 5
    )
    jetstream.events = [event(did, 4, cid), event(did, 6, cid)]
    async with running(world, jetstream) as under_way:
        assert jetstream.requests[0].query["cursor"] == "5"
        await until(lambda: under_way.warmer.tally.made == 1)


async def test_what_comes_too_fast_is_left_out_and_counted(
    world: World, jetstream: FakeJetstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches memory that grows with a busy network, and a stream that is read ever later."""
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    did = world.make_account()
    cids = [world.pds.add_blob(did, tiny_png((number, 0, 0))) for number in range(20)]
    async with running(world, jetstream, per_second=0.01) as under_way:
        for number, cid in enumerate(cids, 1):
            jetstream.send(event(did, number, cid))
        # One is under way, one waits for its turn, and three for a task.
        await until(lambda: under_way.left_out == 20 - 5)
    assert world.pds.blob_requests <= 1


async def test_a_jetstream_that_talks_nonsense_is_left_and_asked_again(
    world: World, jetstream: FakeJetstream
) -> None:
    """Catches a run that one message ends."""
    did, cid = world.add_blob()
    left: list[Any] = []

    async def nonsense(connection: Any) -> None:
        left.append(connection)
        await connection.send_message("nonsense")
        await trio.sleep_forever()

    jetstream.plays.append(nonsense)
    async with running(world, jetstream) as under_way:
        await until(lambda: any(each not in left for each in jetstream.open))
        jetstream.send(event(did, 1, cid))
        await until(lambda: under_way.warmer.tally.made == 1)


@pytest.mark.parametrize("kept", ["", "x", "-1", "1.5"])
async def test_an_unreadable_cursor_is_ignored(tmp_path: Path, kept: str) -> None:
    cursors = BookmarkedCursors(tmp_path)
    assert await cursors.cursor("a") is None
    await cursors.set_cursor("a", 5)
    assert (await cursors.cursor("a"), await cursors.cursor("b")) == (5, None)
    (file,) = (tmp_path / "warm").iterdir()
    file.write_text(json.dumps(kept))
    assert await cursors.cursor("a") is None


async def test_events_of_owners_that_are_no_did_are_passed_over(
    world: World, jetstream: FakeJetstream
) -> None:
    did, cid = world.add_blob()
    async with running(world, jetstream) as under_way:
        jetstream.send(event(Did("did:example:1"), 1, cid))
        jetstream.send(event(did, 2, cid))
        await until(lambda: under_way.warmer.tally.made == 1)
    assert under_way.warmer.tally.failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_follows_until_it_is_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Catches a command that is not wired to any of it, and one that Ctrl-C breaks off."""
    async with upstream() as internet, trio.open_nursery() as nursery:
        did, cid = internet.add_blob(tiny_jpeg())

        async def serve(request: trio_websocket.WebSocketRequest) -> None:
            connection = await request.accept()
            with suppress(trio_websocket.ConnectionClosed):
                await connection.send_message(json.dumps(event(did, 1, cid)))
                await connection.get_message()

        server = await nursery.start(trio_websocket.serve_websocket, serve, "127.0.0.1", 0, None)
        url = f"ws://127.0.0.1:{server.port}"
        command = imageproxy("warm", "--jetstream", url, "--preset", "banner")
        cache = tmp_path / "cache"
        async with run(command, internet.environment(cache)) as process:
            await process.line_with(f"following http://127.0.0.1:{server.port}")
            await until(lambda: len(list((cache / "images").rglob(f"{cid}@*"))) == 1)
            process.send(number)
            await process.line_with("1 made, 0 were cached, 0 skipped, 0 failed")
            assert await process.exit_code() == 0
            assert "Traceback" not in process.text
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jetstream", "https://jetstream.example"], "--jetstream must be wss://HOST"),
        (["--jetstream", "wss://jetstream.example", "--preset", "x"], "invalid preset: x"),
    ],
)
def test_the_command_says_what_it_was_given_wrong(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["warm", *arguments])
    assert result.exit_code == 2
    assert message in result.output

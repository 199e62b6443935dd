"""What the log says of hosts that fail again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio.testing

import proxy.web.responder
from proxy.errors import Busy, FetchFailed, InvalidDid, UndecodableImage
from proxy.model.identifiers import Cid, Did
from proxy.observability.repeats import MOST
from tests.fakes.sites import FakePds
from tests.fakes.world import World
from tests.logs import logged_by
from tests.web import Client, img, serving

Clock = trio.testing.MockClock


def refusing(world: World, host: str) -> list[tuple[Did, Cid]]:
    """Two pictures of a PDS that takes no connection."""
    pds = FakePds(host)
    world.network.add(pds)
    found = [world.add_blob(pds=pds) for _ in range(2)]
    pds.refuses = -1
    return found


async def ask(client: Client, pictures: Sequence[tuple[Did, Cid]], times: int) -> None:
    for _ in range(times):
        for did, cid in pictures:
            assert (await client.get(img(did, cid))).status == 502


def told(lines: list[Any], level: str = "warning") -> list[tuple[str, int]]:
    """The host of each line of a failure, and how many were left out before it."""
    return [
        (each["host"], each.get("left_out", 0))
        for each in lines
        if each["event"] == "request" and each["log_level"] == level
    ]


async def test_a_host_that_fails_has_one_line_a_minute_with_the_number_left_out(
    world: World, mock_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a line for each request, which a crawler makes thousands of, and one for ever."""
    one, other = refusing(world, "one.example"), refusing(world, "other.example")
    async with serving(world, world.config(log={"level": "debug"})) as client:
        with logged_by(proxy.web.responder, monkeypatch) as lines:
            await ask(client, one, 3)
            await ask(client, other, 1)
            assert told(lines) == [("one.example", 0), ("other.example", 0)]
            assert told(lines, "debug") == [("one.example", 0)] * 5 + [("other.example", 0)]
            mock_clock.jump(61)
            await ask(client, one, 1)
            assert told(lines)[2:] == [("one.example", 5)]
            (line,) = [each for each in lines if each.get("left_out") == 5]
    assert (line["error"], line["status"]) == ("FetchFailed", 502)
    assert "one.example" in line["cause"]


async def test_an_avatar_and_a_picture_of_one_host_share_its_line(
    world: World, mock_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a second place that writes such lines by itself."""
    ((did, cid), _) = refusing(world, "one.example")
    async with serving(world) as client:
        with logged_by(proxy.web.responder, monkeypatch) as lines:
            assert (await client.get(f"/avatar/{did}")).status == 502
            assert (await client.get(img(did, cid))).status == 502
    assert told(lines) == [("one.example", 0)]


async def test_a_directory_that_fails_has_one_line_for_all_accounts(
    world: World, mock_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a line for each account while the directory is away, which is for all of them."""
    pictures = [world.add_blob() for _ in range(3)]
    world.plc.refuses = -1
    async with serving(world) as client:
        with logged_by(proxy.web.responder, monkeypatch) as lines:
            await ask(client, pictures, 1)
    assert told(lines) == [(world.plc.host, 0)]


async def test_a_domain_of_a_did_web_that_fails_is_named(
    world: World, mock_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    did = Did("did:web:alice.example")
    web = world.make_web_account(did)
    _, cid = world.add_blob(did=did)
    web.refuses = -1
    async with serving(world) as client:
        with logged_by(proxy.web.responder, monkeypatch) as lines:
            await ask(client, [(did, cid)], 2)
    assert told(lines) == [("alice.example", 0)]


async def test_hosts_that_strangers_invent_make_no_flood_of_lines(
    world: World, mock_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a line for every name of a wildcard domain."""
    async with serving(world) as client:
        with logged_by(proxy.web.responder, monkeypatch) as lines:
            for number in range(2 * MOST):
                error = FetchFailed("refused")
                error.host = f"{number}.example"
                client.app.responder.tell_failure(error, "/img/", 1.0)
    assert len(told(lines)) == MOST + 1


async def test_what_is_no_host_s_failure_has_the_line_that_it_had(
    world: World, mock_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches pictures that do not decode, or requests that are wrong, which nobody hears of."""
    async with serving(world) as client:
        with logged_by(proxy.web.responder, monkeypatch) as lines:
            for _ in range(3):
                for error in (UndecodableImage("a"), InvalidDid("b"), Busy("c")):
                    client.app.responder.tell_failure(error, "/img/", 1.0)
    levels = [(each["error"], each["log_level"]) for each in lines]
    assert levels.count(("UndecodableImage", "warning")) == 3
    assert levels.count(("InvalidDid", "info")) == 3
    # Our own want of capacity is one line too.
    assert levels.count(("Busy", "warning")) == 1

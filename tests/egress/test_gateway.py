"""The way out as a whole: what stays open, and which hosts are left alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from proxy.egress.circuit import FAILURES_TO_OPEN, OPEN_SECONDS
from proxy.egress.endpoint import Origin
from proxy.egress.errors import AskedToWait, ConnectFailed, Saturated, TimedOut
from proxy.egress.fetch_channel import LANES, Lane
from proxy.egress.gateway import IDLE_SECONDS, Gateway, standalone_gateway
from proxy.egress.guarded_get import Response as Answer
from proxy.egress.httpx2_client import Httpx2Client
from tests.fakes import faults
from tests.fakes.network import Response, Site
from tests.fakes.world import World

HOST = Origin("https", "pds.example", 443)


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path, client_name: str) -> World:
    return World(nursery, tmp_path, client_name)


@pytest.fixture
async def site(world: World) -> Site:
    site = Site(HOST.host)
    site.pages["/"] = Response(200, b"here")
    world.network.add(site)
    return site


@pytest.fixture
async def gateway(world: World, nursery: trio.Nursery) -> AsyncIterator[Gateway]:
    fetch = world.config(fetch={"timeout": 300}).fetch
    gateway = standalone_gateway(fetch, world.network, world.directory_network)
    nursery.start_soon(gateway.run)
    yield gateway
    nursery.cancel_scope.cancel()


async def get(gateway: Gateway) -> Answer:
    return await gateway.get(HOST, "/", max_bytes=100)


async def test_connections_past_their_idle_time_are_closed_without_another_request(
    world: World, site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a pool that looks at its idle connections only when it is next used."""
    client = Httpx2Client(world.network, max_idle=5, idle_seconds=20)
    async with client.request("GET", HOST, "/", {}) as reply:
        assert [chunk async for chunk in reply.body] == [b"here"]
    await trio.sleep(19)
    await client.close_expired()
    assert world.open_wires == 1
    await trio.sleep(1)
    await client.close_expired()
    assert world.open_wires == 0


async def test_connections_within_their_idle_time_stay_open(world: World, site: Site) -> None:
    """Catches a sweep that closes what the next fetch would have used."""
    client = Httpx2Client(world.network, max_idle=5, idle_seconds=1000)
    for _ in range(2):
        async with client.request("GET", HOST, "/", {}) as reply:
            assert [chunk async for chunk in reply.body] == [b"here"]
        await client.close_expired()
    assert site.connections == 1


async def test_the_gateway_looks_for_expired_connections_again_and_again(
    gateway: Gateway,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a sweep that nobody starts."""
    sweeps: list[float] = []

    async def close_expired(self: object) -> None:
        sweeps.append(trio.current_time())
        await trio.lowlevel.checkpoint()

    client = type(gateway._strangers)
    monkeypatch.setattr(client, "close_expired", close_expired)
    began = trio.current_time()
    await trio.sleep(IDLE_SECONDS * 2)
    assert {round(at - began) for at in sweeps} >= {round(IDLE_SECONDS / 2), round(IDLE_SECONDS)}


async def test_a_host_that_refuses_costs_no_more_connections_once_its_circuit_is_open(
    world: World, site: Site, gateway: Gateway, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a dead host that takes a consumer for each request, or is never tried again.

    A fetch tries a connection twice.
    """
    site.refuses = -1
    for _ in range(FAILURES_TO_OPEN * 3):
        with pytest.raises(ConnectFailed):
            await get(gateway)
    assert len(world.network.asked) == 2 * FAILURES_TO_OPEN

    site.refuses = 0
    await trio.sleep(OPEN_SECONDS)
    assert (await get(gateway)).body == b"here"
    assert (await get(gateway)).body == b"here"


async def test_only_the_probe_itself_can_give_up_its_place(
    world: World, site: Site, gateway: Gateway, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches an older fetch, ending while the probe is under way, that lets a second one through.

    The older one began while the circuit was closed, and is cancelled in the end.
    """
    older = trio.CancelScope()

    async def ask() -> None:
        with older:
            await get(gateway)

    async with trio.open_nursery() as nursery:
        site.answers_connections = False
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        site.answers_connections = True
        site.refuses = -1
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(ConnectFailed):
                await get(gateway)
        site.answers_connections = False
        await trio.sleep(OPEN_SECONDS)
        nursery.start_soon(get, gateway)
        await trio.testing.wait_all_tasks_blocked()
        older.cancel()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConnectFailed):
            await get(gateway)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("flooded", LANES)
async def test_a_flood_in_one_lane_takes_nothing_from_the_others(
    world: World,
    gateway: Gateway,
    nursery: trio.Nursery,
    flooded: Lane,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches lanes that share a consumer or a place: a flood of unknown DIDs that refuses blobs,
    or one of blobs that leaves no DID resolved."""
    fetch = world.config().fetch
    hanging = [Site(f"flood{number}.example") for number in range(fetch.workers)]
    healthy = Site("healthy.example")
    healthy.pages["/"] = Response(200, b"here")
    for network in (world.network, world.directory_network):
        network.add(healthy, *hanging)
    for each in hanging:
        each.answers_connections = False
    refused = 0

    async def flood(host: str) -> None:
        nonlocal refused
        try:
            await gateway.get(Origin("https", host, 443), "/", max_bytes=100, lane=flooded)
        except Saturated:
            refused += 1

    for number in range(2 * (fetch.queue_size + fetch.workers)):
        nursery.start_soon(flood, hanging[number % len(hanging)].host)
    await trio.testing.wait_all_tasks_blocked()
    assert refused > 0, "the lane must be full"
    origin = Origin("https", healthy.host, 443)
    for lane in LANES:
        if lane != flooded:
            assert (await gateway.get(origin, "/", max_bytes=100, lane=lane)).body == b"here"


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured(
    status: int,
    world: World,
    site: Site,
    gateway: Gateway,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches a service that goes on asking a host which asked it not to."""
    site.pages["/"] = Response(status, b"later", (("Retry-After", "20"),))
    assert (await get(gateway)).status == status
    for _ in range(3):
        with pytest.raises(AskedToWait):
            await get(gateway)
    assert len(site.requests) == 1

    site.pages["/"] = Response(200, b"here")
    await trio.sleep(20)
    assert (await get(gateway)).body == b"here"


@pytest.mark.parametrize("fault", ["limited", "refuses", "hangs"])
async def test_where_a_host_redirects_to_is_not_that_host(
    fault: str,
    world: World,
    site: Site,
    gateway: Gateway,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches a dead server that all of a bridge's accounts are left alone for."""
    other = Site("other.example")
    world.network.add(other)
    match fault:
        case "limited":
            other.fault = faults.answers(429, b"later", ("Retry-After", "200"))
        case "refuses":
            other.refuses = -1
        case "hangs":
            other.fault = faults.hang
    site.pages["/away"] = Response(302, b"", (("Location", f"{other.url}/"),))
    site.pages["/"] = Response(200, b"here")
    for _ in range(FAILURES_TO_OPEN + 1):
        with suppress(ConnectFailed, TimedOut):
            answer = await gateway.get(HOST, "/away", max_bytes=100)
            assert (answer.status, answer.is_of_another_host) == (429, True)
    assert (await get(gateway)).body == b"here"


async def test_a_pds_on_the_directorys_host_holds_up_no_question_of_the_operator(
    site: Site, gateway: Gateway, world: World
) -> None:
    """Catches a document whose PDS is the directory, and a 429 there that stops all look-ups."""
    directory = Site(site.host)
    directory.pages["/"] = Response(200, b"a document")
    world.directory_network.add(directory)
    site.fault = faults.answers(429, b"later", ("Retry-After", "200"))
    assert (await get(gateway)).status == 429
    with pytest.raises(AskedToWait):
        await get(gateway)
    answer = await gateway.get(HOST, "/", max_bytes=100, lane="operator")
    assert answer.body == b"a document"


async def test_retry_after_outlasts_an_answer_that_was_under_way(
    site: Site, gateway: Gateway, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a pause that ends with the next answer to what was asked before it."""
    gate, seen = trio.Event(), trio.Event()
    site.pages["/"] = Response(200, b"here")
    site.faults = [
        faults.gated(gate, seen=seen),
        faults.answers(429, b"later", ("Retry-After", "60")),
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(get, gateway)
        await seen.wait()
        assert (await get(gateway)).status == 429
        gate.set()
    with pytest.raises(AskedToWait):
        await get(gateway)
    assert len(site.requests) == 2


async def test_a_503_without_retry_after_holds_nobody_up(
    site: Site, gateway: Gateway, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a circuit that takes any answer for a failure of the host."""
    site.pages["/"] = Response(503, b"oops")
    for _ in range(FAILURES_TO_OPEN * 2):
        assert (await get(gateway)).status == 503
    assert len(site.requests) == FAILURES_TO_OPEN * 2


async def test_a_cancelled_probe_leaves_the_next_one_free(
    world: World, site: Site, gateway: Gateway, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a host that is left alone for ever because its probe's client went away."""
    site.refuses = -1
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(ConnectFailed):
            await get(gateway)
    site.refuses = 0
    site.answers_connections = False
    await trio.sleep(OPEN_SECONDS)
    with trio.move_on_after(1) as scope:
        await get(gateway)
    assert scope.cancelled_caught
    site.answers_connections = True
    assert (await get(gateway)).body == b"here"

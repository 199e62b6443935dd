"""The matrix of destinations once more, through everything above the guard, over both clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from proxy.egress.endpoint import Origin, parse_url
from proxy.egress.errors import EgressError, Forbidden
from proxy.egress.gateway import make_client
from proxy.egress.guarded_get import RequestRules, guarded_get
from tests.egress.destinations import BY_ADDRESS, DESTINATIONS, PUBLIC, Destination, Trap
from tests.fakes.faults import redirects
from tests.fakes.network import FakeNetwork, Site

pytestmark = pytest.mark.slow

RULES = RequestRules(max_bytes=1000, max_redirects=3, allow_http=False, allow_private_hosts=False)


@pytest.fixture
def trap() -> Iterator[Trap]:
    with Trap() as trap:
        yield trap


@pytest.mark.parametrize("destination", DESTINATIONS, ids=lambda destination: destination.id)
async def test_no_client_sends_a_packet_to_a_refused_destination(
    destination: Destination, client_name: str, trap: Trap
) -> None:
    """Catches a client that opens a connection of its own, or reads the URL in its own way."""
    client = make_client(client_name, trap.network(destination))

    async def read_and_get() -> None:
        origin, target = parse_url(destination.url_at(trap.port), allow_http=False)
        await guarded_get(client, client, origin, target, RULES)

    with pytest.raises(Forbidden):
        await read_and_get()
    assert trap.arrivals() == 0


@pytest.mark.parametrize(
    "destination",
    BY_ADDRESS,
    ids=lambda destination: destination.id,
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_client_needs_the_url_to_be_read_strictly(
    destination: Destination, scheme: str, client_name: str, trap: Trap
) -> None:
    """Catches a guard that stands at the URL alone, and not at the connection."""
    client = make_client(client_name, trap.network(destination))
    origin = Origin(scheme, destination.host or "", trap.port)
    with pytest.raises(EgressError):
        await guarded_get(client, client, origin, "/", RULES)
    assert trap.arrivals() == 0


@pytest.mark.parametrize("destination", BY_ADDRESS, ids=lambda destination: destination.id)
async def test_no_redirect_leads_a_client_to_a_refused_destination(
    destination: Destination, client_name: str, trap: Trap, nursery: trio.Nursery
) -> None:
    """Catches a guard that looks at the first hop only, and a redirect that inherits its trust."""
    start = Site("start.example")
    start.fault = redirects(destination.url_at(trap.port))
    world = FakeNetwork(nursery)
    world.add(start)
    first = make_client(client_name, world)
    others = make_client(client_name, trap.network(destination))
    with pytest.raises(Forbidden):
        await guarded_get(first, others, Origin("https", "start.example", 443), "/", RULES)
    assert trap.arrivals() == 0


async def test_the_trap_hears_a_client_that_is_let_through(client_name: str, trap: Trap) -> None:
    """Catches a trap that hears nothing: then every test above would pass."""
    public = Destination("public", "http://pds.example:{port}/", "pds.example", (PUBLIC,), "")
    client = make_client(client_name, trap.network(public))
    origin, target = parse_url(public.url_at(trap.port), allow_http=True)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guarded_get, client, client, origin, target, RULES)
            while not trap.arrivals():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


def test_the_matrix_is_as_large_as_it_was() -> None:
    """Catches a matrix that lost its rows: every test above would pass over nothing."""
    assert len(DESTINATIONS) >= 300
    assert len(BY_ADDRESS) >= 100

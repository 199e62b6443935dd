"""From handle to DID: DNS first, then the domain, and nothing that the DID does not confirm."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounts.did_documents import DidResolver
from proxy.accounts.handles import HandleResolver, dids_in
from proxy.egress.errors import ConnectFailed, EgressError, Saturated, TimedOut
from proxy.egress.gateway import Gateway, fetch_channels_of
from proxy.errors import (
    AmbiguousHandle,
    Busy,
    HandleNotFound,
    HandleUnresolvable,
    ImageProxyError,
    UpstreamTimeout,
)
from proxy.model.identifiers import Did, Handle
from tests.fakes import faults
from tests.fakes.network import Fault, Response, Site
from tests.fakes.sites import document, new_plc_did, pds_service
from tests.fakes.world import World

ALICE = Handle("alice.community")
WELL_KNOWN = "/.well-known/atproto-did"
DID, OTHER = new_plc_did(), new_plc_did()
TTL, STALE_TTL, NEGATIVE_TTL = 3600.0, 86400.0, 60.0


@given(st.lists(st.binary() | st.binary().map(lambda text: b"did=" + text)))
def test_any_records_can_be_read(records: list[bytes]) -> None:
    """Catches a reader that trusts what strangers publish."""
    assert dids_in(records) == frozenset()


@pytest.mark.parametrize(
    ("records", "dids"),
    [
        ([f"did={DID}"], {DID}),
        ([f"did={DID}", f"did={DID}"], {DID}),
        ([f"did={DID}", f"did={OTHER}"], {DID, OTHER}),
        (["v=spf1 -all", f"did={DID}"], {DID}),
        (["did=did:web:alice.community"], {"did:web:alice.community"}),
        ([str(DID), f"DID={DID}", f" did={DID}", f"did= {DID}", f"did={DID} ", "did="], set()),
        (["did=did:key:zQ3shZc2QzApp2oymGvQbzP8eKheVshBHbU4ZYjeXqwSKEn6N"], set()),
    ],
)
def test_a_txt_value_is_a_did_or_is_ignored(records: list[str], dids: set[str]) -> None:
    """Catches values that are guessed at, and a domain's other records taken for broken ones."""
    assert dids_in(record.encode() for record in records) == dids


class Names:
    """TXT records without a server.

    Attributes:
        records: by name.
        error: raised instead.
        asked: in order.
    """

    def __init__(self) -> None:
        self.records: dict[str, list[bytes]] = {}
        self.error: EgressError | None = None
        self.asked: list[str] = []

    def name(self, handle: str, *dids: str) -> None:
        self.records[f"_atproto.{handle}"] = [f"did={did}".encode() for did in dids]

    async def lookup(self, name: str) -> list[bytes]:
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return self.records.get(name, [])


@pytest.fixture
def names() -> Names:
    return Names()


def claims(world: World, did: Did, *handles: str) -> None:
    """Have the directory say that an account calls itself by these handles."""
    world.plc.documents[did] = document(
        did, pds_service(world.pds.url), alsoKnownAs=[f"at://{handle}" for handle in handles]
    )


def domain(world: World, handle: str, body: bytes | str, status: int = 200) -> Site:
    """A web server that names a DID."""
    site = Site(handle)
    body = body.encode() if isinstance(body, str) else body
    site.pages[WELL_KNOWN] = Response(status, body, (("Content-Type", "text/plain"),))
    world.network.add(site)
    return site


@asynccontextmanager
async def resolving(world: World, names: Names) -> AsyncIterator[HandleResolver]:
    config = world.config(
        identity={"ttl": TTL, "stale_ttl": STALE_TTL, "negative_ttl": NEGATIVE_TTL}
    )
    gateway = Gateway(
        config.fetch, world.network, world.directory_network, fetch_channels_of(config.fetch)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        documents = DidResolver(config, gateway, nursery)
        yield HandleResolver(config, gateway, nursery, documents, names.lookup)
        nursery.cancel_scope.cancel()
    assert world.open_wires == 0


async def failure(resolver: HandleResolver, handle: Handle = ALICE) -> type[ImageProxyError]:
    with pytest.raises(ImageProxyError) as caught:
        await resolver.resolve(handle)
    return type(caught.value)


async def test_dns_alone_is_asked_where_it_has_the_answer(world: World, names: Names) -> None:
    """Catches a request to a domain whose owner has never had a web server."""
    names.name(ALICE, DID)
    claims(world, DID, ALICE)
    async with resolving(world, names) as resolver:
        assert await resolver.resolve(ALICE) == DID
    assert names.asked == ["_atproto.alice.community"]
    assert world.network.asked == []


@pytest.mark.parametrize("body", [DID, f"{DID}\n", f" \r\n{DID}\r\n"])
async def test_the_domain_is_asked_where_dns_has_none(
    world: World, names: Names, body: str
) -> None:
    """Catches a service that leaves out everybody at a large host."""
    site = domain(world, ALICE, body)
    claims(world, DID, ALICE)
    async with resolving(world, names) as resolver:
        assert await resolver.resolve(ALICE) == DID
    assert [request.target for request in site.requests] == [WELL_KNOWN]
    assert world.network.asked == [(ALICE, 443)]


async def test_dns_wins_over_a_domain_that_names_another(world: World, names: Names) -> None:
    """Catches a web server's lodger who takes the handle of the domain's owner."""
    names.name(ALICE, DID)
    domain(world, ALICE, OTHER)
    claims(world, DID, ALICE)
    claims(world, OTHER, ALICE)
    async with resolving(world, names) as resolver:
        assert await resolver.resolve(ALICE) == DID


@pytest.mark.parametrize(
    ("claimed", "named", "confirmed"),
    [
        ([ALICE], [DID], ALICE),
        ([ALICE], [OTHER], None),
        ([ALICE], [], None),
        ([], [DID], None),
    ],
    ids=["both", "another's", "unconfirmed", "unclaimed"],
)
async def test_the_handle_of_an_account_is_one_that_leads_back_to_it(
    claimed: list[str], named: list[str], confirmed: Handle | None, world: World, names: Names
) -> None:
    """Catches an account that is shown by a name that it gave itself."""
    names.name(ALICE, *named)
    claims(world, DID, *claimed)
    claims(world, OTHER, ALICE)
    async with resolving(world, names) as resolver:
        assert await resolver.confirmed(DID) == confirmed
        assert await resolver.confirmed(new_plc_did()) is None


async def test_two_dids_in_dns_count_as_none(world: World, names: Names) -> None:
    """Catches the first of two, which may be the one that was meant to go."""
    names.name(ALICE, DID, OTHER)
    domain(world, ALICE, DID)
    claims(world, DID, ALICE)
    claims(world, OTHER, ALICE)
    async with resolving(world, names) as resolver:
        assert await failure(resolver) is AmbiguousHandle
        assert await failure(resolver) is AmbiguousHandle
    assert len(names.asked) == 1
    assert world.network.asked == []


@pytest.mark.parametrize("claimed", [[], ["bob.community"], ["bob.community", ALICE]])
@pytest.mark.parametrize("by_dns", [True, False])
async def test_a_handle_that_its_did_does_not_name_is_not_found(
    world: World, names: Names, claimed: list[str], by_dns: bool
) -> None:
    """Catches anybody's domain that passes for an alias of somebody else's account."""
    if by_dns:
        names.name(ALICE, DID)
    else:
        domain(world, ALICE, DID)
    claims(world, DID, *claimed)
    async with resolving(world, names) as resolver:
        assert await failure(resolver) is HandleNotFound


async def test_a_did_that_does_not_exist_confirms_nothing(world: World, names: Names) -> None:
    names.name(ALICE, DID)
    async with resolving(world, names) as resolver:
        assert await failure(resolver) is HandleNotFound


async def test_a_handle_that_is_new_to_its_account_is_asked_for_anew(
    world: World, names: Names, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a changed handle that is nobody's for as long as the old document is remembered."""
    claims(world, DID, "bob.community")
    names.name("bob.community", DID)
    names.name(ALICE, DID)
    async with resolving(world, names) as resolver:
        assert await resolver.resolve(Handle("bob.community")) == DID
        claims(world, DID, ALICE)
        await trio.sleep(61)
        assert await resolver.resolve(ALICE) == DID


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.answers(404), HandleNotFound),
        (faults.answers(403), HandleNotFound),
        (faults.answers(200, b"<!doctype html>"), HandleNotFound),
        (faults.answers(200, b"x" * 5000), HandleNotFound),
        (faults.answers(200), HandleNotFound),
        (faults.answers(200, f"did={DID}".encode()), HandleNotFound),
        (faults.answers(200, b"\xff\xfe"), HandleNotFound),
        (faults.answers(500), HandleUnresolvable),
        (faults.answers(429), HandleUnresolvable),
        (faults.reset, HandleUnresolvable),
        (faults.hang, UpstreamTimeout),
        (faults.redirects("https://127.0.0.1/"), HandleUnresolvable),
    ],
)
async def test_a_domain_that_says_nothing_is_told_from_one_that_fails(
    client_world: World,
    names: Names,
    fault: Fault,
    error: type[ImageProxyError],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches a page for every path that is read as a DID, and a failure kept as an answer."""
    world = client_world
    domain(world, ALICE, DID).fault = fault
    claims(world, DID, ALICE)
    async with resolving(world, names) as resolver:
        assert await failure(resolver) is error


async def test_a_domain_that_may_not_be_connected_to_looks_like_one_that_is_not_there(
    world: World, names: Names
) -> None:
    """Catches a port scanner that is run by handles."""
    world.network.forbids.add("inside.community")
    async with resolving(world, names) as resolver:
        assert await failure(resolver, Handle("inside.community")) is HandleUnresolvable
        assert await failure(resolver, Handle("nowhere.community")) is HandleUnresolvable


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        (ConnectFailed("SERVFAIL"), HandleUnresolvable),
        (TimedOut("silent"), UpstreamTimeout),
        (Saturated("full"), Busy),
    ],
)
async def test_a_failure_of_dns_does_not_mean_that_there_is_no_record(
    world: World, names: Names, failing: EgressError, error: type[ImageProxyError]
) -> None:
    """Catches a 404, cached by browsers, for an account that is there."""
    domain(world, ALICE, b"", status=404)
    names.error = failing
    claims(world, DID, ALICE)
    async with resolving(world, names) as resolver:
        assert await failure(resolver) is error
        names.error = None
        names.name(ALICE, DID)
        assert await resolver.resolve(ALICE) == DID


async def test_the_domain_answers_while_dns_fails(world: World, names: Names) -> None:
    """Catches an outage of DNS that takes along who does not depend on it."""
    domain(world, ALICE, DID)
    names.error = ConnectFailed("SERVFAIL")
    claims(world, DID, ALICE)
    async with resolving(world, names) as resolver:
        assert await resolver.resolve(ALICE) == DID


async def test_requests_at_once_share_one_question(world: World, names: Names) -> None:
    """Catches a question of DNS for each picture of a page."""
    names.name(ALICE, DID)
    claims(world, DID, ALICE)
    async with resolving(world, names) as resolver, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(resolver.resolve, ALICE)
    assert len(names.asked) == 1
    assert len(world.plc.requests) == 1


async def test_an_answer_serves_for_its_time_and_longer_while_dns_fails(
    world: World, names: Names, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches avatars that go with the DNS server."""
    names.name(ALICE, DID)
    claims(world, DID, ALICE)
    claims(world, OTHER, ALICE)
    async with resolving(world, names) as resolver:
        assert await resolver.resolve(ALICE) == DID
        names.name(ALICE, OTHER)
        await trio.sleep(TTL - 1)
        assert await resolver.resolve(ALICE) == DID
        await trio.sleep(2)
        assert await resolver.resolve(ALICE) == OTHER
        names.error = ConnectFailed("SERVFAIL")
        await trio.sleep(TTL + 1)
        assert await resolver.resolve(ALICE) == OTHER
        await trio.sleep(STALE_TTL)
        assert await failure(resolver) is HandleUnresolvable


async def test_a_missing_record_is_remembered_for_a_while(
    world: World, names: Names, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a dead name that is a load on a domain, and one that stays dead."""
    site = domain(world, ALICE, b"", status=404)
    async with resolving(world, names) as resolver:
        for _ in range(3):
            assert await failure(resolver) is HandleNotFound
        assert len(site.requests) == 1
        names.name(ALICE, DID)
        claims(world, DID, ALICE)
        await trio.sleep(NEGATIVE_TTL + 1)
        assert await resolver.resolve(ALICE) == DID

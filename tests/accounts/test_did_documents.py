"""From DID to PDS: reading documents, remembering answers, and asking no more than needed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounts.did_documents import (
    MAX_DOCUMENT,
    MAX_NAMES,
    MIGRATION_AGE,
    DidResolver,
    handle_of,
    pds_of,
)
from proxy.accounts.renewals import BURST, SHARE
from proxy.egress.gateway import Gateway, fetch_channels_of
from proxy.egress.guard import GuardedNetwork
from proxy.egress.network import Network
from proxy.errors import (
    Busy,
    DidNotFound,
    DidUnresolvable,
    ForbiddenDomain,
    ImageProxyError,
    InvalidHandle,
    NoPdsEndpoint,
    RateLimited,
    UpstreamTimeout,
)
from proxy.model.identifiers import Did
from tests.fakes import faults
from tests.fakes.network import FakeNetwork, Fault, Site
from tests.fakes.sites import FakePlc, FakeWeb, document, new_plc_did, pds_service
from tests.fakes.world import World

DID = Did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
WEB = Did("did:web:someone.example")
PDS = "https://pds.example"

TTL, STALE_TTL, NEGATIVE_TTL = 3600.0, 86400.0, 60.0


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


# Reading a document.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
SERVICES = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON_VALUES | st.sampled_from(["#atproto_pds", f"{DID}#atproto_pds"]),
        "type": JSON_VALUES | st.just("AtprotoPersonalDataServer"),
        "serviceEndpoint": JSON_VALUES | st.just(PDS),
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON_VALUES | st.just(DID),
        "service": JSON_VALUES | st.lists(SERVICES | JSON_VALUES),
        "alsoKnownAs": JSON_VALUES | st.lists(st.just("at://a.com") | JSON_VALUES),
    },
).map(encoded)


@given(st.binary() | JSON_VALUES.map(encoded) | DOCUMENTS)
def test_a_document_of_any_shape_is_read_or_is_a_typed_error(
    data: bytes,
) -> None:
    """Catches: a reader that trusts the shape of a document raises what nobody expects."""
    with suppress(DidUnresolvable, NoPdsEndpoint):
        assert isinstance(pds_of(DID, data), str)
    with suppress(DidUnresolvable):
        assert isinstance(handle_of(DID, data), str | None)


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b'{"id": "\xff"}', b"\xff\xfe{\x00}\x00"],
    ids=["deep list", "deep object", "long number", "not UTF-8", "UTF-16"],
)
def test_a_document_that_breaks_the_json_reader_is_a_typed_error(data: bytes) -> None:
    """Catches: a document that breaks the JSON reader is a defect."""
    with pytest.raises(DidUnresolvable):
        pds_of(DID, data)


OTHER = {"id": "#bsky_fg", "type": "BskyFeedGenerator", "serviceEndpoint": "https://f.example"}


@pytest.mark.parametrize(
    "services",
    [
        [pds_service(PDS)],
        [pds_service(PDS, id=f"{DID}#atproto_pds")],
        [OTHER, pds_service(PDS)],
        [pds_service(PDS), pds_service("https://second.example")],
        ["nonsense", None, 7, {}, [], pds_service(PDS)],
        [pds_service(PDS, more={"of": "it"})],
    ],
    ids=["relative id", "absolute id", "not the first service", "two", "among garbage", "extra"],
)
def test_every_spelling_of_a_pds_service_is_found(services: list[Any]) -> None:
    """Catches: a reader that knows one spelling of a PDS misses it."""
    assert pds_of(DID, encoded(document(DID, *services))) == PDS


@pytest.mark.parametrize(
    "services",
    [
        [],
        [OTHER],
        [pds_service(PDS, id="#other")],
        [pds_service(PDS, id="atproto_pds")],
        [pds_service(PDS, id="did:plc:aaaaaaaaaaaaaaaaaaaaaaaa#atproto_pds")],
        [pds_service(PDS) | {"type": "Other"}],
        [pds_service(PDS) | {"type": ["Other"]}],
        [pds_service(PDS) | {"type": {"AtprotoPersonalDataServer": 1}}],
        [pds_service([PDS])],
        [pds_service({"uri": PDS})],
        [pds_service(None)],
        [pds_service("")],
        ["#atproto_pds"],
    ],
    ids=[
        "none",
        "another",
        "wrong id",
        "id without a hash",
        "id of another DID",
        "wrong type",
        "wrong types",
        "type that is an object",
        "list of endpoints",
        "endpoint that is an object",
        "endpoint that is null",
        "empty endpoint",
        "service that is a string",
    ],
)
def test_a_service_is_a_pds_by_its_type_and_its_id(services: list[Any]) -> None:
    """Catches: a reader that looks at the type or the id alone."""
    with pytest.raises(NoPdsEndpoint):
        pds_of(DID, encoded(document(DID, *services)))


@pytest.mark.parametrize(
    "types", [["AtprotoPersonalDataServer"], ["Other", 7, "AtprotoPersonalDataServer"]]
)
def test_a_service_may_have_several_types(types: list[Any]) -> None:
    """Catches a reader that knows a type as a string alone (DID Core, section 5.4)."""
    assert pds_of(DID, encoded(document(DID, pds_service(PDS) | {"type": types}))) == PDS


@pytest.mark.parametrize("services", [None, {}, "x", 7, {"0": pds_service(PDS)}])
def test_services_that_are_not_a_list_are_a_typed_error(services: Any) -> None:
    """Catches: services that are no list are a defect."""
    with pytest.raises(NoPdsEndpoint):
        pds_of(DID, encoded({"id": DID, "service": services}))


@pytest.mark.parametrize("id", ["did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", DID.upper(), None, [DID], ""])
def test_a_document_of_another_did_is_refused(id: Any) -> None:
    """Catches: a document of another DID gives away its owner."""
    with pytest.raises(DidUnresolvable):
        pds_of(DID, encoded(document(id, pds_service(PDS))))


@pytest.mark.parametrize(
    ("names", "handle"),
    [
        (["at://alice.community"], "alice.community"),
        (["at://Alice.Community"], "alice.community"),
        (["https://alice.community", "at://", "at://a", 7, None, "at://b.com/x", "at://c.com"],
         "c.com"),
        (["at://first.com", "at://second.com"], "first.com"),
        (["at://alice.test"], "alice.test"),
        (["alice.community"], None),
        ([], None),
        (None, None),
        ("at://alice.community", None),
        ({"at://alice.community": 1}, None),
    ],
)  # fmt: skip
def test_the_first_valid_handle_of_a_document_is_the_accounts(
    names: Any, handle: str | None
) -> None:
    """Catches a second name that is taken for the account's, and a reader of another shape."""
    assert handle_of(DID, encoded(document(DID, alsoKnownAs=names))) == handle


def test_only_the_first_names_of_a_document_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a document of 16 KB with 1,800 names that are no handles: 2 ms instead of 0.1."""
    tried: list[str] = []

    def refuse(name: str, *, own_names: object) -> None:
        tried.append(name)
        raise InvalidHandle(name)

    monkeypatch.setattr("proxy.accounts.did_documents.parse_handle", refuse)
    assert handle_of(DID, encoded(document(DID, alsoKnownAs=["at://-"] * 1800))) is None
    assert len(tried) == MAX_NAMES


# Asking for it.


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def resolving(
    world: World, clock: Clock | None = None, *, networks: tuple[Network, Network] | None = None
) -> AsyncIterator[DidResolver]:
    config = world.config(
        identity={"ttl": TTL, "stale_ttl": STALE_TTL, "negative_ttl": NEGATIVE_TTL}
    )
    gateway = Gateway(
        config.fetch,
        *(networks or (world.network, world.directory_network)),
        channels=fetch_channels_of(config.fetch),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        yield DidResolver(config, gateway, nursery, clock or trio.current_time)
        nursery.cancel_scope.cancel()
    assert world.open_wires == 0


async def failure(resolver: DidResolver, did: Did) -> ImageProxyError:
    with pytest.raises(ImageProxyError) as caught:
        await resolver.resolve(did)
    return caught.value


async def test_each_did_is_asked_of_its_host_and_path(client_world: World) -> None:
    """Catches: a DID asked of the wrong host or path."""
    world = client_world
    did = world.make_account()
    async with resolving(world) as resolver:
        assert await resolver.resolve(did) == world.pds.url
    assert [request.target for request in world.plc.requests] == [f"/{did}"]
    assert world.directory_network.asked == [("plc.example", 443)]
    assert world.network.asked == []


async def test_a_directory_below_a_path_is_asked_below_it(world: World) -> None:
    """Catches: a directory below a path is asked at its root."""
    plc = FakePlc()
    plc.pages[f"/mirror/{DID}"] = plc.answer_of(document(DID, pds_service(PDS)))
    world.directory_network.add(plc)
    world.plc = plc
    config = world.config(identity={"plc_url": f"{plc.url}/mirror/"})
    gateway = Gateway(
        config.fetch, world.network, world.directory_network, fetch_channels_of(config.fetch)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        assert await DidResolver(config, gateway, nursery).resolve(DID) == PDS
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("did", "asked"),
    [
        (Did("did:web:someone.example"), ("someone.example", 443)),
        (Did("did:web:localhost"), ("localhost", 80)),
        (Did("did:web:localhost%3A2583"), ("localhost", 2583)),
    ],
)
async def test_a_did_web_is_asked_of_its_own_host_and_port(
    client_world: World, did: Did, asked: tuple[str, int]
) -> None:
    """Catches: a DID web is asked of the directory or of the wrong port."""
    world = client_world
    web = FakeWeb(did)
    web.document = document(did, pds_service(PDS))
    world.network.add(web)
    config = world.config(fetch={"allow_private_hosts": True})
    gateway = Gateway(
        config.fetch, world.network, world.directory_network, fetch_channels_of(config.fetch)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        assert await DidResolver(config, gateway, nursery).resolve(did) == PDS
        nursery.cancel_scope.cancel()
    assert world.network.asked == [asked]
    assert [request.target for request in web.requests] == ["/.well-known/did.json"]
    assert world.plc.requests == []


@pytest.mark.parametrize("did", [Did("did:web:localhost"), Did("did:web:localhost%3A2583")])
@pytest.mark.parametrize("allow_http", [False, True])
async def test_a_did_web_of_localhost_does_not_reach_this_machine(
    world: World, did: Did, allow_http: bool
) -> None:
    """Catches: a DID web of localhost reaches this machine."""
    web = FakeWeb(did)
    web.document = document(did, pds_service(PDS))
    world.network.add(web)
    config = world.config(fetch={"allow_http": allow_http})
    gateway = Gateway(
        config.fetch, world.network, world.directory_network, fetch_channels_of(config.fetch)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        with pytest.raises(ForbiddenDomain):
            await DidResolver(config, gateway, nursery).resolve(did)
        nursery.cancel_scope.cancel()
    assert world.network.asked == []


@pytest.mark.parametrize("did", [DID, WEB])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.answers(404), DidNotFound),
        (faults.answers(410), DidNotFound),
        (faults.answers(400), DidUnresolvable),
        (faults.answers(500), DidUnresolvable),
        (faults.answers(429), RateLimited),
        (faults.answers(200, b"<html>"), DidUnresolvable),
        (faults.answers(200), DidUnresolvable),
        (
            faults.answers(200, encoded(document(DID, pds_service(PDS))) + b" " * MAX_DOCUMENT),
            DidUnresolvable,
        ),
        (faults.answers(200, then=faults.endless_body), DidUnresolvable),
        (faults.truncated, DidUnresolvable),
        (faults.reset, DidUnresolvable),
        (faults.gzipped, DidNotFound),  # a 404 in any encoding
        (faults.hang, UpstreamTimeout),
        (faults.hang_in_body, UpstreamTimeout),
        (faults.redirects("/same"), DidUnresolvable),
        (faults.redirects("https://127.0.0.1/"), ForbiddenDomain),
    ],
)
async def test_a_directory_or_domain_that_misbehaves_gives_its_error_of_the_table(
    client_world: World,
    did: Did,
    fault: Fault,
    error: type[ImageProxyError],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a directory or domain that misbehaves comes out as the wrong error."""
    world = client_world
    web = FakeWeb(WEB)
    world.network.add(web)
    site: Site = web if did == WEB else world.plc
    site.fault = fault
    async with resolving(world) as resolver:
        caught = await failure(resolver, did)
    # A redirect from the directory leaves its network, where nobody is.
    assert type(caught) is error


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_source_that_is_not_there_is_a_failure_and_no_unknown_did(
    world: World, refuses: bool
) -> None:
    """Catches: a source that is not there is an unknown DID."""
    world.plc.refuses = -1
    web = FakeWeb(WEB)
    web.refuses = -1
    if refuses:
        world.network.add(web)
    async with resolving(world) as resolver:
        for did in (DID, WEB):
            assert type(await failure(resolver, did)) is DidUnresolvable


async def test_a_did_web_that_the_guard_refuses_looks_unresolvable(
    world: World,
) -> None:
    """Catches: a DID web that the guard refuses looks like another row of the table."""
    world.network.forbids.add("someone.example")
    async with resolving(world) as resolver:
        error = await failure(resolver, WEB)
    assert type(error) is ForbiddenDomain
    assert (error.status, error.message) == (DidUnresolvable.status, DidUnresolvable.message)


# Remembering.


async def test_an_answer_is_remembered_for_its_time(client_world: World, clock: Clock) -> None:
    """Catches: an answer is asked for every time or remembered forever."""
    world = client_world
    did = world.make_account()
    async with resolving(world, clock) as resolver:
        await resolver.resolve(did)
        clock.now += TTL - 1
        await resolver.resolve(did)
        assert len(world.plc.requests) == 1
        clock.now += 1
        world.plc.documents[did] = document(did, pds_service("https://new.example"))
        assert await resolver.resolve(did) == "https://new.example"
        assert len(world.plc.requests) == 2


async def test_max_age_asks_again_only_for_older_answers(world: World, clock: Clock) -> None:
    """Catches: max age is ignored or asks for what is young enough."""
    did = world.make_account()
    async with resolving(world, clock) as resolver:
        await resolver.resolve(did)
        clock.now += 60
        await resolver.resolve(did, max_age=60)
        assert len(world.plc.requests) == 1
        clock.now += 1
        await resolver.resolve(did, max_age=60)
        assert len(world.plc.requests) == 2
        # What that brought is young again.
        await resolver.resolve(did, max_age=60)
        assert len(world.plc.requests) == 2


async def test_an_answer_that_was_forgotten_is_asked_for_again(world: World, clock: Clock) -> None:
    """Catches: an answer that was forgotten is still used."""
    did = world.make_account()
    async with resolving(world, clock) as resolver:
        await resolver.resolve(did)
        resolver.forget(did)
        resolver.forget(did)
        await resolver.resolve(did)
        assert len(world.plc.requests) == 2


@pytest.mark.parametrize(
    "fault", [faults.answers(500), faults.reset, faults.hang, faults.answers(200, b"<html>")]
)
async def test_known_accounts_outlive_a_directory_that_is_down(
    client_world: World, clock: Clock, fault: Fault, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a directory that is down takes every known account with it."""
    world = client_world
    did = world.make_account()
    async with resolving(world, clock) as resolver:
        await resolver.resolve(did)
        world.plc.fault = fault
        clock.now += STALE_TTL - 1
        assert await resolver.resolve(did) == world.pds.url
        assert await resolver.resolve(did, max_age=0) == world.pds.url
        clock.now += 1
        assert isinstance(await failure(resolver, did), DidUnresolvable | UpstreamTimeout)


async def test_a_directory_that_hangs_holds_up_one_request_of_a_known_account(
    client_world: World, clock: Clock, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a directory that hangs holds up every request of a known account."""
    world = client_world
    did = world.make_account()
    async with resolving(world, clock) as resolver:
        await resolver.resolve(did)
        world.plc.fault = faults.hang
        clock.now += TTL
        assert await resolver.resolve(did) == world.pds.url
        began = trio.current_time()
        clock.now += NEGATIVE_TTL - 1
        assert await resolver.resolve(did) == world.pds.url
        assert trio.current_time() == began
        clock.now += 1
        world.plc.fault = faults.answers(404)
        assert type(await failure(resolver, did)) is DidNotFound


@pytest.mark.parametrize("speaks", [404, 200])
async def test_an_answer_that_there_is_none_overrules_an_older_one(
    world: World, clock: Clock, speaks: int
) -> None:
    """Catches: a stale document overrules the answer that there is none."""
    did = world.make_account()
    async with resolving(world, clock) as resolver:
        await resolver.resolve(did)
        clock.now += TTL
        world.plc.fault = faults.answers(speaks, encoded(document(did)))
        expected = DidNotFound if speaks == 404 else NoPdsEndpoint
        assert type(await failure(resolver, did)) is expected
        # Neither does a failure after that bring the old answer back.
        world.plc.fault = faults.answers(500)
        clock.now += NEGATIVE_TTL
        assert type(await failure(resolver, did)) is DidUnresolvable


async def test_an_unknown_did_is_remembered_for_its_time(world: World, clock: Clock) -> None:
    """Catches: an unknown DID is asked for every time or unknown forever."""
    did = new_plc_did()
    async with resolving(world, clock) as resolver:
        first = await failure(resolver, did)
        clock.now += NEGATIVE_TTL - 1
        second = await failure(resolver, did)
        third = await failure(resolver, did)
        assert type(first) is type(second) is type(third) is DidNotFound
        assert len({id(error) for error in (first, second, third)}) == 3
        assert len(world.plc.requests) == 1
        world.move_account(did, world.pds)
        clock.now += 1
        assert await resolver.resolve(did) == world.pds.url


async def test_accounts_of_one_domain_ask_the_directory_again_within_its_allowance(
    world: World,
) -> None:
    """Catches: a stranger whose PDSes always fail has the directory asked for each of a flood."""
    clock = Clock()
    failing = [new_plc_did() for _ in range(60)]
    for number, did in enumerate(failing):
        pds = f"https://pds{number}.flood.example"
        world.plc.documents[did] = document(did, pds_service(pds))
    other = new_plc_did()
    world.plc.documents[other] = document(other, pds_service("https://pds.dead.example"))
    async with resolving(world, clock) as resolver:
        for did in (*failing, other):
            await resolver.resolve(did)
        asked = len(world.plc.requests)
        clock.now += MIGRATION_AGE + 1
        for did in failing:
            await resolver.resolve(did, max_age=MIGRATION_AGE)
        assert len(world.plc.requests) - asked == BURST * SHARE
        world.plc.documents[other] = document(other, pds_service("https://new.example"))
        assert await resolver.resolve(other, max_age=MIGRATION_AGE) == "https://new.example"
        # First questions, and those after the time of a document, are never among them.
        clock.now += TTL
        await resolver.resolve(failing[-1], max_age=MIGRATION_AGE)
        assert len(world.plc.requests) - asked == BURST * SHARE + 2


async def test_a_failure_of_the_directory_is_not_remembered_as_the_accounts(
    world: World, clock: Clock
) -> None:
    """Catches: a failure of the directory is remembered as one of the account."""
    did = world.make_account()
    world.plc.faults = [faults.answers(500)]
    async with resolving(world, clock) as resolver:
        assert type(await failure(resolver, did)) is DidUnresolvable
        assert await resolver.resolve(did) == world.pds.url


async def test_a_thousand_requests_at_once_ask_one_question(client_world: World) -> None:
    """Catches: a thousand requests at once ask a thousand questions."""
    world = client_world
    did = world.make_account()
    gate = trio.Event()
    world.plc.fault = faults.gated(gate)
    answers: list[str] = []
    async with resolving(world) as resolver, trio.open_nursery() as nursery:

        async def ask() -> None:
            answers.append(await resolver.resolve(did))

        for _ in range(1000):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert answers == [world.pds.url] * 1000
    assert len(world.plc.requests) == 1


async def test_a_full_channel_is_busy_and_no_failure_of_the_account(world: World) -> None:
    """Catches: a full channel is a failure of the account."""
    did = world.make_account()
    gate = trio.Event()
    world.plc.fault = faults.gated(gate)
    config = world.config(fetch={"queue_size": 1, "workers": 1, "per_host": 1})
    gateway = Gateway(
        config.fetch, world.network, world.directory_network, fetch_channels_of(config.fetch)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        resolver = DidResolver(config, gateway, nursery)
        for _ in range(2):
            nursery.start_soon(resolver.resolve, world.make_account())
            await trio.testing.wait_all_tasks_blocked()
        assert type(await failure(resolver, did)) is Busy
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await resolver.resolve(did) == world.pds.url
        nursery.cancel_scope.cancel()


# The operator's own directory, behind real guards.


def guarded(fake: FakeNetwork, addresses: dict[str, str], *, private: bool) -> GuardedNetwork:
    """A guard over ``fake``, whose servers stand at addresses."""

    async def lookup(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return [addresses[host]]

    return GuardedNetwork(allow_private_hosts=private, lookup=lookup, dial=fake.connect)


async def test_the_operators_directory_is_reached_and_its_redirects_are_guarded(
    client_world: World, nursery: trio.Nursery
) -> None:
    """Catches: a guard refuses the operator's directory or trusts its redirects."""
    world = client_world
    inside = FakeNetwork(nursery)
    plc, secret = FakePlc("10.0.0.5", port=80, scheme="http"), Site("10.0.0.6", port=80)
    inside.add(plc, secret)
    addresses = {"plc.example": "10.0.0.5", "secret.example": "10.0.0.6"}
    networks = (
        guarded(inside, addresses, private=False),
        guarded(inside, addresses, private=True),
    )
    world.plc = FakePlc(scheme="http", port=80)  # what the configuration names
    did = new_plc_did()
    plc.documents[did] = document(did, pds_service(PDS))
    async with resolving(world, networks=networks) as resolver:
        assert await resolver.resolve(did) == PDS
        for location in ("http://secret.example/", "http://10.0.0.6/", "//secret.example", "/x"):
            plc.faults = [faults.redirects(location)]
            error = await failure(resolver, new_plc_did())
            assert isinstance(error, ForbiddenDomain)
    assert secret.connections == 0
    assert inside.open_wires == set()

"""The guard at the connection: the packet that leaves is the harm, whatever error comes after.

So every refusal here is proven at a real listener that must stay silent, and every way for the
listener to hear something is proven too.
"""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from proxy.egress import guard
from proxy.egress.addresses import Address
from proxy.egress.endpoint import parse_origin
from proxy.egress.errors import ConnectFailed, Forbidden
from proxy.egress.guard import MAX_ADDRESSES, MAX_ATTEMPTS, MAX_LOOKUPS, GuardedNetwork, Lookup
from tests.egress.destinations import (
    DESTINATIONS,
    PUBLIC,
    PUBLIC_ADDRESSES,
    PUBLIC_IPV6,
    Destination,
    Trap,
)
from tests.fakes.steps import cancelled_at_every_step

WITH_HOST = [destination for destination in DESTINATIONS if destination.host is not None]
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@pytest.fixture
def trap() -> Iterator[Trap]:
    with Trap() as trap:
        yield trap


def resolving_to(*addresses: str) -> Lookup:
    async def lookup(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return addresses

    return lookup


def open_sockets() -> set[str]:
    """The sockets that this process holds. Those of tests before may go at any time."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found.add(os.readlink(descriptor))
    return {each for each in found if each.startswith("socket:")}


class Wire(trio.abc.Stream):
    """A stream around another, which knows whether it was closed."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        self.closed = True
        await self.inner.aclose()


# The matrix: which destinations are refused, and that no packet arrives.


def test_the_matrix_is_as_large_as_it_was() -> None:
    """Catches: a matrix that shrinks still passes."""
    assert len({destination.id for destination in DESTINATIONS}) == len(DESTINATIONS) > 300


@pytest.mark.parametrize("destination", WITH_HOST, ids=lambda destination: destination.id)
async def test_the_guard_alone_lets_no_packet_out(destination: Destination, trap: Trap) -> None:
    """Catches: a guard that leaves the host to the URL reader lets a packet out."""
    assert destination.host is not None
    with pytest.raises(Forbidden):
        await trap.network(destination).connect(destination.host, trap.port)
    assert trap.arrivals() == 0


@pytest.mark.parametrize("destination", DESTINATIONS, ids=lambda destination: destination.id)
async def test_reader_and_guard_together_let_no_packet_out(
    destination: Destination, trap: Trap
) -> None:
    """Catches: reader and guard together let a packet out."""

    async def reach() -> None:
        origin = parse_origin(destination.url_at(trap.port), allow_http=False)
        await trap.network(destination).connect(origin.host, origin.port)

    with pytest.raises(Forbidden):
        await reach()
    assert trap.arrivals() == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.1", "0x7f.1", "2130706433", "0177.0.0.1",
             "017700000001", "0", "localhost"]
)  # fmt: skip
async def test_what_the_system_resolver_makes_of_a_spelling_is_checked(
    host: str, trap: Trap
) -> None:
    """Catches: what the system resolver makes of a spelling goes unchecked."""
    with pytest.raises(Forbidden):
        await GuardedNetwork().connect(host, trap.port)
    assert trap.arrivals() == 0


@pytest.mark.parametrize("addresses", [(a,) for a in LOOPBACK] + [(PUBLIC, a) for a in LOOPBACK])
async def test_a_name_of_loopback_is_not_dialled(addresses: tuple[str, ...], trap: Trap) -> None:
    """Catches: a name that resolves to loopback is dialled."""
    # Nothing is detoured here; the public address stands last in no attempt that is refused.
    network = GuardedNetwork(lookup=resolving_to(*addresses))
    with pytest.raises(Forbidden):
        await network.connect("pds.example", trap.port)
    assert trap.arrivals() == 0


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
async def test_the_trap_hears_what_reaches_it(address: str, trap: Trap) -> None:
    """Catches: the trap stays silent because nothing ever reaches it."""
    by_name = Destination("", "", "pds.example", (address,), "")
    for host in ("pds.example", address):
        stream = await trap.network(by_name).connect(host, trap.port)
        assert trap.arrivals() == 1
        await stream.aclose()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1"])
async def test_allowing_private_hosts_allows_them(host: str, trap: Trap) -> None:
    """Catches: allowing private hosts allows nothing."""
    stream = await GuardedNetwork(allow_private_hosts=True).connect(host, trap.port)
    assert trap.arrivals() == 1
    await stream.aclose()


# Looking up.


async def test_a_connection_goes_to_the_address_that_was_checked(trap: Trap) -> None:
    """Catches: a second look up connects to what was never checked."""
    answers = iter([(PUBLIC,), ("127.0.0.1",)])
    dialled = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return next(answers)

    async def dial(address: str, port: int) -> trio.abc.Stream:
        dialled.append((address, port))
        return await trap.dial(address, port)

    network = GuardedNetwork(lookup=rebinding, dial=dial)
    stream = await network.connect("pds.example", 8443)
    await stream.aclose()
    assert dialled == [(PUBLIC, 8443)]
    assert next(answers) == ("127.0.0.1",)


async def test_dialling_a_checked_address_asks_no_resolver(trap: Trap) -> None:
    """Catches: dialling a checked address asks a resolver again."""

    class Loud(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
            raise AssertionError("looked up again")

        async def getnameinfo(self, *_: object, **__: object) -> tuple[str, str]:
            raise AssertionError("looked up again")

    trio.socket.set_custom_hostname_resolver(Loud())
    network = GuardedNetwork(allow_private_hosts=True, lookup=resolving_to("127.0.0.1"))
    stream = await network.connect("pds.example", trap.port)
    await stream.aclose()
    assert trap.arrivals() == 1


async def test_an_address_literal_is_handed_to_no_resolver(trap: Trap) -> None:
    """Catches: an address literal is handed to a resolver, which may lie."""
    network = GuardedNetwork(lookup=resolving_to("127.0.0.1"), dial=trap.dial)
    stream = await network.connect(PUBLIC, trap.port)
    await stream.aclose()


@pytest.mark.parametrize(
    "failure",
    [
        socket.gaierror(socket.EAI_NONAME, "no such name"),
        OSError("no resolver"),
        UnicodeError("label too long"),
        ValueError("embedded null byte"),
    ],
    ids=repr,
)
async def test_a_failed_look_up_is_a_typed_error(failure: Exception) -> None:
    """Catches: a failed look up escapes as itself."""

    async def lookup(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        raise failure

    with pytest.raises(ConnectFailed) as caught:
        await GuardedNetwork(lookup=lookup).connect("pds.example", 443)
    assert caught.value.__cause__ is failure


async def test_a_name_without_addresses_is_a_typed_error() -> None:
    """Catches: a name without addresses is connected to nothing."""
    with pytest.raises(ConnectFailed):
        await GuardedNetwork(lookup=resolving_to()).connect("pds.example", 443)


@pytest.mark.parametrize("host", ["p\u00e4ds.example", "a" * 64 + ".example", "pds\x00.example"])
async def test_a_host_that_no_resolver_takes_is_a_typed_error(host: str) -> None:
    """Catches: a host no resolver takes escapes as a unicode error."""
    with pytest.raises(ConnectFailed):
        await GuardedNetwork().connect(host, 443)


async def test_the_scope_id_reaches_the_check(monkeypatch: pytest.MonkeyPatch, trap: Trap) -> None:
    """Catches: the scope id is lost between resolver and check."""
    # A global address, so that the scope alone is what refuses it.
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (PUBLIC_IPV6, 443, 0, 2))]
    monkeypatch.setattr(guard, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Forbidden, match="scope id"):
        await GuardedNetwork(dial=trap.dial).connect("pds.example", 443)
    assert trap.arrivals() == 0


async def test_answers_of_both_families_keep_their_order_and_type(
    monkeypatch: pytest.MonkeyPatch, trap: Trap
) -> None:
    """Catches: answers of both families lose their order or type."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (PUBLIC_IPV6, 443, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 443)),
    ]
    asked = []
    dialled = []

    def getaddrinfo(host: bytes, port: int, **kwargs: object) -> object:
        asked.append((host, port, kwargs))
        return found

    async def dial(address: str, port: int) -> trio.abc.Stream:
        dialled.append(address)
        await trio.lowlevel.checkpoint()
        raise OSError("refused")

    monkeypatch.setattr(guard, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectFailed):
        await GuardedNetwork(dial=dial).connect("pds.example", 443)
    assert asked == [(b"pds.example", 443, {"type": socket.SOCK_STREAM})]
    assert dialled == [PUBLIC_IPV6, PUBLIC]


async def test_hanging_look_ups_leave_the_threads_of_the_rest_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: hanging look ups take the threads of the rest of the process."""
    release = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        release.wait()
        return []

    monkeypatch.setattr(guard, "getaddrinfo", getaddrinfo)
    network = GuardedNetwork()
    try:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(network.connect, f"pds{number}.example", 443)
            await trio.testing.wait_all_tasks_blocked()
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            # Cancellation does not wait for the resolver.
            nursery.cancel_scope.cancel()
    finally:
        release.set()


# Connecting.


async def test_a_refused_connection_is_a_typed_error() -> None:
    """Catches: a refused connection escapes as an OS error."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        network = GuardedNetwork(allow_private_hosts=True)
        before = open_sockets()
        with pytest.raises(ConnectFailed) as caught:
            await network.connect("127.0.0.1", port)
        assert isinstance(caught.value.__cause__, OSError)
        assert open_sockets() <= before


async def test_small_writes_are_sent_without_delay(trap: Trap) -> None:
    """Catches: small writes wait for the acknowledgement of the one before."""
    stream = await GuardedNetwork(allow_private_hosts=True).connect("127.0.0.1", trap.port)
    assert isinstance(stream, trio.SocketStream)
    assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await stream.aclose()


class Dialler:
    """A ``dial`` whose addresses answer, refuse or stay silent, as told."""

    def __init__(self, answering: Sequence[str] = (), silent: Sequence[str] = ()) -> None:
        self.answering = answering
        self.silent = silent
        self.dialled: list[str] = []
        self.opened: list[Wire] = []
        self.given_up: list[str] = []

    async def __call__(self, address: str, port: int) -> trio.abc.Stream:
        self.dialled.append(address)
        try:
            if address in self.silent:
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.given_up.append(address)
            raise
        if address not in self.answering:
            raise OSError(f"{address} refused")
        wire = Wire(trio.testing.memory_stream_pair()[0])
        self.opened.append(wire)
        return wire

    @property
    def left_open(self) -> int:
        return sum(not wire.closed for wire in self.opened)


async def test_a_silent_first_address_is_raced_by_the_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a silent first address holds up the second."""
    dial = Dialler(answering=["8.8.4.4"], silent=["8.8.8.8"])
    network = GuardedNetwork(lookup=resolving_to("8.8.8.8", "8.8.4.4", "1.1.1.1"), dial=dial)
    stream = await network.connect("pds.example", 443)
    assert stream is dial.opened[0]
    assert dial.dialled == ["8.8.8.8", "8.8.4.4"]
    assert dial.given_up == ["8.8.8.8"]
    assert dial.left_open == 1


async def test_a_refused_first_address_costs_no_wait(mock_clock: trio.testing.MockClock) -> None:
    """Catches: a refused first address costs the wait."""
    # The clock stands still: an attempt that waited for it would wait forever.
    dial = Dialler(answering=["1.1.1.1"])
    network = GuardedNetwork(lookup=resolving_to("8.8.8.8", "8.8.4.4", "1.1.1.1"), dial=dial)
    assert await network.connect("pds.example", 443) is dial.opened[0]
    assert dial.dialled == ["8.8.8.8", "8.8.4.4", "1.1.1.1"]


async def test_the_loser_of_a_race_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """Catches: the loser of a race stays open."""
    opened: list[Wire] = []
    gate = trio.Event()

    async def dial(address: str, port: int) -> trio.abc.Stream:
        # Both pass the gate in one tick, too late for a cancellation to reach the other.
        if address == "8.8.4.4":
            gate.set()
        else:
            await gate.wait()
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        wire = Wire(trio.testing.memory_stream_pair()[0])
        opened.append(wire)
        return wire

    network = GuardedNetwork(lookup=resolving_to("8.8.8.8", "8.8.4.4"), dial=dial)
    stream = await network.connect("pds.example", 443)
    assert len(opened) == 2
    assert [wire for wire in opened if not wire.closed] == [stream]


async def test_a_name_with_hundreds_of_addresses_gets_a_bounded_number_of_tries() -> None:
    """Catches: a name with hundreds of addresses turns one fetch into a flood."""
    dial = Dialler()
    many = [f"8.8.{n // 250}.{n % 250}" for n in range(600)]
    with pytest.raises(ConnectFailed):
        await GuardedNetwork(lookup=resolving_to(*many), dial=dial).connect("pds.example", 443)
    assert dial.dialled == many[:MAX_ATTEMPTS]


async def test_no_more_addresses_of_a_name_are_looked_at_than_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: a name with thousands of addresses, which are all checked in the event loop."""
    checked: list[Address] = []
    monkeypatch.setattr(guard, "forbidden", checked.append)
    many = [f"8.{n // 62500}.{n // 250 % 250}.{n % 250}" for n in range(4000)]
    dial = Dialler()
    with pytest.raises(ConnectFailed):
        await GuardedNetwork(lookup=resolving_to(*many), dial=dial).connect("pds.example", 443)
    assert [str(address) for address in checked] == many[:MAX_ADDRESSES]
    assert set(dial.dialled) <= set(many[:MAX_ADDRESSES])


async def test_many_addresses_of_one_family_leave_room_for_the_other() -> None:
    """Catches: many addresses of one family crowd out the other."""
    dial = Dialler()
    six = [f"2606:4700::{n}" for n in range(1, 20)]
    lookup = resolving_to(six[0], *six, "8.8.8.8", "8.8.8.8", "8.8.4.4")
    with pytest.raises(ConnectFailed):
        await GuardedNetwork(lookup=lookup, dial=dial).connect("pds.example", 443)
    assert dial.dialled == [six[0], "8.8.8.8", six[1], "8.8.4.4", six[2], six[3]]


async def test_a_defect_while_dialling_closes_the_winner() -> None:
    """Catches: a defect while dialling leaves the winner open."""
    opened: list[Wire] = []

    async def dial(address: str, port: int) -> trio.abc.Stream:
        if address == "8.8.8.8":
            try:
                await trio.sleep_forever()
            finally:
                raise RuntimeError("a defect")
        opened.append(Wire(trio.testing.memory_stream_pair()[0]))
        return opened[0]

    network = GuardedNetwork(lookup=resolving_to("8.8.8.8", "8.8.4.4"), dial=dial)
    with pytest.raises(ExceptionGroup):
        await network.connect("pds.example", 443)
    assert opened[0].closed


@pytest.mark.parametrize("after", [False, True], ids=["before a step", "after a step"])
async def test_a_cancelled_connect_leaves_no_socket(after: bool, trap: Trap) -> None:
    """Catches: a cancelled connect leaves a socket."""
    network = GuardedNetwork(lookup=resolving_to(PUBLIC, PUBLIC_IPV6), dial=trap.dial)
    before = open_sockets()

    async def attempt() -> None:
        await (await network.connect("pds.example", 443)).aclose()

    assert await cancelled_at_every_step(attempt, after=after) >= 4
    assert trap.arrivals() > 1
    assert open_sockets() <= before


@pytest.mark.parametrize("after", [False, True], ids=["before a step", "after a step"])
async def test_a_cancelled_race_leaves_no_stream(
    after: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a cancelled race leaves a stream."""
    dial = Dialler(answering=["1.1.1.1"], silent=["8.8.8.8"])
    lookup = resolving_to("8.8.8.8", "8.8.4.4", "1.1.1.1")
    network = GuardedNetwork(lookup=lookup, dial=dial)
    streams: list[trio.abc.Stream] = []

    async def attempt() -> None:
        streams.append(await network.connect("pds.example", 443))

    assert await cancelled_at_every_step(attempt, after=after) >= 6
    # Only what a caller was given is open, and it was given what opened last.
    assert streams
    assert [wire for wire in dial.opened if not wire.closed] == streams


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@asynccontextmanager
async def server(context: ssl.SSLContext) -> AsyncIterator[Wire]:
    """The client's end of a wire to a TLS server that shakes hands and echoes."""
    client_end, server_end = trio.testing.memory_stream_pair()

    async def serve() -> None:
        stream = trio.SSLStream(server_end, context, server_side=True, https_compatible=True)
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(server_end)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield Wire(client_end)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["pds.example", "93.184.216.34", "2606:2800::1", "a.wild.example"])
async def test_a_good_certificate_passes_under_its_name(
    name: str, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """Catches: a good certificate fails or its name is lost."""
    certificate = authority.issue_cert(
        "pds.example", "93.184.216.34", "2606:2800::1", "*.wild.example"
    )
    names: list[str | None] = []
    context = server_context(certificate)
    context.sni_callback = lambda _object, sni, _context: names.append(sni)
    async with server(context) as wire:
        stream = await GuardedNetwork(ssl_context=trusting).start_tls(wire, name)
        # The server sees the name asked for; an address is no server name (RFC 6066 section 3).
        assert names == [name if name.endswith("example") else None]
        await stream.send_all(b"ping")
        assert await stream.receive_some() == b"ping"
        assert not wire.closed
        await stream.aclose()
        assert wire.closed


def long_ago() -> datetime.datetime:
    return datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def self_signed() -> ssl.SSLContext:
    alone = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with alone.cert_pem.tempfile() as certificate, alone.private_key_pem.tempfile() as key:
        context.load_cert_chain(certificate, key)
    return context


BAD_SERVERS: dict[str, Callable[[trustme.CA], ssl.SSLContext]] = {
    "another name": lambda ca: server_context(ca.issue_cert("other.example")),
    "a name below": lambda ca: server_context(ca.issue_cert("a.pds.example")),
    "a wildcard for the level below": lambda ca: server_context(ca.issue_cert("*.pds.example")),
    "an address": lambda ca: server_context(ca.issue_cert(PUBLIC)),
    "only a common name": lambda ca: server_context(
        ca.issue_cert("other.example", common_name="pds.example")
    ),
    "expired": lambda ca: server_context(
        ca.issue_cert(
            "pds.example", not_before=long_ago(), not_after=long_ago() + datetime.timedelta(days=1)
        )
    ),
    "another authority": lambda _: server_context(trustme.CA().issue_cert("pds.example")),
    "self-signed": lambda _: self_signed(),
}


@pytest.mark.parametrize("what", BAD_SERVERS)
async def test_a_bad_certificate_is_refused_and_its_stream_closed(
    what: str, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """Catches: a bad certificate is taken or its stream left open."""
    async with server(BAD_SERVERS[what](authority)) as wire:
        with pytest.raises(ConnectFailed, match="certificate verify failed"):
            await GuardedNetwork(ssl_context=trusting).start_tls(wire, "pds.example")
        assert wire.closed


async def test_a_certificate_for_the_name_does_not_serve_the_address(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """Catches: a certificate for the name serves the address."""
    async with server(server_context(authority.issue_cert("pds.example"))) as wire:
        with pytest.raises(ConnectFailed):
            await GuardedNetwork(ssl_context=trusting).start_tls(wire, PUBLIC)
        assert wire.closed


async def test_the_default_context_does_not_trust_a_stranger(authority: trustme.CA) -> None:
    """Catches: the default context trusts anybody."""
    async with server(server_context(authority.issue_cert("pds.example"))) as wire:
        with pytest.raises(ConnectFailed):
            await GuardedNetwork().start_tls(wire, "pds.example")
        assert wire.closed


async def test_http_1_is_agreed_on_with_a_server_that_prefers_http_2(
    authority: trustme.CA,
) -> None:
    """Catches: a client that offers HTTP/2, which it does not speak."""
    context = guard._default_ssl_context()
    authority.configure_trust(context)
    offering = server_context(authority.issue_cert("pds.example"))
    offering.set_alpn_protocols(["h2", "http/1.1"])
    async with server(offering) as wire:
        stream = await GuardedNetwork(ssl_context=context).start_tls(wire, "pds.example")
        assert isinstance(stream, trio.SSLStream)
        assert stream.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01\x00"])
async def test_a_server_without_tls_is_a_typed_error(
    answer: bytes, trusting: ssl.SSLContext
) -> None:
    """Catches: a server without TLS ends in another error."""
    client_end, server_end = trio.testing.memory_stream_pair()
    wire = Wire(client_end)
    await server_end.send_all(answer)
    await server_end.send_eof()
    with pytest.raises(ConnectFailed):
        await GuardedNetwork(ssl_context=trusting).start_tls(wire, "pds.example")
    assert wire.closed


async def test_a_reset_in_the_handshake_is_a_typed_error(trusting: ssl.SSLContext) -> None:
    """Catches: a reset in the handshake ends in another error."""
    client_end, server_end = trio.testing.memory_stream_pair()
    wire = Wire(client_end)
    await server_end.aclose()
    with pytest.raises(ConnectFailed):
        await GuardedNetwork(ssl_context=trusting).start_tls(wire, "pds.example")
    assert wire.closed


@pytest.mark.parametrize("host", ["", ".example", "a..example", "a" * 64 + ".example"])
async def test_a_host_that_is_no_server_name_closes_the_stream(
    host: str, trusting: ssl.SSLContext
) -> None:
    """Catches: a host that is no server name leaves the stream open."""
    client_end, server_end = trio.testing.memory_stream_pair()
    wire = Wire(client_end)
    # Which of these Python sends on to the server differs between releases.
    await server_end.aclose()
    with pytest.raises(ConnectFailed):
        await GuardedNetwork(ssl_context=trusting).start_tls(wire, host)
    assert wire.closed


@pytest.mark.parametrize("after", [False, True], ids=["before a step", "after a step"])
async def test_a_cancelled_handshake_closes_the_stream(
    after: bool, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """Catches: a cancelled handshake leaves the stream open."""
    context = server_context(authority.issue_cert("pds.example"))
    network = GuardedNetwork(ssl_context=trusting)
    wires: list[Wire] = []
    given: list[trio.abc.Stream] = []

    async def attempt() -> None:
        async with server(context) as wire:
            wires.append(wire)
            given.append(await network.start_tls(wire, "pds.example"))
            # Not cancelled until here: the stream is the caller's.
            wire.closed = True

    assert await cancelled_at_every_step(attempt, after=after) >= 6
    assert given
    assert all(wire.closed for wire in wires)


async def test_a_real_connection_with_tls_leaves_no_sockets_behind(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """Catches: a real connection with TLS leaves sockets behind."""
    context = server_context(authority.issue_cert("pds.example"))
    network = GuardedNetwork(
        allow_private_hosts=True, lookup=resolving_to("127.0.0.1"), ssl_context=trusting
    )

    async def serve(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
            await tls.receive_some()
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    before = open_sockets()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        good = await network.start_tls(await network.connect("pds.example", port), "pds.example")
        await good.aclose()
        for name in ("other.example", "127.0.0.1"):
            stream = await network.connect("pds.example", port)
            with pytest.raises(ConnectFailed):
                await network.start_tls(stream, name)
            assert isinstance(stream, trio.SocketStream)
            assert stream.socket.fileno() == -1
        nursery.cancel_scope.cancel()
    assert open_sockets() <= before


async def test_it_is_told_which_address_a_host_is_dialled_at_and_which_one_answered() -> None:
    """Catches a share by address that knows the first address alone, which may be a stranger's."""
    told: list[tuple[str, str]] = []
    first, second = PUBLIC_ADDRESSES[:2]

    async def dial(address: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if address == first:
            raise OSError("refused")
        return trio.testing.memory_stream_pair()[0]

    network = GuardedNetwork(
        lookup=resolving_to(first, second),
        dial=dial,
        on_address=lambda host, address: told.append((host, str(address))),
    )
    await (await network.connect("pds.example", 443)).aclose()
    assert told == [("pds.example", first), ("pds.example", second)]


async def test_names_that_resolved_before_do_not_wait_for_strangers_whose_dns_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches one limiter for all look-ups: an abandoned one keeps its thread for seconds."""
    release = threading.Event()

    def lookup(host: bytes, port: int, *, type: int) -> list[tuple[object, ...]]:
        if host != b"pds.example":
            release.wait()
        return [(0, 0, 0, "", (PUBLIC_ADDRESSES[0], port))]

    async def dial(address: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return trio.testing.memory_stream_pair()[0]

    monkeypatch.setattr(guard, "getaddrinfo", lookup)
    network = GuardedNetwork(dial=dial)
    await (await network.connect("pds.example", 443)).aclose()
    try:
        async with trio.open_nursery() as nursery:
            for number in range(MAX_LOOKUPS + 1):
                nursery.start_soon(network.connect, f"{number}.evil.example", 443)
            while network._lookups.borrowed_tokens < MAX_LOOKUPS:
                await trio.lowlevel.checkpoint()
            for _ in range(2):
                with trio.fail_after(30):
                    await (await network.connect("pds.example", 443)).aclose()
            # The threads of look-ups that nobody waits for any more are still taken.
            nursery.cancel_scope.cancel()
        assert network._lookups.borrowed_tokens == MAX_LOOKUPS
        with trio.fail_after(30):
            await (await network.connect("pds.example", 443)).aclose()
    finally:
        release.set()
        while network._lookups.borrowed_tokens:
            await trio.lowlevel.checkpoint()

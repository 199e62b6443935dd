"""Both HTTP clients under servers of every kind: limits, redirects, retries, and what is left."""

from __future__ import annotations

import encodings
import hashlib
import traceback
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from io import BytesIO
from itertools import pairwise

import pytest
import trio
import trio.testing

from proxy.egress import httpx2_client
from proxy.egress.answer_meter import READ_BYTES
from proxy.egress.circuit import UNNAMED_PAUSE
from proxy.egress.endpoint import Origin
from proxy.egress.errors import (
    MAX_CAUSE,
    BadAnswer,
    ConnectFailed,
    Forbidden,
    NoAnswer,
    TimedOut,
    TooLarge,
)
from proxy.egress.exchange import GATHERED_BYTES, GATHERING_SECONDS
from proxy.egress.fetch_channel import ChannelStatistics
from proxy.egress.gateway import Gateway, fetch_channels_of, make_client
from proxy.egress.guard import GuardedNetwork
from proxy.egress.guarded_get import (
    CHUNKS_PER_STEP,
    MIN_BYTES_PER_SECOND,
    RATE_WINDOW,
    USER_AGENT,
    RequestRules,
    first_bytes,
    guarded_get,
)
from proxy.egress.http_client import MAX_IDLE, StreamingResponse
from proxy.egress.httpx2_client import Httpx2Client
from tests.fakes import faults
from tests.fakes.misbehaviours import MISBEHAVIOURS, Misbehaviour, heal
from tests.fakes.network import Conversation, Fault, Response, Site, honest
from tests.fakes.parts import FakeCache, FakeProcessor
from tests.fakes.steps import cancelled_at_every_step
from tests.fakes.world import World

pytestmark = pytest.mark.slow

BODY = bytes(range(100))
MAX_BYTES = 10 * 1024**2
IDLE = ChannelStatistics(0, 0)

EACH = pytest.mark.parametrize("misbehaviour", MISBEHAVIOURS, ids=str)


@pytest.fixture
async def site(client_world: World) -> Site:
    site = Site("pds.example")
    site.pages["/a"] = Response(200, BODY, (("Content-Type", "text/plain"),))
    client_world.network.add(site)
    client_world.network.forbids.add("inside.example")
    return site


@asynccontextmanager
async def running_gateway(world: World, **fetch: object) -> AsyncIterator[Gateway]:
    config = world.config(fetch=dict(fetch))
    gateway = Gateway(
        config.fetch, world.network, world.directory_network, fetch_channels_of(config.fetch)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        yield gateway
        nursery.cancel_scope.cancel()
    assert world.open_wires == 0


def origin_of(site: Site) -> Origin:
    return Origin(site.scheme, site.host, site.port)


def test_the_matrix_is_as_large_as_it_was() -> None:
    """Catches: a matrix that shrinks still passes."""
    assert len({str(misbehaviour) for misbehaviour in MISBEHAVIOURS}) == len(MISBEHAVIOURS) >= 80


@EACH
async def test_a_server_that_misbehaves_is_a_typed_error_and_leaves_nothing_behind(
    client_world: World,
    site: Site,
    misbehaviour: Misbehaviour,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a server that misbehaves gets away or leaves something behind."""
    expected = misbehaviour.over(client_world.client).egress
    misbehaviour.apply(site)
    async with running_gateway(client_world) as gateway:
        if expected is None:
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        else:
            with pytest.raises(expected) as caught:
                await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
            assert type(caught.value) is expected
        await trio.testing.wait_all_tasks_blocked()
        assert gateway.statistics() == IDLE
        if expected is not None:
            assert client_world.open_wires == 0
        heal(site)
        await trio.sleep(UNNAMED_PAUSE)  # after a 429
        answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert (answer.status, answer.body) == (200, BODY)


@EACH
async def test_a_misbehaving_pds_gives_its_error_and_the_service_goes_on(
    client_world: World, misbehaviour: Misbehaviour, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a misbehaving PDS comes out as the wrong error or breaks the service."""
    world = client_world
    world.network.forbids.add("inside.example")
    expected = misbehaviour.over(world.client).error
    did, cid = world.add_blob(BODY)
    _, other = world.add_blob(b"another", did=did)
    misbehaviour.apply(world.pds)
    async with world.service(cache=FakeCache(), processor=FakeProcessor()) as service:
        if expected is None:
            await service.get_image("avatar", did, cid)
        else:
            with pytest.raises(expected) as caught:
                await service.get_image("avatar", did, cid)
            assert type(caught.value) is expected
        heal(world.pds)
        await trio.sleep(UNNAMED_PAUSE)  # after a 429
        image = await service.get_image("avatar", did, other)
        assert image.data.endswith(b"another")
    assert world.open_wires == 0


def answers_at(site: Site, target: str, body: bytes = BODY) -> None:
    site.pages[target] = Response(200, body)


# Limits.


@pytest.mark.parametrize("fault", [honest, faults.chunked, faults.until_close])
async def test_a_body_of_exactly_the_limit_passes(
    client_world: World, site: Site, fault: Fault
) -> None:
    """Catches: a body of exactly the limit is refused."""
    site.fault = fault
    async with running_gateway(client_world) as gateway:
        answer = await gateway.get(origin_of(site), "/a", max_bytes=len(BODY))
        assert answer.body == BODY
        assert answer.sha256 == hashlib.sha256(BODY).digest()


@pytest.mark.parametrize("fault", [honest, faults.chunked, faults.until_close])
async def test_a_body_one_byte_over_the_limit_is_refused(
    client_world: World, site: Site, fault: Fault
) -> None:
    """Catches: a body one byte over the limit passes."""
    site.fault = fault
    async with running_gateway(client_world) as gateway:
        with pytest.raises(TooLarge):
            await gateway.get(origin_of(site), "/a", max_bytes=len(BODY) - 1)


async def test_a_body_that_is_announced_as_too_long_is_not_read(
    client_world: World, site: Site
) -> None:
    """Catches: a limit that is only counted reads what was announced as too long."""
    gate = trio.Event()

    async def announce_and_wait(conversation: Conversation) -> None:
        await conversation.send(conversation.response.head())
        await gate.wait()

    site.fault = announce_and_wait
    async with running_gateway(client_world) as gateway:
        with pytest.raises(TooLarge):
            await gateway.get(origin_of(site), "/a", max_bytes=len(BODY) - 1)
        assert not gate.is_set()


async def test_an_empty_body_is_an_answer(client_world: World, site: Site) -> None:
    """Catches: an empty body is taken for no answer."""
    answers_at(site, "/empty", b"")
    async with running_gateway(client_world) as gateway:
        answer = await gateway.get(origin_of(site), "/empty", max_bytes=MAX_BYTES)
        assert (answer.status, answer.body) == (200, b"")


async def test_a_long_error_page_is_not_read_to_its_end(client_world: World, site: Site) -> None:
    """Catches: a long error page is read to its end."""
    site.fault = faults.answers(500, bytes(100_000))
    async with running_gateway(client_world) as gateway:
        answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert (answer.status, len(answer.body)) == (500, 4096)


@pytest.mark.parametrize(
    ("rate", "passes"), [(MIN_BYTES_PER_SECOND * 1.2, True), (MIN_BYTES_PER_SECOND * 0.8, False)]
)
async def test_a_body_that_slows_to_a_trickle_is_cut(
    client_world: World,
    site: Site,
    rate: float,
    passes: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a rate that is judged by the whole fetch lets a trickle hold a consumer."""
    body = bytes(20_000)
    answers_at(site, "/slow", body)
    site.fault = faults.trickle(rate, at_once=128)
    async with running_gateway(client_world) as gateway:
        if passes:
            answer = await gateway.get(origin_of(site), "/slow", max_bytes=MAX_BYTES)
            assert answer.body == body
        else:
            with pytest.raises(TimedOut):
                await gateway.get(origin_of(site), "/slow", max_bytes=MAX_BYTES)
            # At the end of the first window, long before ``fetch.timeout``.
            assert trio.current_time() < 10


async def test_a_fetch_that_brings_enough_ends_at_its_deadline(
    client_world: World, site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a timeout per read never ends a fetch that brings enough."""
    answers_at(site, "/long", bytes(200_000))
    site.fault = faults.trickle(2 * MIN_BYTES_PER_SECOND, at_once=1024)
    began = trio.current_time()
    async with running_gateway(client_world, timeout=20) as gateway:
        with pytest.raises(TimedOut):
            await gateway.get(origin_of(site), "/long", max_bytes=MAX_BYTES)
        assert trio.current_time() - began == pytest.approx(20)


# What an answer costs.


async def test_others_have_their_turn_while_an_answer_of_small_chunks_is_read(
    client_world: World, site: Site
) -> None:
    """Catches: hundreds of chunks of one read that are taken in one step of the event loop."""
    chunks, turns = 200, 0
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    site.fault = faults.sends(answer + b"1\r\nx\r\n" * chunks + b"0\r\n\r\n")

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    client = make_client(client_world.client, client_world.network)
    asked = client.request("GET", origin_of(site), "/a", {})
    async with asked as reply, trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        assert await first_bytes(reply.body, chunks) == b"x" * chunks
        nursery.cancel_scope.cancel()
    assert turns >= chunks // CHUNKS_PER_STEP - 1


@pytest.mark.parametrize("before_length", [b" ", b"\r\n "], ids=["plain", "folded"])
@pytest.mark.parametrize("body", [BODY, bytes(3 * READ_BYTES)], ids=["short", "long"])
async def test_bytes_after_an_answer_are_not_the_next_answer(
    client_world: World, site: Site, body: bytes, before_length: bytes
) -> None:
    """Catches: a head that is parsed unmeasured, because it came after another answer's end.

    And a long body that is read by its length, with what follows it as the next answer. And a
    surplus that only the parser sees, since it alone knows the length, and that is lost in it.
    """
    answers_at(site, "/a", body)
    surplus = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"

    async def send_more(conversation: Conversation) -> None:
        conversation.keep_alive = True
        head, name, rest = conversation.response.encoded().partition(b"Content-Length:")
        await conversation.send(head + name + before_length + rest.lstrip() + surplus)

    site.faults = [send_more]
    async with running_gateway(client_world) as gateway:
        for _ in range(2):
            answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
            assert answer.body == body
    assert site.connections == 2


async def test_nothing_is_asked_over_a_connection_whose_long_answer_was_to_be_the_last(
    client_world: World, site: Site
) -> None:
    """Catches a connection that is kept because a body of declared length was read whole."""
    body = bytes(3 * READ_BYTES)
    answers_at(site, "/a", body)

    async def say_close_and_stay(conversation: Conversation) -> None:
        conversation.keep_alive = True
        await conversation.send(conversation.response.head(("Connection", "close")) + body)

    site.fault = say_close_and_stay
    async with running_gateway(client_world) as gateway:
        for _ in range(2):
            answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
            assert answer.body == body
    assert site.connections == 2


async def test_a_slow_disk_is_not_the_fault_of_the_server(
    client_world: World, site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a rate that counts the time in which what came was put away."""
    answers_at(site, "/a", bytes(5 * GATHERED_BYTES // 2))
    stored = 0

    async def store(piece: bytes) -> None:
        nonlocal stored
        await trio.sleep(2 * RATE_WINDOW)
        stored += len(piece)

    client = make_client(client_world.client, client_world.network)
    rules = RequestRules(MAX_BYTES, 0, allow_http=False, allow_private_hosts=False, sink=store)
    await guarded_get(client, client, origin_of(site), "/a", rules)
    assert stored == 5 * GATHERED_BYTES // 2
    await client.aclose()


async def test_a_long_body_comes_in_few_pieces_however_it_is_sent(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a body of declared length that passes all layers once for each 16 KiB."""
    site = Site("pds.example")
    world.network.add(site)
    body = bytes(range(256)) * 2000
    answers_at(site, "/a", body)
    site.fault = faults.trickle(100_000_000, at_once=4096)
    client = make_client("httpx2", world.network)
    asked = client.request("GET", origin_of(site), "/a", {})
    async with asked as reply, aclosing(reply.body) as chunks:
        pieces = [chunk async for chunk in chunks]
    assert b"".join(pieces) == body
    assert len(pieces) <= 2 + len(body) // GATHERED_BYTES
    await client.aclose()


async def test_bytes_are_held_back_for_a_moment_only(
    client_world: World, site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a slow body whose bytes show when it is whole, so that it seems to have stopped."""
    answers_at(site, "/a", bytes(200_000))
    site.fault = faults.trickle(20_000, at_once=1000)
    seen: list[tuple[float, int]] = []
    client = make_client(client_world.client, client_world.network)
    asked = client.request("GET", origin_of(site), "/a", {})
    async with asked as reply, aclosing(reply.body) as chunks:
        async for chunk in chunks:
            seen.append((trio.current_time(), len(chunk)))
    assert sum(size for _at, size in seen) == 200_000
    times = [at for at, _size in seen]
    assert max(later - at for at, later in pairwise(times)) <= 2 * GATHERING_SECONDS
    await client.aclose()


async def test_a_long_body_comes_whole_over_a_socket() -> None:
    """Catches: bytes that are lost or doubled where they are received into one buffer."""
    body = bytes(range(256)) * 4000 + b"end"

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            for _ in range(2):
                await stream.receive_some()
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                await stream.send_all(body)

    client = Httpx2Client(GuardedNetwork(allow_private_hosts=True), max_idle=1, idle_seconds=30)
    rules = RequestRules(MAX_BYTES, 0, allow_http=True, allow_private_hosts=True)
    async with trio.open_nursery() as nursery:
        listener, *_ = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        origin = Origin("http", "127.0.0.1", listener.socket.getsockname()[1])
        for _ in range(2):  # the second over the same connection
            answer = await guarded_get(client, client, origin, "/a", rules)
            assert answer.body == body
            assert answer.sha256 == hashlib.sha256(body).digest()
        await client.aclose()
        nursery.cancel_scope.cancel()


async def test_the_cause_of_a_bad_answer_is_short(client_world: World, site: Site) -> None:
    """Catches: a header field of a stranger is repeated whole in the log, and remembered."""
    site.fault = faults.sends(b"HTTP/1.1 200 OK\r\nBad Name" + b"\xff" * 15_000 + b": 1\r\n\r\n")
    async with running_gateway(client_world) as gateway:
        with pytest.raises(BadAnswer) as caught:
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
    assert 0 < len(str(caught.value)) <= MAX_CAUSE


def size_of(value: object) -> int:
    """The bytes that a variable holds."""
    if isinstance(value, BytesIO):
        return 0 if value.closed else len(value.getvalue())
    return len(value) if isinstance(value, bytes | bytearray) else 0


async def test_an_error_keeps_nothing_of_the_body_that_broke(
    client_world: World, site: Site
) -> None:
    """Catches: megabytes that live as long as an error, because its traceback has their frame."""
    answers_at(site, "/a", bytes(1_000_000))
    site.fault = faults.truncated
    async with running_gateway(client_world) as gateway:
        with pytest.raises(BadAnswer) as caught:
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
    sizes = []
    error: BaseException | None = caught.value
    while error is not None:
        for frame, _line in traceback.walk_tb(error.__traceback__):
            sizes += [size_of(value) for value in frame.f_locals.values()]
        error = error.__cause__ or error.__context__
    assert max(sizes) <= READ_BYTES


async def test_a_body_is_copied_at_no_time() -> None:
    """Catches: a body of 10 MB is copied at its end, for 4 ms and in twice the memory."""
    chunk, count = bytes(READ_BYTES), 640

    class Client:
        @asynccontextmanager
        async def request(self, *_: object) -> AsyncIterator[StreamingResponse]:
            yield StreamingResponse(200, {}, self.body())

        async def body(self) -> AsyncGenerator[bytes, None]:
            for _ in range(count):
                yield chunk

        async def close_expired(self) -> None: ...
        async def aclose(self) -> None: ...

    client = Client()
    rules = RequestRules(MAX_BYTES, 0, allow_http=False, allow_private_hosts=False)
    tracemalloc.start()
    try:
        answer = await guarded_get(client, client, Origin("https", "a.example", 443), "/a", rules)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(answer.body) == count * READ_BYTES
    assert peak < 1.5 * len(answer.body)


async def test_the_charset_of_an_answer_is_not_looked_up(client_world: World, site: Site) -> None:
    """Catches: Python remembers every charset that strangers name, and imports modules for it."""
    site.fault = faults.with_header("Content-Type", "text/plain; charset=of-a-stranger")
    known = set(encodings._cache)
    async with running_gateway(client_world) as gateway:
        await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
    assert set(encodings._cache) == known


# What is sent.


async def test_a_request_has_its_headers(client_world: World, site: Site) -> None:
    """Catches: a request without its headers."""
    async with running_gateway(client_world) as gateway:
        await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
    (request,) = site.requests
    assert request.headers["user-agent"] == USER_AGENT
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["host"] == "pds.example"
    assert client_world.network.asked == [("pds.example", 443)]
    assert client_world.network.tls_names == ["pds.example"]


@pytest.mark.parametrize(
    ("scheme", "port", "host"),
    [
        ("https", 8443, "pds.example:8443"),
        ("http", 80, "pds.example"),
        ("http", 2583, "pds.example:2583"),
    ],
)
async def test_the_host_header_has_the_port(
    client_world: World, scheme: str, port: int, host: str
) -> None:
    """Catches: a host header without the port."""
    site = Site("pds.example", port=port, scheme=scheme)
    answers_at(site, "/a?b=%3A&c=d:e")
    client_world.network.add(site)
    async with running_gateway(client_world) as gateway:
        answer = await gateway.get(origin_of(site), "/a?b=%3A&c=d:e", max_bytes=MAX_BYTES)
        assert answer.status == 200  # the target arrived letter for letter
    assert site.requests[0].headers["host"] == host
    assert client_world.network.tls_names == (["pds.example"] if scheme == "https" else [])


# Heads.


async def test_a_head_does_not_wait_for_the_body_that_it_announces(
    client_world: World, site: Site
) -> None:
    """Catches: a HEAD that waits for the body it announces."""
    async with running_gateway(client_world) as gateway:
        for _ in range(2):
            answer = await gateway.head(origin_of(site), "/a")
            assert (answer.status, answer.headers["content-length"], answer.body) == (
                200,
                str(len(BODY)),
                b"",
            )
        assert [request.method for request in site.requests] == ["HEAD", "HEAD"]
        # The default client keeps its connection, though no byte of a body ever came.
        assert site.connections == (1 if client_world.client == "httpx2" else 2)


@pytest.mark.parametrize("status", [400, 404, 429, 503])
async def test_a_head_that_is_refused_is_an_answer(
    client_world: World, site: Site, status: int
) -> None:
    """Catches: a HEAD that takes a refusal for a broken answer."""
    site.pages["/a"] = Response(status, b"not here", (("Retry-After", "0"),))
    async with running_gateway(client_world) as gateway:
        answer = await gateway.head(origin_of(site), "/a")
        assert (answer.status, answer.body) == (status, b"")


async def test_a_get_for_the_head_alone_leaves_the_body(
    client_world: World, site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a GET for the HEAD alone that takes the body along."""
    site.fault = faults.hang_after_head
    async with running_gateway(client_world) as gateway:
        answer = await gateway.head(origin_of(site), "/a", method="GET")
        assert (answer.status, answer.body) == (200, b"")
        # Nothing else would stop the server from sending on.
        assert client_world.open_wires == 0
        site.pages["/a"] = Response(400, b'{"error":"RepoTakendown"}')
        site.fault = honest
        answer = await gateway.head(origin_of(site), "/a", method="GET")
        assert (answer.status, answer.body) == (400, b'{"error":"RepoTakendown"}')


async def test_a_redirected_head_stays_a_head(client_world: World, site: Site) -> None:
    """Catches: a redirected HEAD that becomes a GET."""
    site.faults = [faults.redirects("/b", 303)]
    answers_at(site, "/b")
    async with running_gateway(client_world) as gateway:
        assert (await gateway.head(origin_of(site), "/a")).status == 200
    assert [(request.method, request.target) for request in site.requests] == [
        ("HEAD", "/a"),
        ("HEAD", "/b"),
    ]


# Redirects.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "host", "target"),
    [
        ("/b/c", "pds.example", "/b/c"),
        ("c?x=%3A", "pds.example", "/img/c?x=%3A"),
        ("../c", "pds.example", "/c"),
        ("?x", "pds.example", "/img/a?x"),
        ("https://other.example/d?e=f", "other.example", "/d?e=f"),
        ("//other.example/d#fragment", "other.example", "/d"),
        ("HTTPS://OTHER.EXAMPLE", "other.example", "/"),
    ],
)
async def test_a_redirect_leads_where_it_says(
    client_world: World, site: Site, status: int, location: str, host: str, target: str
) -> None:
    """Catches: a redirect that leads elsewhere."""
    sites = {"pds.example": site, "other.example": Site("other.example")}
    client_world.network.add(*sites.values())
    answers_at(sites[host], target)
    site.faults = [faults.redirects(location, status)]
    async with running_gateway(client_world) as gateway:
        answer = await gateway.get(origin_of(site), "/img/a", max_bytes=MAX_BYTES)
        assert (answer.status, answer.body) == (200, BODY)
    assert sites[host].requests[-1].target == target
    assert sites[host].requests[-1].headers["host"] == host


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (b"/a b", "/a%20b"),
        ("/bl\u00e5b?\u2026".encode(), "/bl%C3%A5b?%E2%80%A6"),
        (b"/?signature=" + b"a" * 6000, "/?signature=" + "a" * 6000),
    ],
    ids=["spaces", "UTF-8", "6 KB"],
)
async def test_a_redirect_in_raw_bytes_is_followed(
    client_world: World, site: Site, location: bytes, target: str
) -> None:
    """Catches a client that reads a header field in its own way."""
    head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
    site.faults = [faults.sends(head)]
    site.pages[target] = Response(200, b"there")
    async with running_gateway(client_world) as gateway:
        answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
    assert (answer.status, answer.body) == (200, b"there")


@pytest.mark.parametrize(
    "encoding", ["aws-chunked", "none", "identity", "UTF-8", "", "aws-chunked, identity"]
)
async def test_an_encoding_that_changes_nothing_is_read_as_it_is(
    client_world: World, site: Site, encoding: str
) -> None:
    """Catches: what an uploader told an object store makes its blobs unreadable."""
    site.pages["/a"] = Response(200, b"plain", (("Content-Encoding", encoding),))
    async with running_gateway(client_world) as gateway:
        answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
    assert answer.body == b"plain"


@pytest.mark.parametrize("encoding", ["gzip", "br", "aws-chunked, gzip", "utf-16", "x"])
async def test_an_encoded_body_is_refused_and_an_encoded_refusal_keeps_its_status(
    client_world: World, site: Site, encoding: str
) -> None:
    """Catches: a front that compresses its pages of errors turns a 404 into a bad answer."""
    headers = (("Content-Encoding", encoding),)
    site.pages["/a"] = Response(200, b"encoded", headers)
    site.pages["/gone"] = Response(410, b"encoded", headers)
    async with running_gateway(client_world) as gateway:
        with pytest.raises(BadAnswer):
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        gone = await gateway.get(origin_of(site), "/gone", max_bytes=MAX_BYTES)
    assert (gone.status, gone.body) == (410, b"")


@pytest.mark.parametrize("location", ["/b", "https://other.example/b"])
async def test_a_redirect_takes_no_header_of_the_caller_along(
    client_world: World, site: Site, location: str
) -> None:
    """Catches a rate limit's bypass key, or a token, told to the server that a PDS redirects to."""
    other = Site("other.example")
    client_world.network.add(other)
    for each in (site, other):
        answers_at(each, "/b")
    site.faults = [faults.redirects(location)]
    async with running_gateway(client_world) as gateway:
        answer = await gateway.get(
            origin_of(site), "/a", max_bytes=MAX_BYTES, headers={"X-Secret": "of the caller"}
        )
        assert answer.status == 200
    first, second = site.requests + other.requests
    assert first.headers["x-secret"] == "of the caller"
    assert "x-secret" not in second.headers
    assert second.headers["user-agent"] == USER_AGENT


@pytest.mark.parametrize("limit", [0, 1, 3])
async def test_the_limit_of_redirects_is_exact(client_world: World, site: Site, limit: int) -> None:
    """Catches: a limit of redirects that is off by one."""
    async with running_gateway(client_world, max_redirects=limit) as gateway:
        site.faults = [faults.redirects("/a")] * limit
        answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert answer.status == 200
        site.requests.clear()
        site.faults = [faults.redirects("/a")] * (limit + 1)
        with pytest.raises(BadAnswer, match="redirects"):
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert len(site.requests) == limit + 1


async def test_a_redirect_to_https_is_followed_and_one_to_http_is_not(
    client_world: World, site: Site
) -> None:
    """Catches: a redirect between HTTP and HTTPS is judged the wrong way round."""
    plain = Site("plain.example", port=80, scheme="http")
    answers_at(plain, "/a")
    client_world.network.add(plain)
    async with running_gateway(client_world) as gateway:
        plain.faults = [faults.redirects(f"{site.url}/a")]
        answer = await gateway.get(origin_of(plain), "/a", max_bytes=MAX_BYTES)
        assert answer.status == 200
        site.faults = [faults.redirects(f"{plain.url}/a")]
        with pytest.raises(Forbidden):
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert len(plain.requests) == 1


async def test_the_deadline_covers_all_redirects_together(
    client_world: World, site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a fetch timeout per hop grows with the redirects."""

    async def slow_redirect(conversation: Conversation) -> None:
        await trio.sleep(8)
        await faults.redirects("/a")(conversation)

    site.fault = slow_redirect
    began = trio.current_time()
    async with running_gateway(client_world, timeout=20, max_redirects=10) as gateway:
        with pytest.raises(TimedOut):
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert trio.current_time() - began == pytest.approx(20)


# One retry.


@pytest.mark.parametrize("fault", [faults.close, faults.reset])
async def test_a_failure_before_the_first_byte_is_retried_once(
    client_world: World, site: Site, fault: Fault
) -> None:
    """Catches: a failure before the first byte is not retried or more than once."""
    async with running_gateway(client_world) as gateway:
        site.faults = [fault]
        answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert (answer.status, len(site.requests)) == (200, 2)
        site.requests.clear()
        site.faults = [fault, fault]
        with pytest.raises(NoAnswer):
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert len(site.requests) == 2


async def test_a_refused_connection_is_retried_once(client_world: World, site: Site) -> None:
    """Catches: a refused connection is not retried or more than once."""
    async with running_gateway(client_world) as gateway:
        site.refuses = 1
        answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert answer.status == 200
    async with running_gateway(client_world) as gateway:
        site.refuses = 3
        with pytest.raises(ConnectFailed):
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert site.refuses == 1


@pytest.mark.parametrize(
    "fault",
    [
        faults.reset_in_head,
        faults.close_in_head,
        faults.not_http,
        faults.reset_after_head,
        faults.reset_in_body,
        faults.truncated,
        faults.chunked_without_end,
        faults.gzipped,
        faults.answers(500),
    ],
)
async def test_a_failure_after_the_first_byte_is_not_retried(
    client_world: World, site: Site, fault: Fault
) -> None:
    """Catches: a failure after the first byte is retried."""
    site.fault = fault
    async with running_gateway(client_world) as gateway:
        with suppress(BadAnswer):
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
    assert len(site.requests) == 1


async def test_a_retry_shares_the_deadline_of_its_fetch(
    client_world: World, site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a retry has a deadline of its own."""

    async def slow_failure(conversation: Conversation) -> None:
        await trio.sleep(15)
        conversation.reset()

    site.fault = slow_failure
    began = trio.current_time()
    async with running_gateway(client_world, timeout=20) as gateway:
        with pytest.raises(TimedOut):
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert trio.current_time() - began == pytest.approx(20)
    assert len(site.requests) == 2


# Kept-alive connections.


async def test_requests_to_one_host_share_a_connection(world: World) -> None:
    """Catches: a connection for each request to one host."""
    site = Site("pds.example")
    answers_at(site, "/a")
    world.network.add(site)
    async with running_gateway(world) as gateway:
        for _ in range(5):
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert world.open_wires == 1
    assert site.connections == 1


async def test_a_kept_connection_that_its_server_closed_is_replaced(
    client_world: World, site: Site
) -> None:
    """Catches: a kept connection that its server closed fails the next fetch."""

    async def answer_and_close(conversation: Conversation) -> None:
        await honest(conversation)
        conversation.keep_alive = False

    site.faults = [answer_and_close]
    async with running_gateway(client_world) as gateway:
        for _ in range(2):
            answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
            assert answer.status == 200
            await trio.testing.wait_all_tasks_blocked()


async def test_idle_connections_are_bounded_over_all_hosts(client_world: World) -> None:
    """Catches: ten thousand hosts leave ten thousand sockets."""
    sites = [Site(f"pds{number}.example") for number in range(MAX_IDLE * 2)]
    client_world.network.add(*sites)
    async with running_gateway(client_world) as gateway:
        for site in sites:
            answers_at(site, "/a")
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert client_world.open_wires <= MAX_IDLE


async def test_a_request_looks_at_the_idle_connections_of_its_own_host_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches two system calls for each idle connection of the process, before every request."""
    sites = [Site(f"pds{number}.example") for number in range(3)]
    world.network.add(*sites)
    looked: list[object] = []

    def note(stream: object) -> bool:
        looked.append(stream)
        return False

    monkeypatch.setattr(httpx2_client, "_is_readable", note)
    async with running_gateway(world) as gateway:
        for site in sites:
            answers_at(site, "/a")
            await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
        assert looked == []
        await gateway.get(origin_of(sites[0]), "/a", max_bytes=MAX_BYTES)
        assert len(looked) == 1
    assert [site.connections for site in sites] == [1, 1, 1]


# The operator's own directory.


async def test_the_directory_has_its_own_network_and_its_redirects_that_of_strangers(
    client_world: World, site: Site
) -> None:
    """Catches: the directory is reached over the network of strangers or its redirects are not."""
    plc = client_world.plc
    plc.pages["/a"] = Response(200, b"from the directory")
    async with running_gateway(client_world) as gateway:
        origin = Origin(plc.scheme, plc.host, plc.port)
        answer = await gateway.get(origin, "/a", max_bytes=MAX_BYTES, lane="operator")
        assert answer.body == b"from the directory"
        with pytest.raises(ConnectFailed):
            await gateway.get(origin, "/a", max_bytes=MAX_BYTES)
        plc.faults = [faults.redirects("/a")]
        with pytest.raises(ConnectFailed):
            await gateway.get(origin, "/a", max_bytes=MAX_BYTES, lane="operator")
        plc.faults = [faults.redirects(f"{site.url}/a")]
        answer = await gateway.get(origin, "/a", max_bytes=MAX_BYTES, lane="operator")
        assert answer.body == BODY


# Cancellation.

# Each says "close", so that the idle connection of a fetch that got through is no leak.
CLOSING = partial(faults.with_header, "Connection", "close")
FETCHES = {
    "plain": [CLOSING()],
    "chunked": [CLOSING(faults.chunked)],
    "redirected": [faults.redirects("/a"), CLOSING()],
    "retried": [faults.reset, CLOSING()],
}


@pytest.mark.parametrize("after", [False, True], ids=["before a step", "after a step"])
@pytest.mark.parametrize("played", FETCHES.values(), ids=FETCHES.keys())
async def test_a_cancellation_anywhere_leaves_no_socket_no_consumer_and_no_place(
    client_world: World, site: Site, played: list[Fault], after: bool
) -> None:
    """Catches: a cancellation somewhere leaves a socket a consumer or a place."""
    async with running_gateway(client_world) as gateway:

        async def attempt() -> None:
            site.faults = list(played)
            answer = await gateway.get(origin_of(site), "/a", max_bytes=MAX_BYTES)
            assert answer.body == BODY

        def check() -> None:
            assert client_world.open_wires == 0
            assert gateway.statistics() == IDLE

        assert await cancelled_at_every_step(attempt, check, after=after) > 10
        await attempt()

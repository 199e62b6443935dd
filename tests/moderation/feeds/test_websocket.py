"""One WebSocket to a server that may do anything: bounded, and closed in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from proxy.egress.endpoint import Origin
from proxy.moderation.feeds import websocket
from proxy.moderation.feeds.websocket import Server, SocketFailed, open_socket
from tests.fakes.network import FakeNetwork, Site, Wire
from tests.fakes.steps import cancelled_at_every_step
from tests.fakes.streams import Connection, Play, Stream

HOST = "stream.example"


@pytest.fixture
def network(nursery: trio.Nursery) -> FakeNetwork:
    return FakeNetwork(nursery)


@pytest.fixture
def stream(network: FakeNetwork) -> Stream:
    stream = Stream(HOST)
    network.add(stream)
    return stream


async def talk(network: FakeNetwork, *, messages: int = 1, max_message: int = 1000) -> list[Any]:
    """Connect and receive so many messages."""
    server = Server(network, Origin("https", HOST, 443))
    async with open_socket(server, "/a?b=c", max_message=max_message) as socket:
        return [await socket.receive() for _ in range(messages)]


async def failure(network: FakeNetwork, **options: Any) -> SocketFailed:
    with pytest.raises(SocketFailed) as caught:
        await talk(network, **options)
    assert not network.open_wires
    return caught.value


async def test_every_message_arrives_in_order(network: FakeNetwork, stream: Stream) -> None:
    """Catches: a message is lost or out of order."""

    async def play(connection: Connection) -> None:
        for message in (b"one", "two", b"three"):
            await connection.send_message(message)
        await trio.sleep_forever()

    stream.plays = [play]
    assert await talk(network, messages=3) == [b"one", "two", b"three"]
    assert stream.requests[0].target == "/a?b=c"
    assert stream.requests[0].headers["user-agent"].startswith("atproto-imageproxy/")
    assert network.tls_names == [HOST]
    assert not network.open_wires


async def test_a_message_that_is_too_large_closes_its_connection(
    network: FakeNetwork, stream: Stream
) -> None:
    """Catches: a message that is too large is kept or its connection left open."""

    async def play(connection: Connection) -> None:
        await connection.send_message(bytes(1000))
        await connection.send_message(bytes(1001))
        await trio.sleep_forever()

    stream.plays = [play]
    assert (await failure(network, messages=2)).reason == "too large"


async def test_a_server_that_closes_ends_the_stream_at_once(
    network: FakeNetwork, stream: Stream
) -> None:
    """Catches: a server that closes is waited for."""

    async def play(connection: Connection) -> None:
        await connection.aclose(1008, "go away")

    stream.plays = [play]
    error = await failure(network)
    assert error.reason == "closed"
    assert "1008" in str(error)


@pytest.mark.parametrize("answers", [True, False])
async def test_a_silent_server_is_left_and_one_that_answers_pings_is_not(
    answers: bool,
    network: FakeNetwork,
    stream: Stream,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a server that is silent is waited for without end or a quiet one left."""

    async def quiet(connection: Connection) -> None:
        await trio.sleep(10 * websocket.QUIET_SECONDS)
        await connection.send_message(b"at last")
        await trio.sleep_forever()

    if answers:
        stream.plays = [quiet]
        assert await talk(network) == [b"at last"]
        return

    async def play(connection: Connection) -> None:
        await trio.sleep_forever()

    network.add(Frozen(HOST, play))
    error = await failure(network)
    assert error.reason == "silent"
    assert trio.current_time() <= websocket.QUIET_SECONDS + websocket.PONG_SECONDS + 1


class Frozen(Stream):
    """Upgrades, and never reads again: no pong comes."""

    def __init__(self, host: str, play: Play) -> None:
        super().__init__(host)
        self._frozen = play

    async def serve(self, wire: Wire, stream: trio.abc.Stream) -> None:
        upgraded = trio.Event()
        halting = Halting(stream, upgraded)

        async def upgrade(connection: Connection) -> None:
            upgraded.set()
            await self._frozen(connection)

        self.plays = [upgrade]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().serve, wire, halting)
            await halting.left.wait()
            nursery.cancel_scope.cancel()


class Halting(trio.abc.Stream):
    """A stream that brings nothing any more once ``halted`` is set."""

    def __init__(self, inner: trio.abc.Stream, halted: trio.Event) -> None:
        self._inner = inner
        self._halted = halted
        self.left = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        while True:
            data = await self._inner.receive_some(max_bytes)
            if not data:
                self.left.set()
            if not data or not self._halted.is_set():
                return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.mark.parametrize("after", [False, True])
async def test_a_message_that_comes_while_a_pong_is_waited_for_arrives(
    after: bool, network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    """The receiver is cancelled at every step; the next one has to have the message.

    Catches: a message that comes while a pong is waited for is lost.
    """
    asked, answered = trio.open_memory_channel[None](0)

    async def send_late(connection: Connection) -> None:
        async for _ in answered:
            await trio.sleep(websocket.QUIET_SECONDS + websocket.PONG_SECONDS / 2)
            await connection.send_message(b"late")

    network.add(Frozen(HOST, send_late))
    found: list[str | bytes] = []
    server = Server(network, Origin("https", HOST, 443))
    async with open_socket(server, "/", max_message=100) as socket:

        async def attempt() -> None:
            await asked.send(None)
            found.append(await socket.receive())

        async def then() -> None:
            if not found:
                with trio.move_on_after(1000):
                    found.append(await socket.receive())
            assert found in ([b"late"], []), found
            lost.append(not found)
            found.clear()

        lost: list[bool] = []
        assert await cancelled_at_every_step(attempt, after=after, then=then) > 5
        # Where it was cancelled before it asked, there was nothing to come.
        assert lost.count(True) <= 2


@pytest.mark.parametrize("status", [301, 400, 404, 429, 500, 501, 503])
async def test_a_refusal_is_a_typed_error(
    status: int, network: FakeNetwork, stream: Stream
) -> None:
    """Catches: a refusal is taken for a stream."""
    stream.rejects = [status]
    stream.reject_headers = [(b"retry-after", b"17"), (b"location", b"https://elsewhere.example")]
    error = await failure(network)
    assert error.reason == "refused"
    assert str(status) in str(error)
    assert error.retry_after == 17
    assert network.asked == [(HOST, 443)]


class Raw(Site):
    """Answers every connection with the same bytes, over and over where ``endless``."""

    def __init__(self, data: bytes, *, endless: bool = False) -> None:
        super().__init__(HOST)
        self._data = data
        self._endless = endless

    async def serve(self, wire: Wire, stream: trio.abc.Stream) -> None:
        try:
            await stream.receive_some()
            await stream.send_all(self._data)
            self.sent = len(self._data)
            while self._endless and self.sent < 1_000_000:
                await stream.send_all(b"x" * 10_000)
                self.sent += 10_000
                await trio.testing.wait_all_tasks_blocked()
            await stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await stream.aclose()


UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff" * 100,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        UPGRADED + b"\r\n",
        UPGRADED + b"Sec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 " + b"1" * 100_000,
    ],
    ids=lambda data: ascii(data)[:40],
)
async def test_garbage_in_place_of_a_handshake_is_a_typed_error(
    data: bytes, network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: garbage in place of a handshake breaks out or is waited for."""
    network.add(Raw(data))
    await failure(network)
    assert trio.current_time() <= websocket.HANDSHAKE_SECONDS


class CountingNetwork(FakeNetwork):
    """Counts what the client reads."""

    received = 0

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        receive_some = stream.receive_some

        async def counted(max_bytes: int | None = None) -> bytes | bytearray:
            data = await receive_some(max_bytes)
            self.received += len(data)
            return data

        stream.receive_some = counted  # type: ignore[method-assign]
        return stream


async def test_a_refusal_with_an_endless_body_is_cut(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches: a refusal with an endless body fills the memory."""
    network = CountingNetwork(nursery)
    network.add(Raw(b"HTTP/1.1 500 No\r\n\r\n", endless=True))
    await failure(network)
    assert websocket.MAX_HANDSHAKE < network.received < 2 * websocket.MAX_HANDSHAKE


GARBAGE = [
    b"\xff" * 50,
    b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",  # a length of 2**64 - 1
    b"\x82\x7f\x00\x00\x00\x00\x7f\xff\xff\xff",  # two gigabytes, announced
    b"\x83\x01a",  # an opcode that is reserved
    b"\xc2\x01a",  # compressed, though that was not agreed on
    b"\x82\x81\x00\x00\x00\x00a",  # masked, by a server
    b"\x81\x02\xff\xfe",  # text that is not UTF-8
    b"\x89\x7e\x01\x00" + bytes(256),  # a ping that is too long
    b"\x00\x01a",  # a continuation of nothing
    b"\x88\x01a",  # a close code of one byte
]


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: ascii(data)[:40])
async def test_garbage_in_place_of_frames_is_a_typed_error(
    data: bytes,
    network: FakeNetwork,
    stream: Stream,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: garbage in place of frames breaks out or is waited for."""

    async def play(connection: Connection) -> None:
        await connection._stream.send_all(data)
        await trio.sleep_forever()

    stream.plays = [play]
    await failure(network)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda site: setattr(site, "refuses", 1), "unreachable"),
        (lambda site: setattr(site, "has_certificate", False), "unreachable"),
        (lambda site: setattr(site, "answers_connections", False), "timeout"),
        (lambda site: setattr(site, "host", "elsewhere"), "unreachable"),
    ],
)
async def test_a_server_that_is_not_there_is_a_typed_error(
    prepare: Callable[[Site], None],
    reason: str,
    network: FakeNetwork,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches: a server that is not there breaks out or is waited for."""
    site = Stream(HOST)
    prepare(site)
    network.add(site)
    assert (await failure(network)).reason == reason


async def test_a_forbidden_server_is_not_connected_to(network: FakeNetwork, stream: Stream) -> None:
    """Catches: a forbidden server is connected to."""
    network.forbids.add(HOST)
    assert (await failure(network)).reason == "unreachable"
    assert stream.connections == 0


async def test_an_error_of_the_block_comes_out_as_itself(
    network: FakeNetwork, stream: Stream
) -> None:
    """Catches: an error of the block comes out in a group."""
    server = Server(network, Origin("https", HOST, 443))
    with pytest.raises(KeyError):
        async with open_socket(server, "/", max_message=100):
            raise KeyError("the block's")
    assert not network.open_wires


@pytest.mark.parametrize("after", [False, True])
async def test_a_cancellation_closes_the_connection(
    after: bool, network: FakeNetwork, stream: Stream
) -> None:
    """Catches: a cancellation leaves a connection open."""

    async def play(connection: Connection) -> None:
        await connection.send_message(b"one")
        await trio.sleep_forever()

    async def attempt() -> None:
        stream.plays = [play]
        await talk(network)

    def check() -> None:
        assert not network.open_wires

    assert await cancelled_at_every_step(attempt, check, after=after) > 10

"""A network without sockets: hosts are objects, connections are pairs of streams in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, urlsplit

import h11
import trio
import trio.testing

from proxy.egress.errors import ConnectFailed, Forbidden

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}


@dataclass(frozen=True)
class Request:
    """What arrived at a server.

    Attributes:
        target: path and query as they were sent.
        headers: by lower-case name.
    """

    target: str
    headers: dict[str, str]
    method: str = "GET"
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """Decoded; of repeated ones the first."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}


@dataclass(frozen=True)
class Response:
    """What an honest server answers."""

    status: int = 200
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()

    def head(self, *more: tuple[str, str], length: bool = True) -> bytes:
        """Status line and headers, with a ``Content-Length`` unless ``length`` is off."""
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Other')}"]
        lines += [f"{name}: {value}" for name, value in (*self.headers, *more)]
        if length:
            lines.append(f"Content-Length: {len(self.body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def encoded(self) -> bytes:
        """The whole answer as it goes over the wire."""
        return self.head() + self.body


class Wire(trio.abc.Stream):
    """The client's side of a connection, which knows whether it was closed."""

    def __init__(self, network: FakeNetwork, site: Site, inner: trio.abc.Stream) -> None:
        self._network = network
        self._inner = inner
        self.site = site
        self.was_reset = False
        network.open_wires.add(self)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._inner.receive_some(max_bytes)
        if not data and self.was_reset:
            raise trio.BrokenResourceError from ConnectionResetError("reset by peer")
        return data

    async def aclose(self) -> None:
        self._network.open_wires.discard(self)
        await self._inner.aclose()


class Conversation:
    """One request at a server, with the honest response; a fault plays something else.

    Attributes:
        keep_alive: whether the connection serves further requests afterwards.
    """

    def __init__(
        self, site: Site, wire: Wire, stream: trio.abc.Stream, request: Request, response: Response
    ) -> None:
        self.site = site
        self.request = request
        self.response = response
        self.keep_alive = False
        self._wire = wire
        self._stream = stream

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    def reset(self) -> None:
        """Break the connection: what was sent still arrives, then an error instead of an end."""
        self._wire.was_reset = True


Fault = Callable[[Conversation], Awaitable[None]]
"""Plays one conversation. When it returns, the connection is closed."""


async def honest(conversation: Conversation) -> None:
    """No fault at all."""
    conversation.keep_alive = True
    is_head = conversation.request.method == "HEAD"
    response = conversation.response
    await conversation.send(response.head() if is_head else response.encoded())


class Site:
    """An HTTP server in memory.

    Args:
        host, port, scheme: where it stands.

    Attributes:
        requests: every request, in order.
        connections: how many were accepted.
        fault: plays every conversation from now on.
        faults: of the next conversations, one each, before ``fault``.
        refuses: how many of the next connections are refused; -1: all.
        answers_connections: unset, a connection is neither accepted nor refused.
        has_certificate: unset, TLS with it fails.
        pages: honest responses by target, of a site that is nothing else.
    """

    def __init__(self, host: str, *, port: int = 443, scheme: str = "https") -> None:
        self.host = host
        self.port = port
        self.scheme = scheme
        self.requests: list[Request] = []
        self.connections = 0
        self.fault: Fault = honest
        self.faults: list[Fault] = []
        self.refuses = 0
        self.answers_connections = True
        self.has_certificate = True
        self.pages: dict[str, Response] = {}

    @property
    def url(self) -> str:
        default = {"https": 443, "http": 80}[self.scheme]
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port != default else "")

    @property
    def requests_by_path(self) -> Counter[str]:
        return Counter(request.path for request in self.requests)

    def answer(self, request: Request) -> Response:
        """The honest response."""
        return self.pages.get(request.target, Response(404, b"Not Found"))

    async def serve(self, wire: Wire, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end."""
        try:
            async with stream:
                connection = h11.Connection(h11.SERVER)
                while await self._converse(wire, stream, connection):
                    connection = _next(connection)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the client has gone

    async def _converse(
        self, wire: Wire, stream: trio.abc.Stream, connection: h11.Connection
    ) -> bool:
        request = await _receive(stream, connection)
        if request is None:
            return False
        self.requests.append(request)
        conversation = Conversation(self, wire, stream, request, self.answer(request))
        fault = self.faults.pop(0) if self.faults else self.fault
        await fault(conversation)
        return conversation.keep_alive


async def _receive(stream: trio.abc.Stream, connection: h11.Connection) -> Request | None:
    request: Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            request = Request(event.target.decode(), headers, event.method.decode())
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return request and replace(request, body=bytes(body))
        elif isinstance(event, h11.ConnectionClosed):
            return None


def _next(connection: h11.Connection) -> h11.Connection:
    """A connection's state for its next request, with what has arrived of it."""
    following = h11.Connection(h11.SERVER)
    arrived, _ = connection.trailing_data
    if arrived:  # nothing would mean the stream's end
        following.receive_data(arrived)
    return following


class FakeNetwork:
    """A ``proxy.egress.network.Network`` of ``Site`` objects.

    Args:
        nursery: runs the servers.
        forbids: hosts that the guard of a real network would refuse.

    Attributes:
        open_wires: connections that the client has not closed.
        asked: every host and port that a connection was asked for, in order.
        tls_names: every name that TLS was started with, in order.
    """

    def __init__(self, nursery: trio.Nursery, *, forbids: Sequence[str] = ()) -> None:
        self._nursery = nursery
        self._sites: dict[tuple[str, int], Site] = {}
        self.forbids = set(forbids)
        self.open_wires: set[Wire] = set()
        self.asked: list[tuple[str, int]] = []
        self.tls_names: list[str] = []

    def add(self, *sites: Site) -> None:
        """Put servers where they say they stand."""
        for site in sites:
            self._sites[site.host, site.port] = site

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """As ``Network.connect``."""
        self.asked.append((host, port))
        await trio.lowlevel.checkpoint()
        if host in self.forbids:
            raise Forbidden(f"{host} is forbidden here")
        site = self._sites.get((host, port))
        if site is None:
            raise ConnectFailed(f"{host} does not resolve")
        if not site.answers_connections:
            await trio.sleep_forever()
        if site.refuses:
            site.refuses -= 1
            raise ConnectFailed(f"{host} port {port}: connection refused")
        site.connections += 1
        client, server = trio.testing.memory_stream_pair()
        wire = Wire(self, site, client)
        self._nursery.start_soon(site.serve, wire, server)
        return wire

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        """As ``Network.start_tls``, without a cipher."""
        self.tls_names.append(host)
        try:
            await trio.lowlevel.checkpoint()
            assert isinstance(stream, Wire)
            if not stream.site.has_certificate:
                raise ConnectFailed(f"TLS with {host} failed: certificate verify failed")
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.aclose()
            raise
        return stream

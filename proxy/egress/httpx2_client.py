"""The default HTTP client: the pool of httpx2's transport, with connections of ours in it.

The pool decides which connection a request gets, and which ones stay open. Its own connections pass
each part of an answer through five generators, which was a sixth of what a miss costs the event
loop; those here hand out what an ``Exchange`` reads.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple

import httpcore2
import trio

from proxy.egress.endpoint import Origin
from proxy.egress.exchange import Exchange
from proxy.egress.http_client import Method, StreamingResponse
from proxy.egress.network import Network


class Httpx2Client:
    """Sends requests over kept-alive connections.

    Args:
        network: opens every connection.
        max_idle: idle connections kept, for all hosts together.
        idle_seconds: how long a connection may stay idle.
    """

    def __init__(self, network: Network, *, max_idle: int, idle_seconds: float) -> None:
        self._pool = _Pool(network, max_idle, idle_seconds)

    @asynccontextmanager
    async def request(
        self,
        method: Method | Literal["POST"],
        origin: Origin,
        target: str,
        headers: Mapping[str, str],
        content: bytes | None = None,
    ) -> AsyncIterator[StreamingResponse]:
        """See ``HttpClient.request``. This client can also POST ``content`` as the body."""
        pairs = [("Host", origin.authority), *headers.items()]
        if content is not None:
            pairs.append(("Content-Length", str(len(content))))
        question = _Question(method, target, pairs, content)
        url = httpcore2.URL(
            scheme=origin.scheme.encode(), host=origin.host.encode(), port=origin.port, target=b"/"
        )
        request = httpcore2.Request(method, url, extensions={QUESTION: question})
        response = await self._pool.handle_async_request(request)
        try:
            yield response.extensions[ANSWER]
        finally:
            await response.aclose()

    async def close_expired(self) -> None:
        """See ``HttpClient.close_expired``. The pool by itself closes them only at its next use."""
        for connection in self._pool.connections:
            if connection.is_idle() and connection.has_expired():
                await connection.aclose()

    async def aclose(self) -> None:
        """See ``HttpClient.aclose``."""
        await self._pool.aclose()


class _Question(NamedTuple):
    """What is sent."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    content: bytes | None


QUESTION, ANSWER = "question", "answer"
"""What the pool takes through, unseen: a ``_Question`` and a ``StreamingResponse``."""


class _Pool(httpcore2.AsyncConnectionPool):
    def __init__(self, network: Network, max_idle: int, idle_seconds: float) -> None:
        super().__init__(
            # The network does TLS itself. This context is never used; it is here so that the pool
            # does not load CA files.
            ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            max_connections=None,
            max_keepalive_connections=max_idle,
        )
        self._network = network
        self._idle_seconds = idle_seconds

    def create_connection(self, origin: httpcore2.Origin) -> httpcore2.AsyncConnectionInterface:
        return _Connection(self._network, origin, self._idle_seconds)

    async def _close_connections(self, closing: list[httpcore2.AsyncConnectionInterface]) -> None:
        # Twice a request, and nearly always of none: the pool shields itself for them too.
        if closing:
            await super()._close_connections(closing)


class _Connection(httpcore2.AsyncConnectionInterface):
    """A connection, open from its first exchange on, and the exchange that is under way on it."""

    def __init__(self, network: Network, origin: httpcore2.Origin, idle_seconds: float) -> None:
        self._network = network
        self._origin = origin
        self._idle_seconds = idle_seconds
        self._stream: trio.abc.Stream | None = None
        self._is_busy = False
        self._is_closed = False
        self._expires = 0.0

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        """Have the question of ``request`` answered. Any exception closes the connection.

        Raises:
            ConnectionNotAvailable: it is in use, or was closed. The pool has another one then.
            EgressError: as of ``Network`` and ``Exchange``.
        """
        if self._is_busy or self._is_closed:
            raise httpcore2.ConnectionNotAvailable
        self._is_busy = True
        try:
            # The server has closed it, or has sent what no request asked for.
            if self._stream is not None and _is_readable(self._stream):
                raise httpcore2.ConnectionNotAvailable
            stream = self._stream = self._stream or await self._opened()
            method, target, headers, content = request.extensions[QUESTION]
            exchange = Exchange(stream, is_head=method == "HEAD")
            head = await exchange.ask(method, target, headers, content)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.aclose()
            raise
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        answer = StreamingResponse(head.status_code, headers, exchange.body())
        end = _End(self, exchange)
        return httpcore2.Response(answer.status, content=end, extensions={ANSWER: answer})

    async def ended(self, exchange: Exchange) -> None:
        """Keep the connection for another exchange, or close it."""
        if exchange.is_over:
            self._is_busy = False
            self._expires = trio.current_time() + self._idle_seconds
        else:
            await self.aclose()

    async def aclose(self) -> None:
        """Close it. May be called twice."""
        self._is_closed = True
        if self._stream is not None:
            await self._stream.aclose()

    # What the pool asks.

    def can_handle_request(self, origin: httpcore2.Origin) -> bool:
        return origin == self._origin

    def is_connected(self) -> bool:
        return self._stream is not None and not self._is_closed

    def is_available(self) -> bool:
        return self.is_idle()

    def is_idle(self) -> bool:
        return self.is_connected() and not self._is_busy

    def has_expired(self) -> bool:
        return self.is_idle() and trio.current_time() >= self._expires

    def is_closed(self) -> bool:
        return self._is_closed

    async def _opened(self) -> trio.abc.Stream:
        host = self._origin.host.decode()
        stream = await self._network.connect(host, self._origin.port)
        if self._origin.scheme == b"https":
            stream = await self._network.start_tls(stream, host)
        return stream


class _End:
    """Stands for the body in the pool, which closes it: the pool itself reads nothing."""

    def __init__(self, connection: _Connection, exchange: Exchange) -> None:
        self._connection = connection
        self._exchange = exchange

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self._exchange.body()

    async def aclose(self) -> None:
        await self._connection.ended(self._exchange)


def _is_readable(stream: trio.abc.Stream) -> bool:
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return isinstance(stream, trio.SocketStream) and stream.socket.is_readable()

"""The default HTTP client: the transport of httpx2, with our network as the backend of its pool."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import httpcore2
import trio

from proxy.egress.answer_meter import READ_BYTES, AnswerMeter
from proxy.egress.endpoint import Origin
from proxy.egress.errors import BadAnswer, ConnectFailed, NoAnswer
from proxy.egress.http_client import Method, StreamingResponse
from proxy.egress.network import Network

GATHERED_BYTES = 256 * 1024
"""The most bytes of a body that are gathered into one piece. Each piece passes the layers of the
pool and of its parser, which costs as much as a few reads, and is copied there."""

GATHERING_SECONDS = 0.1
"""How long bytes are held back to gather more. A fraction of the windows over which rates are
measured (``MIN_BYTES_PER_SECOND``, ``proxy.egress.pressure``)."""


class Httpx2Client:
    """Sends requests over kept-alive connections.

    Args:
        network: opens every connection.
        max_idle: idle connections kept, for all hosts together.
        idle_seconds: how long a connection may stay idle.
    """

    def __init__(self, network: Network, *, max_idle: int, idle_seconds: float) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            # The network does TLS itself. This context is never used; it is here so that the pool
            # does not load CA files.
            ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            max_connections=None,
            max_keepalive_connections=max_idle,
            keepalive_expiry=idle_seconds,
            network_backend=_Backend(network),
        )

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
        url = httpcore2.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=target)
        pairs = [("Host", origin.authority), *headers.items()]
        asked = _Asked(origin.host, origin.port, AnswerMeter(is_head=method == "HEAD"))
        with _asking(asked):
            async with self._pool.stream(method, url, headers=pairs, content=content) as response:
                yield StreamingResponse(
                    response.status,
                    {
                        name.decode("latin-1").lower(): value.decode("latin-1")
                        for name, value in response.headers
                    },
                    response.aiter_stream(),
                )

    async def close_expired(self) -> None:
        """See ``HttpClient.close_expired``. The pool by itself closes them only at its next use."""
        for connection in self._pool.connections:
            if connection.is_idle() and connection.has_expired():
                await connection.aclose()

    async def aclose(self) -> None:
        """See ``HttpClient.aclose``."""
        await self._pool.aclose()


class _Asked(NamedTuple):
    """A request.

    Attributes:
        meter: measures the answer. It also tells whether a connection broke before the first byte;
            the pool's errors do not.
    """

    host: str
    port: int
    meter: AnswerMeter


# This task's request. The pool reads, and chooses a connection, in the task that sends the
# request, so this can be a context variable.
_asked: ContextVar[_Asked | None] = ContextVar("asked", default=None)


def _meter() -> AnswerMeter:
    asked = _asked.get()
    if asked is None:
        raise RuntimeError("the pool reads for no request")
    return asked.meter


@contextmanager
def _asking(asked: _Asked) -> Iterator[None]:
    """Make this the task's request, and raise the pool's errors as ours."""
    _asked.set(asked)
    try:
        yield
    except httpcore2.ConnectError as error:
        raise ConnectFailed(str(error)) from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        broken = BadAnswer if asked.meter.received else NoAnswer
        raise broken(f"{type(error).__name__}: {error}") from error
    finally:
        _asked.set(None)


class _Backend(httpcore2.AsyncNetworkBackend):
    def __init__(self, network: Network) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        stream = await self._network.connect(host, port)
        return _Stream(self._network, stream, (host, port))


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(self, network: Network, stream: trio.abc.Stream, peer: tuple[str, int]) -> None:
        self._network = network
        self._stream = stream
        self._peer = peer
        self._has_surplus = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        meter = _meter()
        try:
            if meter.body_left > READ_BYTES:
                data = await self._gather(meter)
            else:
                data = meter.feed(bytes(await self._stream.receive_some(READ_BYTES)))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise httpcore2.ReadError(_cause(error)) from error
        self._has_surplus = meter.has_surplus
        return data

    async def _gather(self, meter: AnswerMeter) -> bytes:
        """The next bytes of a body of declared length, in one piece however they arrive.

        Ends with the piece, with the body, at its end of the connection, or ``GATHERING_SECONDS``
        after the first bytes.
        """
        # One byte more than is due shows that more was sent: a TLS record cannot be looked into.
        piece = memoryview(bytearray(min(meter.body_left, GATHERED_BYTES) + 1))
        size = await self._receive_into(piece)
        wanted, gathered = len(piece) - 1, meter.take(size)
        with trio.move_on_after(GATHERING_SECONDS):
            while size and gathered < wanted:
                size = await self._receive_into(piece[gathered:])
                gathered += meter.take(size)
        return bytes(piece[:gathered])

    async def _receive_into(self, buffer: memoryview) -> int:
        if isinstance(self._stream, trio.SocketStream):
            return await self._stream.socket.recv_into(buffer)
        data = await self._stream.receive_some(min(len(buffer), READ_BYTES))
        buffer[: len(data)] = data
        return len(data)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await self._stream.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore2.WriteError(_cause(error)) from error

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        secured = await self._network.start_tls(self._stream, server_hostname or "")
        return _Stream(self._network, secured, self._peer)

    def get_extra_info(self, info: str) -> Any:
        # The pool asks this about an idle connection, and closes it if it is readable: the server
        # has closed it, or has sent what no request asked for.
        if info == "is_readable":
            return self._has_surplus or (self._may_be_taken() and _is_readable(self._stream))
        return None

    def _may_be_taken(self) -> bool:
        """Whether the pool may give this connection to the request that it asks for.

        It asks about all of them, before each request and after it: a system call each.
        """
        asked = _asked.get()
        if asked is None:  # it looks for those to close
            return True
        return not asked.meter.received and self._peer == (asked.host, asked.port)


def _is_readable(stream: trio.abc.Stream) -> bool:
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return isinstance(stream, trio.SocketStream) and stream.socket.is_readable()


def _cause(error: BaseException) -> str:
    return str(error.__cause__ or error)

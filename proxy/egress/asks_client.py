"""The second HTTP client, asks, over the same network; ``fetch.client`` selects it.

It opens a connection per request. docs/clients.md says how to install it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import anyio
import asks  # type: ignore[import-untyped]
import trio

from proxy.egress.answer_meter import READ_BYTES, AnswerMeter
from proxy.egress.endpoint import Origin
from proxy.egress.errors import BadAnswer, EgressError, NoAnswer
from proxy.egress.http_client import Method, StreamingResponse
from proxy.egress.network import Network

# asks looks up the charset of every answer among Python's codecs. That imports modules by a name
# that a stranger chose, and Python remembers each such name for ever.
asks.response_objects.BaseResponse._guess_encoding = lambda response: None


class AsksClient:
    """Sends each request by asks, over a connection of its own."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @asynccontextmanager
    async def request(
        self, method: Method, origin: Origin, target: str, headers: Mapping[str, str]
    ) -> AsyncIterator[StreamingResponse]:
        """See ``HttpClient.request``."""
        session = _Session(self._network, origin, AnswerMeter(is_head=method == "HEAD"))
        try:
            response = await session.ask(method, target, headers)
            # asks reads header fields as UTF-8.
            headers = {
                str(k).lower(): str(v).encode().decode("latin-1")
                for k, v in response.headers.items()
            }
            yield StreamingResponse(response.status_code, headers, _body(response.body))
        finally:
            if session.stream is not None:
                await trio.aclose_forcefully(session.stream)

    async def close_expired(self) -> None:
        """See ``HttpClient.close_expired``. Nothing stays open between requests."""

    async def aclose(self) -> None:
        """See ``HttpClient.aclose``. Nothing stays open between requests."""


class _Session(asks.Session):  # type: ignore[misc]
    """A session for one request. Its only connection comes from our network."""

    def __init__(self, network: Network, origin: Origin, meter: AnswerMeter) -> None:
        super().__init__()
        self._network = network
        self._origin = origin
        self._meter = meter
        self._socket: _Socket | None = None
        self.stream: trio.abc.Stream | None = None

    async def ask(self, method: Method, target: str, headers: Mapping[str, str]) -> Any:
        """Send the request, and return the head of the answer."""
        try:
            with _mapped_errors():
                return await self.request(
                    method,
                    f"{self._origin}{target}",
                    headers={"Host": self._origin.authority, **headers},
                    stream=True,
                    follow_redirects=False,
                    retries=0,
                    connection_timeout=None,  # the caller sets the deadline
                )
        except BadAnswer as error:
            if self._socket is None or self._socket.meter.received:
                raise
            raise NoAnswer(str(error)) from error

    async def _connect(self, host_loc: str) -> tuple[_Socket, str]:
        host, port = self._origin.host, self._origin.port
        self.stream = await self._network.connect(host, port)
        if self._origin.scheme == "https":
            self.stream = await self._network.start_tls(self.stream, host)
        self._socket = _Socket(self.stream, self._meter)
        return self._socket, str(port)


class _Socket:
    """Wraps a Trio stream in the part of anyio's stream interface that asks uses."""

    host: str
    port: str

    def __init__(self, stream: trio.abc.Stream, meter: AnswerMeter) -> None:
        self._stream = stream
        self._active = True  # asks reads and writes this name
        self.meter = meter

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise anyio.BrokenResourceError from error

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        try:
            # An empty chunk tells h11, below asks, that the stream has ended.
            data = bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise anyio.BrokenResourceError from error
        return self.meter.feed(data)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _body(body: Any) -> AsyncGenerator[bytes, None]:
    with _mapped_errors():
        if isinstance(body, bytearray):  # asks does not stream a body of length 0
            yield bytes(body)
            return
        body.content_encoding = None  # never decompress
        async with aclosing(aiter(body)) as chunks:
            async for chunk in chunks:
                yield bytes(chunk)


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except EgressError:
        raise
    except Exception as error:
        # On an answer that is not valid HTTP, asks fails with any exception of its parser, such as
        # AttributeError, UnicodeDecodeError or ValueError.
        raise BadAnswer(f"{type(error).__name__}: {error}") from error

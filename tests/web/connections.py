"""A client and a server that share one of our connections over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import h11
import hypercorn
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.typing import ConnectionState

from proxy.web.hypercorn_connection import Connection, install
from proxy.web.hypercorn_protocols import DrainingContext
from tests.web import PATIENCE

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nHost: proxy.test\r\n\r\n"


class Noted(trio.abc.HalfCloseableStream):
    """A socket that notes what is written, piece by piece."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.writes: list[bytes] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Secured(Noted):
    """The same, as if over TLS, which chose HTTP/2 by ALPN."""

    async def do_handshake(self) -> None:
        """Do nothing."""

    def selected_alpn_protocol(self) -> str:
        """Return the name of HTTP/2."""
        return "h2"

    @property
    def transport_stream(self) -> Self:
        """The stream below TLS."""
        return self


class Talk:
    """A client, and the server's end of its connection."""

    def __init__(self, client: trio.SocketStream, server: Noted, context: DrainingContext) -> None:
        self.client = client
        self.server = server
        self.context = context
        self.ended = trio.Event()
        self._protocol = h11.Connection(h11.CLIENT)
        self.heads: list[h11.Response] = []

    async def answer(self, method: str = "GET") -> bytes:
        """The body of the next answer to a request that was sent."""
        self._protocol.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        self._protocol.send(h11.EndOfMessage())
        body = b""
        with trio.fail_after(PATIENCE):
            while True:
                event = self._protocol.next_event()
                if event is h11.NEED_DATA:
                    self._protocol.receive_data(await self.client.receive_some())
                elif isinstance(event, h11.Response):
                    self.heads.append(event)
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    if self._protocol.our_state is h11.DONE:
                        self._protocol.start_next_cycle()
                    return body


@asynccontextmanager
async def talking(
    app: App, keep_alive: float = 60, kind: type[Noted] = Noted
) -> AsyncIterator[Talk]:
    """Serve one connection with ``app`` while the block runs."""
    install()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:
        client = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        server = kind(await listener.accept())
        wrapped = ASGIWrapper(app)  # type: ignore[arg-type]
        context = DrainingContext(others_accept=False)
        config = hypercorn.Config()
        config.keep_alive_timeout = keep_alive
        connection = Connection(
            wrapped,
            config,
            context,
            ConnectionState({}),
            server,
        )
        talk = Talk(client, server, context)

        async def serve() -> None:
            await connection.run()
            talk.ended.set()

        nursery.start_soon(serve)
        async with client:
            yield talk
        nursery.cancel_scope.cancel()


def app_of(*pieces: bytes, status: int = 200) -> App:
    """One that sends the head of an answer, and then its body in pieces."""

    async def app(_scope: dict[str, Any], _receive: Any, send: Any) -> None:
        length = str(sum(map(len, pieces))).encode()
        headers = [] if status == 304 else [(b"content-length", length)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in pieces[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": pieces[-1]})

    return app

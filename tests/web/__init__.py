"""The HTTP face, asked over ASGI as Hypercorn asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import h11
import trio
from quart_trio.testing.app import TrioTestApp

from proxy.config import Config
from proxy.service import Service
from proxy.web.app import ImageProxyApp, create_app
from proxy.web.door import plain_request, start_of_head
from proxy.web.responses import HttpResponse, PendingResponse
from tests.fakes.world import World

PATIENCE = 30
"""Seconds after which an answer that does not come fails a test."""

SECURITY = {
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
}
"""The headers that every answer about an image or a blob has."""


SHARED = {
    "access-control-expose-headers": (
        "Accept-Ranges, Content-Disposition, Content-Range, ETag, Server-Timing, X-Cache"
    ),
    "timing-allow-origin": "*",
}
"""The headers of a 200 that let scripts of other origins read it."""


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        headers: by lower-case name.
        pairs: the same as they were sent.
    """

    status: int
    headers: dict[str, str]
    pairs: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


WAYS = ("ASGI", "door")
"""How a request reaches the application: through its server, or before that where it can be."""


class Way:
    """The way of the test under way; the fixture ``both_ways`` changes it.

    Attributes:
        opened: how many requests the door answered.
    """

    name = WAYS[0]
    opened = 0


class Exchange:
    """One request to an application, and what has come of it.

    Args:
        target: as in a request line.

    Attributes:
        receives: how often the application asked for the body or the client's leaving.
    """

    def __init__(
        self, app: ImageProxyApp, scope: dict[str, Any], body: bytes, target: str = ""
    ) -> None:
        self._app = app
        self._target = target
        self._scope = scope
        self._body: bytes | None = body
        self._gone = trio.Event()
        self._start: dict[str, Any] | None = None
        self._received = b""
        self.receives = 0

    def leave(self) -> None:
        """Be a client that closes its connection."""
        self._gone.set()

    async def run(self) -> Reply | None:
        """Run it to its end; None for no answer."""
        if Way.name == "door" and self._target and self._scope["http_version"] == "1.1":
            answer = self._ask_the_door()
            if answer is not None:
                Way.opened += 1
                return await self._at_the_door(answer)
        await self._app(self._scope, self._receive, self._send)  # type: ignore[arg-type]
        if self._start is None:
            return None
        return _reply(self._start["status"], list(self._start["headers"]), self._received)

    def _ask_the_door(self) -> HttpResponse | PendingResponse | None:
        """Ask the door, in the bytes of HTTP/1.1; None: it leaves the request to the server."""
        lines = [f"{self._scope['method']} {self._target} HTTP/1.1".encode()]
        lines += [name.title() + b": " + value for name, value in self._scope["headers"]]
        data = b"\r\n".join((*lines, b"", self._body or b""))
        scope = plain_request(data, self._app.images)
        return None if scope is None else self._app.answer(scope)

    async def _at_the_door(self, answer: HttpResponse | PendingResponse) -> Reply | None:
        """What comes of an answer; None for a client that leaves before it is there."""
        if not isinstance(answer, HttpResponse):
            found = await self._awaited(answer)
            if found is None:
                return None
            answer = found
        method = self._scope["method"]
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target=self._target, headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        client.receive_data(start_of_head(answer) + b"\r\n")
        client.receive_data(b"" if method == "HEAD" else answer.body)
        head = client.next_event()
        assert isinstance(head, h11.Response)
        body = b""
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage), "more or less than Content-Length says"
        return _reply(head.status_code, list(head.headers), body)

    async def _awaited(self, pending: PendingResponse) -> HttpResponse | None:
        found: HttpResponse | None = None
        self.receives += 1  # somebody listens for its client
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await self._gone.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            found = await pending()
            nursery.cancel_scope.cancel()
        return found

    async def _receive(self) -> dict[str, Any]:
        self.receives += 1
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            assert self._start is None
            self._start = message
        else:
            assert message["type"] == "http.response.body"
            assert self._start is not None
            self._received += message.get("body", b"")


def _reply(status: int, pairs: list[tuple[bytes, bytes]], body: bytes) -> Reply:
    headers = {name.decode(): value.decode("latin-1") for name, value in pairs}
    assert len(headers) == len(pairs), f"a header came twice: {pairs}"
    return Reply(status, headers, pairs, body)


class Client:
    """Asks an application."""

    def __init__(self, app: ImageProxyApp) -> None:
        self.app = app

    @property
    def service(self) -> Service:
        """The one that the application runs."""
        assert self.app.responder.service is not None
        return self.app.responder.service

    def exchange(
        self,
        target: str,
        *headers: tuple[str, str],
        method: str = "GET",
        body: bytes = b"",
        http_version: str = "1.1",
        address: str = "192.0.2.1",
    ) -> Exchange:
        """A request that has not begun.

        Args:
            target: path and query as they stand in a request line, in ASCII.
            address: the client's.
        """
        raw, _, query = target.encode("ascii").partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": http_version,
            "method": method,
            "scheme": "http",
            "path": unquote(raw.decode("ascii")),
            "raw_path": raw,
            "query_string": query,
            "root_path": "",
            "headers": [
                (b"host", b"proxy.test"),
                *((name.lower().encode(), value.encode("latin-1")) for name, value in headers),
            ],
            "client": (address, 50000),
            "server": ("127.0.0.1", 8080),
            "state": {},
            "extensions": {},
        }
        return Exchange(self.app, scope, body, target)

    async def ask(
        self,
        target: str,
        *headers: tuple[str, str],
        method: str = "GET",
        body: bytes = b"",
        address: str = "192.0.2.1",
    ) -> Reply:
        """One request and its answer."""
        exchange = self.exchange(target, *headers, method=method, body=body, address=address)
        with trio.fail_after(PATIENCE):
            reply = await exchange.run()
        assert reply is not None, f"no answer to {method} {target}"
        return reply

    async def get(self, target: str, *headers: tuple[str, str]) -> Reply:
        return await self.ask(target, *headers)

    async def head(self, target: str, *headers: tuple[str, str]) -> Reply:
        return await self.ask(target, *headers, method="HEAD")

    async def metric(self, sample: str) -> float:
        """The value of a sample, named with its labels as ``/metrics`` writes them; 0 if absent."""
        for line in (await self.get("/metrics")).text.splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0


@asynccontextmanager
async def running(app: ImageProxyApp) -> AsyncIterator[Client]:
    """Start the application, and stop it after the block."""
    # Quart's six seconds are too short on a busy machine, and what it gives up, it leaves open.
    async with TrioTestApp(app, startup_timeout=PATIENCE, shutdown_timeout=PATIENCE):
        yield Client(app)


@asynccontextmanager
async def serving(world: World, config: Config | None = None) -> AsyncIterator[Client]:
    """The application on the networks of ``world``."""
    networks = (world.network, world.directory_network)
    async with running(create_app(config or world.config(), networks=networks)) as client:
        yield client


def img(did: str, cid: str, preset: str = "avatar_thumbnail", suffix: str = "") -> str:
    """The path of an image, of the smallest preset if not specified."""
    return f"/img/{preset}/plain/{did.replace('%', '%25')}/{cid}{suffix}"

"""The HTTP face, asked over ASGI as Hypercorn asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import trio

from proxy.config import Config
from proxy.service import Service
from proxy.web.app import ImageProxyApp, create_app
from tests.fakes.world import World

PATIENCE = 30.0
"""Seconds after which an answer that does not come fails a test."""

SECURITY = {
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
}
"""The headers that every answer about an image or a blob has."""


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


class Exchange:
    """One request to an application, and what has come of it.

    Attributes:
        receives: how often the application asked for the body or the client's leaving.
    """

    def __init__(self, app: ImageProxyApp, scope: dict[str, Any], body: bytes) -> None:
        self._app = app
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
        await self._app(self._scope, self._receive, self._send)  # type: ignore[arg-type]
        if self._start is None:
            return None
        pairs = list(self._start["headers"])
        headers = {name.decode(): value.decode("latin-1") for name, value in pairs}
        assert len(headers) == len(pairs), f"a header came twice: {pairs}"
        return Reply(self._start["status"], headers, pairs, self._received)

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
        return Exchange(self.app, scope, body)

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
    async with app.test_app():
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

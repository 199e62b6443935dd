"""Asks a running server for its figures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from urllib.parse import urlsplit

import trio
from pydantic import TypeAdapter, ValidationError

from proxy.egress.endpoint import configured_origin
from proxy.egress.errors import ConnectFailed, EgressError
from proxy.egress.guard import GuardedNetwork
from proxy.egress.http_client import HttpClient
from proxy.egress.httpx2_client import Httpx2Client
from proxy.egress.network import Network
from proxy.observability.state import State
from proxy.shared.binds import parse_bind
from proxy.tools.top.figures import Scrape

PATIENCE = 10.0
"""Seconds for an answer, as Prometheus waits: a worker that hangs takes two of them."""

MAX_BYTES = 16 * 1024 * 1024
"""Of an answer: a few hundred series for each preset."""

_STATE = TypeAdapter(State)


class NoAnswer(Exception):
    """The server does not answer now; the message is for a person."""


class Refused(Exception):
    """The server will not answer this whoever asks again; the message is for a person."""


class RunningServer:
    """A server that is asked again and again, over one connection.

    Args:
        place: its URL, or ``unix:`` and the path of its socket.
        token: of an operator; empty: the state is not asked for.
    """

    def __init__(self, place: str, token: str, client: HttpClient) -> None:
        self.place = place
        self._token = token
        self._client = client
        url = "http://localhost" if place.startswith("unix:") else place
        self._origin, path = configured_origin(url)
        self._path = path.rstrip("/")

    async def scrape(self) -> Scrape:
        """Return the metrics of now.

        Raises:
            NoAnswer, Refused
        """
        status, body = await self._get("/metrics")
        if status != 200:
            raise Refused(f"{self.place}/metrics answers {status}: give the server's own address")
        try:
            return Scrape.of(body.decode(), trio.current_time())
        except ValueError as error:
            raise Refused(f"{self.place} is no image proxy: {error}") from None

    async def state(self) -> State | None:
        """Return the state of now; None without a token.

        Raises:
            NoAnswer, Refused
        """
        if not self._token:
            return None
        status, body = await self._get("/admin/state")
        if status in _REFUSALS:
            raise Refused(f"{self.place}: {_REFUSALS[status]}")
        if status != 200:
            raise NoAnswer(f"{self.place}/admin/state answers {status}")
        try:
            return _STATE.validate_json(body)
        except ValidationError:
            raise Refused(f"{self.place}/admin/state tells what this release cannot read") from None

    async def _get(self, path: str) -> tuple[int, bytes]:
        headers = {"Accept": "*/*"}
        if path.startswith("/admin"):
            headers["Authorization"] = f"Bearer {self._token}"
        body = bytearray()
        try:
            with trio.fail_after(PATIENCE):
                asked = self._client.request("GET", self._origin, self._path + path, headers)
                async with asked as answer, aclosing(answer.body) as parts:
                    async for part in parts:
                        body += part
                        if len(body) > MAX_BYTES:
                            raise Refused(
                                f"{self.place}{path} is larger than any of an image proxy"
                            )
                    return answer.status, bytes(body)
        except trio.TooSlowError:
            raise NoAnswer(f"{self.place} did not answer in {PATIENCE:g} s") from None
        except EgressError as error:
            raise NoAnswer(f"{self.place} does not answer: {error}") from None


_REFUSALS = {
    401: "the server does not know this token",
    404: "the server has no operators: no server.admin_token is configured there",
    429: "too many wrong tokens came from here; wait a minute",
}


def checked_place(text: str) -> str:
    """Return what ``RunningServer`` takes, from what somebody typed.

    Raises:
        ValueError: it is none; the message says what is expected.
    """
    if text.startswith("unix:"):
        return str(parse_bind(text))
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must be http://HOST:PORT, https://HOST or unix:/PATH")
    return text.rstrip("/")


@asynccontextmanager
async def asked_server(place: str, token: str) -> AsyncIterator[RunningServer]:
    """Open what asks the server; its connection is closed with the block."""
    network: Network = GuardedNetwork(allow_private_hosts=True)
    if place.startswith("unix:"):
        network = _UnixSocket(place.removeprefix("unix:"))
    client = Httpx2Client(network, max_idle=1, idle_seconds=30)
    try:
        yield RunningServer(place, token, client)
    finally:
        with trio.CancelScope(shield=True):
            await client.aclose()


class _UnixSocket:
    """A ``Network`` with one host."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def connect(self, _host: str, _port: int) -> trio.abc.Stream:
        """See ``Network.connect``."""
        try:
            return await trio.open_unix_socket(self._path)
        except OSError as error:
            raise ConnectFailed(str(error)) from None

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        """See ``Network.start_tls``; nobody asks for it on a socket of this machine."""
        await trio.aclose_forcefully(stream)
        raise ConnectFailed(f"no TLS for {host}")

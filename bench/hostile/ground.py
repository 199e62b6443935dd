"""What attacks stand on: an uplink of limited speed, a directory, PDSes, and clients."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import dns.message
import dns.rrset
import h11
import trio

from bench.client import Answer, get
from bench.hostile import blobs
from bench.pictures import cid_of
from bench.plain_server import GONE, Respond, answer_plain
from bench.upstream import BACKLOG, LOOPBACK, account

UPLINK = 10e6 / 8
"""Bytes a second: 10 Mbit/s."""

_PIECE = 16 * 1024
_PAUSE = 0.05
"""Seconds before a client comes again whose connection was closed."""

_REQUEST = 520
"""Bytes that a request is counted as: the client's packets of a connection of its own."""

_ROUND_TRIP = 0.05
"""Seconds on average between an answer and the next request of a client: the network that is not
here."""

_HONEST_LATENCY = 0.02
"""Seconds before the directory answers for an honest account."""

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Uplink:
    """All that an attacker sends goes through one line of limited speed, in turn.

    Attributes:
        sent: bytes so far.
    """

    def __init__(self, bytes_per_second: float = UPLINK) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0
        self.sent = 0

    async def send(self, stream: trio.SocketStream, data: bytes) -> None:
        """Send ``data``, in pieces between which others have their turn."""
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            await self.turn(len(piece))
            await stream.send_all(piece)

    async def turn(self, length: int) -> None:
        """Wait until ``length`` bytes may be sent."""
        begins = max(trio.current_time(), self._free_at)
        self._free_at = begins + length / self._rate
        await trio.sleep_until(begins)
        self.sent += length


@dataclass(frozen=True, slots=True)
class Target:
    """The server that is attacked.

    Attributes:
        port: of the proxy.
        hot: path of a picture that is in its memory.
        admin_token: of the proxy, for what its operator does.
        seconds: how long the attack is watched.
    """

    port: int
    hot: str
    admin_token: str
    seconds: float


@dataclass(slots=True)
class Ground:
    """The attacker's side.

    Attributes:
        target: what is attacked; known when the attack begins.
        documents: of hostile accounts by DID, made when they are asked for.
        directory_delay: seconds before the directory and the name server answer for a hostile
            account.
        asked: answers to hostile requests, by status or error.
        wrong: answers that no attacker may get.
    """

    nursery: trio.Nursery
    honest_port: int
    target: Target = field(init=False)
    uplink: Uplink = field(default_factory=Uplink)
    documents: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    directory_delay: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def number(self) -> int:
        """Another one each time."""
        return next(self._numbers)

    def hostile_did(self) -> str:
        """Another one each time; the directory has no document of it."""
        return account(self.number(), hanging=True)

    def account_at(self, endpoint: str) -> str:
        """The DID of a new account at a PDS."""
        did = self.hostile_did()
        self.documents[did] = partial(blobs.document, did, endpoint)
        return did

    async def answer_for_directory(self, stream: trio.SocketStream, target: str) -> None:
        """The directory: honest accounts are at the honest PDS, the others where attacks say."""
        did = target.removeprefix("/")
        if did.startswith("did:plc:a"):
            await trio.sleep(_HONEST_LATENCY)
            body = blobs.document(did, f"http://{LOOPBACK}:{self.honest_port}")
            await stream.send_all(head(len(body)) + body)
            return
        await trio.sleep(self.directory_delay)
        make = self.documents.get(did)
        if make is None:
            await stream.send_all(_NOT_FOUND)
            return
        body = make()
        await self.uplink.send(stream, head(len(body)) + body)

    async def answer_dns(self, socket: trio.socket.SocketType) -> None:
        """The name server: each handle is one of a hostile account."""
        while True:
            data, peer = await socket.recvfrom(4096)
            self.nursery.start_soon(self._answer_dns, socket, data, peer)

    async def _answer_dns(self, socket: trio.socket.SocketType, data: bytes, peer: Any) -> None:
        await trio.sleep(self.directory_delay)
        question = dns.message.from_wire(data)
        answer = dns.message.make_response(question)
        name = question.question[0].name
        text = f'"did={self.hostile_did()}"'
        answer.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", text))
        await socket.sendto(answer.to_wire(), peer)

    async def pds(self, respond: Respond, host: str = "127.1.1.1") -> str:
        """Start a PDS; the URL of it."""
        return f"http://{host}:{await self.listen(respond, host)}"

    async def listen(self, respond: Respond, host: str) -> int:
        """Answer requests; the port."""
        listeners = await trio.open_tcp_listeners(0, host=host, backlog=BACKLOG)
        serve = partial(trio.serve_listeners, partial(answer_plain, respond), listeners)
        self.nursery.start_soon(serve)
        port: int = listeners[0].socket.getsockname()[1]
        return port

    async def pds_of(self, blob: Callable[[str], bytes], host: str = "127.1.1.1") -> str:
        """Start a PDS that has the blob that ``blob`` makes of a CID; the URL of it."""

        async def respond(stream: trio.SocketStream, target: str) -> None:
            data = blob(parse_qs(urlsplit(target).query)["cid"][0])
            await self.uplink.send(stream, head(len(data), "image/jpeg") + data)

        return await self.pds(respond, host)

    async def ask(self, path: str) -> Answer | None:
        """GET ``path`` from the proxy over a connection of its own; None if there is no answer."""
        await trio.sleep(random.uniform(0, 2 * _ROUND_TRIP))
        await self.uplink.turn(_REQUEST)
        try:
            answer = await get(self.target.port, path)
        except (*GONE, h11.ProtocolError, trio.TooSlowError) as error:
            self.asked[type(error).__name__] += 1
            await trio.sleep(_PAUSE)
            return None
        self.asked[str(answer.status)] += 1
        return answer

    async def clients(self, count: int, ask: Callable[[], Awaitable[object]]) -> None:
        """``count`` clients that call ``ask`` again and again, until cancelled."""

        async def client() -> None:
            while True:
                await ask()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(client)

    @asynccontextmanager
    async def connected(self, receive_buffer: int = 0) -> AsyncIterator[trio.SocketStream]:
        """A connection to the proxy; that the proxy ends it is no error, and is counted."""
        socket = trio.socket.socket()
        if receive_buffer:
            socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        await trio.sleep(random.uniform(0, 2 * _ROUND_TRIP))
        try:
            with socket:
                await socket.connect((LOOPBACK, self.target.port))
                yield trio.SocketStream(socket)
        except* GONE:  # also from a nursery within the block
            self.asked["connection ended"] += 1
            await trio.sleep(_PAUSE)


def head(length: int, kind: str = "application/json") -> bytes:
    """The head of an answer of ``length`` bytes."""
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()


class Numbered:
    """Blobs that are made of a number when they are needed, and known by their CID."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        self._make = make
        self._numbers: dict[str, int] = {}

    def cid(self, number: int) -> str:
        """The CID of a blob."""
        cid = cid_of(self._make(number))
        self._numbers[cid] = number
        return cid

    def get(self, cid: str) -> bytes:
        """A blob whose CID was asked for before."""
        return self._make(self._numbers[cid])

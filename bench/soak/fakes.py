"""PDSes that fail, each in its own way and all the time: what strangers' accounts lead to.

Each is a ``did:web`` account on a port of its own, whose document it serves itself.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote, urlsplit

import trio

from bench.pictures import Size, cid_of, draw
from bench.plain_server import answer_plain
from bench.soak.answers import Target
from bench.upstream import BACKLOG, LOOPBACK

_SIZE = Size(320, 240)
_PICTURE = draw(_SIZE, 1)
_OTHER = draw(_SIZE, 2)
_TRICKLE = 100
"""Bytes a second: less than any host may send."""


def _head(length: int, status: str = "200 OK", *lines: str) -> bytes:
    fields = ("Content-Type: image/jpeg", f"Content-Length: {length}", "Connection: close", *lines)
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode()


async def _hang(stream: trio.SocketStream) -> None:
    async for _ in stream:
        pass


async def _send(stream: trio.SocketStream, *, data: bytes, length: int) -> None:
    await stream.send_all(_head(length) + data)


async def _trickle(stream: trio.SocketStream) -> None:
    await stream.send_all(_head(len(_PICTURE)))
    for start in range(0, len(_PICTURE), _TRICKLE):
        await stream.send_all(_PICTURE[start : start + _TRICKLE])
        await trio.sleep(1)


async def _refuse(stream: trio.SocketStream, *, status: str, lines: tuple[str, ...] = ()) -> None:
    await stream.send_all(_head(0, status, *lines))


async def _reset(stream: trio.SocketStream) -> None:
    # Closed with a linger of 0 seconds, which is a RST.
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, bytes([1] + [0] * 7))


@dataclass(frozen=True, slots=True)
class Fake:
    """A way to fail.

    Attributes:
        blob: what its CID is of.
        statuses: what the proxy answers. 503: also where a slow host gives up its place.
    """

    name: str
    respond: Callable[[trio.SocketStream], Awaitable[None]]
    statuses: frozenset[int]
    blob: bytes = _PICTURE


_NO_IMAGE = b"no image at all\n" * 40
_DAMAGED = _PICTURE[: len(_PICTURE) // 2]

FAKES = (
    Fake("hangs", _hang, frozenset({503, 504})),
    Fake("trickles", _trickle, frozenset({502, 503, 504})),
    Fake("resets", _reset, frozenset({502})),
    Fake("ends early", partial(_send, data=_DAMAGED, length=len(_PICTURE)), frozenset({502})),
    Fake("has another picture", partial(_send, data=_OTHER, length=len(_OTHER)), frozenset({502})),
    Fake("fails", partial(_refuse, status="500 Internal Server Error"), frozenset({502})),
    Fake(
        "is asked too much",
        partial(_refuse, status="429 Too Many Requests", lines=("Retry-After: 3",)),
        frozenset({503}),
    ),
    Fake("has nothing", partial(_refuse, status="404 Not Found"), frozenset({404})),
    Fake(
        "has no picture",
        partial(_send, data=_NO_IMAGE, length=len(_NO_IMAGE)),
        frozenset({400}),
        _NO_IMAGE,
    ),
    Fake(
        "has half a picture",
        partial(_send, data=_DAMAGED, length=len(_DAMAGED)),
        frozenset({422}),
        _DAMAGED,
    ),
)


async def open_fakes(
    preset: str, *, task_status: trio.TaskStatus[list[Target]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve all of them until cancelled; starts with what to ask for, one of each."""
    targets = []
    async with trio.open_nursery() as nursery:
        for fake in FAKES:
            listeners = await trio.open_tcp_listeners(0, host=LOOPBACK, backlog=BACKLOG)
            port = listeners[0].socket.getsockname()[1]
            did = f"did:web:localhost%3A{port}"
            answer = partial(answer_plain, partial(_respond, fake, did, port))
            nursery.start_soon(trio.serve_listeners, answer, listeners)
            path = f"/img/{preset}/plain/{quote(did, safe=':')}/{cid_of(fake.blob)}"
            targets.append(Target(path, fake.statuses))
        task_status.started(targets)


async def _respond(fake: Fake, did: str, port: int, stream: trio.SocketStream, target: str) -> None:
    if urlsplit(target).path == "/.well-known/did.json":
        body = _document(did, port)
        await stream.send_all(_head(len(body)) + body)
    else:
        await fake.respond(stream)


def _document(did: str, port: int) -> bytes:
    service = {
        "id": "#atproto_pds",
        "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": f"http://localhost:{port}",
    }
    return json.dumps({"id": did, "service": [service]}).encode()

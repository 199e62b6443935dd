"""What the proxy fetches from: a PLC directory and a PDS in one, and a PDS that hangs.

Run by the benchmarks as a process of its own, so that its work is not the proxy's. It writes its
``Manifest`` as one line to standard output, and ends when standard input, a pipe, does: an
upstream never outlives the benchmark that started it.
"""

from __future__ import annotations

import argparse
import json
import os
from base64 import b32encode
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from urllib.parse import parse_qs, urlsplit

import h11
import trio

from bench.pictures import BASES, Pictures, Size

LOOPBACK = "127.0.0.1"
RECEIVE = 64 * 1024
BACKLOG = 1024

_HANGING = "did:plc:h"
_HEALTHY = "did:plc:a"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a started upstream offers.

    Attributes:
        port: of the directory and the healthy PDS.
        hanging_port: accepts connections and never answers.
        cids: of its blobs.
    """

    port: int
    hanging_port: int
    cids: list[str]

    @classmethod
    def parse(cls, line: bytes) -> Manifest:
        """Read the line that an upstream wrote."""
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Counts:
    """What an upstream was asked, as its ``/counts`` tells.

    Attributes:
        blobs: getBlob calls by CID.
        documents: look-ups in the directory by DID.
        hanging: connections to the PDS that hangs.
    """

    blobs: dict[str, int]
    documents: dict[str, int]
    hanging: int

    @classmethod
    def parse(cls, body: bytes) -> Counts:
        """Read the body of ``/counts``."""
        return cls(**json.loads(body))


def account(number: int, *, hanging: bool = False) -> str:
    """The DID of an account, at the healthy PDS or at the one that hangs."""
    # 15 bytes are the last 24 characters of a did:plc; the first of them tells the PDS.
    digits = b32encode(number.to_bytes(15, "big")).decode().lower()
    return (_HANGING if hanging else _HEALTHY) + digits[1:]


class Upstream:
    """Answers requests, after ``latency`` seconds each.

    Args:
        pictures: the blobs. Every account has every one of them.
        latency: seconds before each answer of the directory and of the PDS.
        endpoint_of: the PDS of a DID, for its document.
    """

    def __init__(
        self, pictures: Pictures, latency: float, endpoint_of: Callable[[str], str]
    ) -> None:
        self._pictures = pictures
        self._latency = latency
        self._endpoint_of = endpoint_of
        self._blobs: Counter[str] = Counter()
        self._documents: Counter[str] = Counter()
        self._hanging = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection."""
        connection = h11.Connection(h11.SERVER)
        async with stream:
            # A proxy that is stopped, or cancels a fetch, goes away in the middle of an answer.
            with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
                while (request := await _next_request(stream, connection)) is not None:
                    status, kind, body = await self._answer(request.target.decode("ascii"))
                    await _send(stream, connection, status, kind, body)
                    if connection.our_state is not h11.DONE:
                        return
                    connection.start_next_cycle()

    async def hang(self, stream: trio.SocketStream) -> None:
        """Take what comes on one connection, and never answer."""
        self._hanging += 1
        async with stream:
            with suppress(trio.BrokenResourceError):
                async for _ in stream:
                    pass

    async def _answer(self, target: str) -> tuple[int, str, bytes]:
        url = urlsplit(target)
        if url.path == "/counts":
            return 200, "application/json", self._counts()
        await trio.sleep(self._latency)
        if url.path.startswith("/did:"):
            did = url.path[1:]
            self._documents[did] += 1
            return 200, "application/did+json", self._document(did)
        if url.path == "/xrpc/com.atproto.sync.getBlob":
            return self._blob(parse_qs(url.query).get("cid", [""])[0])
        return 200, "text/plain", b"ok\n"

    def _blob(self, cid: str) -> tuple[int, str, bytes]:
        self._blobs[cid] += 1
        data = self._pictures.get(cid)
        if data is None:
            return 400, "application/json", b'{"error": "BlobNotFound"}'
        return 200, "image/jpeg", data

    def _document(self, did: str) -> bytes:
        pds = {
            "id": "#atproto_pds",
            "type": "AtprotoPersonalDataServer",
            "serviceEndpoint": self._endpoint_of(did),
        }
        return json.dumps({"id": did, "service": [pds]}).encode()

    def _counts(self) -> bytes:
        counts = Counts(dict(self._blobs), dict(self._documents), self._hanging)
        return json.dumps(asdict(counts)).encode()


async def _next_request(
    stream: trio.SocketStream, connection: h11.Connection
) -> h11.Request | None:
    """The next request, its body skipped; None when the client has gone."""
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(RECEIVE))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif isinstance(event, h11.ConnectionClosed):
            return None


async def _send(
    stream: trio.SocketStream, connection: h11.Connection, status: int, kind: str, body: bytes
) -> None:
    headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    events: list[h11.Event] = [
        h11.Response(status_code=status, headers=headers),
        h11.Data(data=body),
        h11.EndOfMessage(),
    ]
    await stream.send_all(b"".join(connection.send(event) or b"" for event in events))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blobs", type=int, required=True, help="how many there are")
    parser.add_argument("--size", type=Size.parse, required=True, help="of the pictures")
    parser.add_argument("--bases", type=int, default=BASES, help="how many look different")
    parser.add_argument("--latency", type=float, required=True, help="seconds before an answer")
    parser.add_argument("--host", default=LOOPBACK, help="of the PDS, in DID documents")
    parser.add_argument("--hanging-host", default=LOOPBACK, help="of the PDS that hangs")
    return parser.parse_args()


async def _main(arguments: argparse.Namespace) -> None:
    pictures = Pictures(arguments.blobs, arguments.size, arguments.bases)
    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK, backlog=BACKLOG)
    hanging = await trio.open_tcp_listeners(0, host=LOOPBACK, backlog=BACKLOG)
    port, hanging_port = (each[0].socket.getsockname()[1] for each in (listeners, hanging))

    def endpoint_of(did: str) -> str:
        if did.startswith(_HANGING):
            return f"http://{arguments.hanging_host}:{hanging_port}"
        return f"http://{arguments.host}:{port}"

    upstream = Upstream(pictures, arguments.latency, endpoint_of)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, upstream.serve, listeners))
        nursery.start_soon(partial(trio.serve_listeners, upstream.hang, hanging))
        print(json.dumps(asdict(Manifest(port, hanging_port, pictures.cids))), flush=True)
        async for _ in trio.lowlevel.FdStream(os.dup(0)):
            pass
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main, _arguments())

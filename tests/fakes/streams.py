"""Servers of event streams, on the network in memory; they speak as Bluesky's own do.

``tests/moderation/feeds/test_real_labeler.py`` compares them with these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import trio
import trio_websocket
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from libipld import encode_dag_cbor, encode_multibase

from proxy.model.identifiers import Did
from tests.fakes.network import Request, Site, Wire
from tests.fakes.sites import document, new_plc_did

K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def frame(type: str, body: Any) -> bytes:
    """A message as it goes over the wire."""
    return bytes(encode_dag_cbor({"op": 1, "t": type}) + encode_dag_cbor(body))


def error_frame(error: str, message: str) -> bytes:
    return bytes(
        encode_dag_cbor({"op": -1}) + encode_dag_cbor({"error": error, "message": message})
    )


def iso(seconds: float) -> str:
    """A moment as labels have it."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class SigningKey:
    """A key of a labeler, on k256."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256K1())

    @property
    def multikey(self) -> str:
        point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        text: str = encode_multibase("z", b"\xe7\x01" + point)
        return text

    def sign(self, data: bytes) -> bytes:
        der = self._key.sign(hashlib.sha256(data).digest(), ec.ECDSA(Prehashed(SHA256())))
        r, s = decode_dss_signature(der)
        return r.to_bytes(32) + min(s, K256_ORDER - s).to_bytes(32)

    def signed(self, label: dict[str, Any]) -> dict[str, Any]:
        """A label with its signature, as ``com.atproto.label.defs#label``."""
        whole = {"ver": 1, **label}
        return {**whole, "sig": self.sign(encode_dag_cbor(whole))}


Connection = trio_websocket.WebSocketConnection
Play = Callable[[Connection], Awaitable[None]]


class Stream(Site):
    """A WebSocket server.

    Attributes:
        plays: of the next connections, one each, in place of ``play``.
        rejects: status of the answer to the next connections, in place of an upgrade.
        reject_headers, reject_body: of these answers.
        open: the connections that are open.
    """

    def __init__(self, host: str, *, port: int = 443, scheme: str = "https") -> None:
        super().__init__(host, port=port, scheme=scheme)
        self.plays: list[Play] = []
        self.rejects: list[int] = []
        self.reject_headers: list[tuple[bytes, bytes]] = []
        self.open: list[Connection] = []
        self._changed = trio.Event()

    async def play(self, connection: Connection) -> None:
        """One connection; when it returns, the connection is closed."""
        await trio.sleep_forever()

    def changed(self) -> None:
        """Wake all that wait in ``until``."""
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that a connection or a test changes."""
        while not condition():
            await self._changed.wait()

    async def serve(self, wire: Wire, stream: trio.abc.Stream) -> None:
        """See ``Site.serve``."""
        try:
            async with trio.open_nursery() as nursery:
                asked = await trio_websocket.wrap_server_stream(nursery, stream)
                headers = {name.decode(): value.decode() for name, value in asked.headers}
                self.requests.append(Request(asked.path, headers))
                self.changed()
                if self.rejects:
                    await asked.reject(
                        self.rejects.pop(0), extra_headers=self.reject_headers, body=b"{}"
                    )
                else:
                    await self._play(await asked.accept())
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        except* trio_websocket.ConnectionClosed:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _play(self, connection: Connection) -> None:
        self.open.append(connection)
        try:
            await (self.plays.pop(0) if self.plays else self.play)(connection)
            await connection.aclose()
        finally:
            self.open.remove(connection)
            self.changed()


class EventStream(Stream):
    """An event stream of atproto with its cursors (``com.atproto.sync.subscribeRepos``, say).

    Attributes:
        frames: what was sent, by sequence number.
        kept_from: what is older is not sent any more.
    """

    def __init__(self, host: str, *, port: int = 443, scheme: str = "https") -> None:
        super().__init__(host, port=port, scheme=scheme)
        self.frames: dict[int, bytes] = {}
        self.kept_from = 0

    def send(self, seq: int, message: bytes) -> None:
        """Add a message, for the connections there are and those to come."""
        self.frames[seq] = message
        self.changed()

    async def play(self, connection: Connection) -> None:
        """See ``Stream.play``."""
        newest = max(self.frames, default=0)
        text = Request(connection.path or "", {}).query.get("cursor")
        last = newest if text is None else int(text)
        if last > newest:
            await connection.send_message(error_frame("FutureCursor", "Cursor in the future."))
            await connection.aclose(1008, "FutureCursor")
            return
        if text is not None and last < self.kept_from:
            info = {"name": "OutdatedCursor", "message": "Requested cursor exceeded limit."}
            await connection.send_message(frame("#info", info))
        while True:
            for seq in sorted(self.frames):
                if seq > last and seq >= self.kept_from:
                    last = seq
                    await connection.send_message(self.frames[seq])
            await self.until(partial(self._has_after, last))

    def _has_after(self, seq: int) -> bool:
        return max(self.frames, default=0) > seq


class FakeLabeler(EventStream):
    """A labeler, whose DID document ``document`` is."""

    def __init__(self, host: str = "labeler.example") -> None:
        super().__init__(host)
        self.did: Did = new_plc_did()
        self.key = SigningKey()
        self._seq = 0

    @property
    def document(self) -> dict[str, Any]:
        service = {"id": "#atproto_labeler", "type": "AtprotoLabeler", "serviceEndpoint": self.url}
        method = {
            "id": f"{self.did}#atproto_label",
            "type": "Multikey",
            "controller": self.did,
            "publicKeyMultibase": self.key.multikey,
        }
        return document(self.did, service, verificationMethod=[method])

    def label(self, uri: str, cts: float, **more: Any) -> int:
        """Sign a label and send it, ``!takedown`` if not specified; its sequence number."""
        label = {"src": self.did, "uri": uri, "val": "!takedown", "cts": iso(cts), **more}
        return self.send_labels(self.key.signed(label))

    def send_labels(self, *labels: dict[str, Any]) -> int:
        """Send labels as they are."""
        self._seq += 1
        self.send(self._seq, frame("#labels", {"seq": self._seq, "labels": list(labels)}))
        return self._seq


class FakeJetstream(Stream):
    """A Jetstream (github.com/bluesky-social/jetstream)."""

    def __init__(self, host: str = "jetstream.example") -> None:
        super().__init__(host)
        self.events: list[dict[str, Any]] = []

    def send(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.changed()

    async def play(self, connection: Connection) -> None:
        """See ``Stream.play``."""
        text = Request(connection.path or "", {}).query.get("cursor")
        sent = len(self.events)
        if text is not None:
            sent = sum(event["time_us"] < int(text) for event in self.events)
        while True:
            for event in self.events[sent:]:
                sent += 1
                await connection.send_message(json.dumps(event))
            await self.until(partial(self._has_more, sent))

    def _has_more(self, sent: int) -> bool:
        return len(self.events) > sent

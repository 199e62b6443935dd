"""Hypercorn's protocols, without upgrades and WebSockets, and with bounds on their cost."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h11
import hyperframe.frame
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import BufferCompleteError, H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import EventWrapper, WorkerContext
from hypercorn.typing import Event as IOEvent
from hypercorn.typing import H11SendableEvent

from proxy.web.failed_connections import FAILED
from proxy.web.open_connections import STREAMS
from proxy.web.slow_clients import TRANSFERS, Link, Transfer

MAX_HEADERS = 128
"""Header fields of a request. Browsers and CDNs send fewer than 60 together."""

MAX_HEAD = 16 * 1024
"""Bytes of the head or the trailers of a request: Hypercorn's limit, which it does not apply to a
head that arrives in one read."""

MAX_BLANKS = 256
"""Spaces and tabs in a row. The time that h11 takes to refuse a header field grows with their
square: six seconds for 60 KiB of them."""

MAX_BODY = 64 * 1024
"""Bytes of a request body. The admin routes alone read one, of a few hundred bytes."""

MAX_BODY_PIECES = 256
"""Pieces (chunks, or what one read brings) in which an HTTP/1 body may come."""

PARSED_AT_ONCE = 1024
"""Bytes of HTTP/2 that are parsed before other tasks run: at most 114 frames, under 1 ms."""

MAX_CREDIT = 1000
"""The most HTTP/2 events that a connection may cause without an answer."""

CREDIT_FOR_ANSWER = 8
"""Events that an answer allows, and again as many for each 4 KiB of its body."""

_BLANKS = b" " * (MAX_BLANKS + 1)
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_LAST_CHUNK = re.compile(rb"(?:\r\n)?0+(?:;[^\n]*)?\r\n")


class DrainingContext(WorkerContext):
    """Hypercorn's context of a server, whose connections end before its listener closes.

    Args:
        others_accept: whether other processes go on accepting from the same listeners.

    Attributes:
        draining: from now on each connection ends after its next answer.
        terminated: of Hypercorn; the listener is closed, and idle connections end soon.
    """

    def __init__(self, *, others_accept: bool) -> None:
        super().__init__(None)
        self.others_accept = others_accept
        self.draining = trio.Event()


def draining_of(context: Any) -> trio.Event | EventWrapper:
    """Return the event from which on connections end; Hypercorn's own loop has one for both."""
    found: trio.Event | EventWrapper = getattr(context, "draining", context.terminated)
    return found


class RefusingParser(h11.Connection):
    """h11's parser of requests, which also refuses what RFC 9112 leaves to the server.

    Attributes:
        has_refused: the connection must close.

    ``next_event`` raises ``h11.RemoteProtocolError`` for such a request. Hypercorn then answers
    with ``error_status_hint``, if no answer has begun, and closes the connection.
    """

    has_refused = False
    _is_chunked = _is_trailer = False
    _pieces = 0
    _bytes = 0

    def next_event(self) -> Any:
        """Return the next event, like ``h11.Connection.next_event``."""
        if (status := self._costly()) is not None:
            self._refuse(status)
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
            self._is_chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            self._is_trailer = False
            if (status := refusal(event)) is not None:
                self._refuse(status)
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > MAX_BODY_PIECES or self._bytes > MAX_BODY:
                self._refuse(413)
        return event

    def _costly(self) -> int | None:
        """Judge what has arrived and is not parsed yet; see ``costly``."""
        is_body = self.their_state is h11.SEND_BODY and self._is_chunked
        if not is_body and self.their_state is not h11.IDLE:
            return None
        data: bytes = self.trailing_data[0]
        if is_body and not self._is_trailer:
            last = _LAST_CHUNK.match(data)
            if last is None:
                return 400 if _has_long_blanks(data) else None
            self._is_trailer = True
            data = data[last.end() :]
        return costly(data)

    def _refuse(self, status: int) -> NoReturn:
        self.has_refused = True
        raise h11.RemoteProtocolError("refused", error_status_hint=status)


def costly(data: bytes) -> int | None:
    """Return the status that refuses a head that h11 would take long to parse, or None. Pure.

    - 431: more than ``MAX_HEAD`` bytes, or more lines than ``MAX_HEADERS`` fields need.
    - 400: more than ``MAX_BLANKS`` blanks in a row.

    Args:
        data: the head or the trailers, as far as they have arrived, and perhaps what follows.
    """
    end = _END_OF_HEAD.search(data)
    head = data[: end.end()] if end else data
    if len(head) > MAX_HEAD or head.count(b"\n") > MAX_HEADERS + 2:
        return 431
    return 400 if _has_long_blanks(head) else None


def _has_long_blanks(data: bytes) -> bool:
    return _BLANKS in data.replace(b"\t", b" ")


def refusal(request: h11.Request) -> int | None:
    """Return the status that refuses an HTTP/1 request because of its head, or None. Pure.

    - 400: another major version, for example the preface of HTTP/2 (RFC 9113, section 3.4).
    - 431: too many header fields (RFC 6585, section 5).
    - 400: an upgrade to a WebSocket (RFC 6455, section 4.2.1). Other upgrades are ignored (RFC
      9110, section 7.8).
    - 400: ``Transfer-Encoding`` together with ``Content-Length``, or in HTTP/1.0. Another server
      may see the end of the body elsewhere (RFC 9112, section 6.1).
    """
    if not request.http_version.startswith(b"1."):
        return 400
    if len(request.headers) > MAX_HEADERS:
        return 431
    is_chunked = has_length = False
    for name, value in request.headers:
        if name == b"upgrade":
            if b"websocket" in value.lower():
                return 400
        elif name == b"transfer-encoding":
            is_chunked = True
        elif name == b"content-length":
            has_length = True
    if is_chunked and (has_length or request.http_version == b"1.0"):
        return 400
    return None


class Http1(H11Protocol):
    """Hypercorn's HTTP/1 with ``RefusingParser``. It never becomes HTTP/2 or a WebSocket.

    Over cleartext, HTTP/2 would pass through a reverse proxy as a tunnel, in which the rules of
    that proxy do not hold.

    When the server drains, the next answer says ``Connection: close``, and the connection closes
    after it and not before. Hypercorn closes without a word, and the client's next request, which
    may be under way by then, has no answer (RFC 9112, section 9.6).
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        limit = self.config.h11_max_incomplete_size
        self._parser = RefusingParser(h11.SERVER, max_incomplete_event_size=limit)
        self.connection = self._parser
        self._draining = draining_of(self.context)

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer."""
        if isinstance(event, Response) and event.status_code >= 200 and self._draining.is_set():
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)

    async def _maybe_recycle(self) -> None:
        # First: it waits, and the client may leave meanwhile.
        await self._close_stream()
        states = (self.connection.our_state, self.connection.their_state)
        if states != (h11.DONE, h11.DONE):
            await super()._maybe_recycle()
            return
        # Also when the server has stopped meanwhile: the answer did not say that it is the last.
        self._parser.start_next_cycle()
        await self.can_read.set()
        await self.send(Updated(idle=True))

    async def _check_protocol(self, event: h11.Request) -> None:
        """Do nothing: Hypercorn would change to HTTP/2 here."""

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        try:
            await super()._send_h11_event(event)
        except h11.LocalProtocolError:
            if not self._parser.has_refused:  # else the application did not know yet
                raise


class TookTooLittle(Event):
    """The client of this connection takes too little of an answer."""


class StreamBuffer:
    """What an HTTP/2 stream has to send: a view of the answer, which all its clients share.

    Hypercorn's own buffer holds a copy for each stream. A client that opens 100 streams and takes
    nothing would make 100 copies.

    Args:
        event_class: Hypercorn's kind of event.

    Attributes:
        transfer: is told what was taken.
    """

    transfer: Transfer | None = None

    def __init__(self, event_class: type[IOEvent]) -> None:
        self._rest = memoryview(b"")
        self._is_ended = False
        self._is_empty = event_class()

    @property
    def complete(self) -> bool:
        """Whether everything was taken, and nothing more will come."""
        return self._is_ended and not self._rest

    def set_complete(self) -> None:
        """Take nothing more."""
        self._is_ended = True

    async def drain(self) -> None:
        """Wait until everything was taken."""
        await self._is_empty.wait()

    async def close(self) -> None:
        """Forget the rest, which nobody will take."""
        self._is_ended = True
        self._rest = memoryview(b"")
        await self._is_empty.set()

    async def push(self, data: bytes) -> None:
        """Add the next part of the body, and wait until the client has taken it.

        Raises:
            BufferCompleteError: the stream is closed.
        """
        if self._is_ended:
            raise BufferCompleteError
        self._rest = memoryview(data)
        await self._is_empty.clear()
        await self._is_empty.wait()

    async def pop(self, max_length: int) -> bytes:
        """Take at most ``max_length`` bytes."""
        taken = bytes(self._rest[:max_length])
        self._rest = self._rest[max_length:]
        if self.transfer is not None:
            self.transfer.took(len(taken))
        if not self._rest:
            await self._is_empty.set()
        return taken


class Http2(H2Protocol):
    """Hypercorn's HTTP/2, which TLS chooses by ALPN, with six differences.

    1. A request that cannot be one of ours (CONNECT, a method or path outside ASCII, a body that
    goes on after the answer) costs its stream. In Hypercorn it costs the connection.

    2. Each frame costs credit, and each answer brings some. A connection that sends frames which
    ask for nothing (window updates, settings, pings, priorities, resets) is closed.

    3. Other tasks run after each ``PARSED_AT_ONCE`` bytes of a read.

    4. When the connection ends, answers that it had no room for end too. In Hypercorn they wait
    forever.

    5. A request for which there is no room (``OpenStreams``) is refused. The client may send it
    again (RFC 9113, section 8.7), and browsers do.

    6. When the server drains, the client is told to send nothing more here, and what it has sent by
    then is answered (RFC 9113, section 6.8: the first of two GOAWAY). Hypercorn resets it.
    """

    _counted = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # No WebSockets (RFC 8441).
        del self.connection.local_settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL]
        self.connection.decoder.max_header_list_size = self.config.h2_max_header_list_size
        self._credit = MAX_CREDIT
        self._link = Link()
        self._warning = trio.CancelScope()

    async def initiate(self, *arguments: Any) -> None:
        """Begin the connection."""
        await super().initiate(*arguments)
        self.task_group.spawn(self._warn)

    async def _warn(self) -> None:
        with self._warning:
            await draining_of(self.context).wait()
            # Not through ``connection``, which refuses everything after a GOAWAY.
            last = hyperframe.frame.GoAwayFrame(0, last_stream_id=2**31 - 1)
            await self.send(RawData(last.serialize()))

    async def handle(self, event: Event) -> None:
        """Handle what the connection has read, and its end."""
        if not isinstance(event, RawData):
            self._warning.cancel()
            await super().handle(event)
            for buffer in self.stream_buffers.values():
                await buffer.close()
            return
        for start in range(0, len(event.data), PARSED_AT_ONCE):
            if self.closed:
                return
            await super().handle(RawData(event.data[start : start + PARSED_AT_ONCE]))
            await trio.lowlevel.checkpoint()

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer."""
        if isinstance(event, Response):
            self._earn(CREDIT_FOR_ANSWER)
        elif isinstance(event, Body):
            self._earn(CREDIT_FOR_ANSWER * (len(event.data) // 4096))
            await self._send_body(event)
            return
        await super().stream_send(event)

    async def _send_body(self, event: Body) -> None:
        with TRANSFERS.begin(event.data, self._link) as transfer:
            buffer: StreamBuffer | None = self.stream_buffers.get(event.stream_id)  # type: ignore[assignment]
            if buffer is not None:
                buffer.transfer = transfer
            await super().stream_send(event)
        if transfer.scope.cancelled_caught:
            await self.send(TookTooLittle())

    def _earn(self, credit: int) -> None:
        self._credit = min(self._credit + credit, MAX_CREDIT)

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            self._credit -= 1
            if self._credit < 0:
                FAILED.tell("HTTP/2 frames that ask for nothing")
                self.connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                await self._flush()
                await self.send(Closed())
                return
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                # The answer came before the end of the body, which nobody reads.
                length = event.flow_controlled_length or 0
                self.connection.acknowledge_received_data(length, event.stream_id)
            elif isinstance(event, h2.events.RequestReceived) and self.context.terminated.is_set():
                await self._create_stream(event)
                await self.send(Updated(idle=False))
                await self._flush()
            else:
                await super()._handle_events([event])

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        if not STREAMS.allows(len(self.streams)):
            with suppress(h2.exceptions.ProtocolError):  # the client has reset it
                self.connection.reset_stream(request.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            await self._flush()
            return
        try:
            await self._answer_or_refuse(request)
        finally:
            self._count()

    async def _close_stream(self, stream_id: int) -> None:
        try:
            await super()._close_stream(stream_id)
        finally:
            self._count()

    def end(self) -> None:
        """Count no stream of this connection any more: it has ended."""
        self.streams.clear()
        self._count()

    def _count(self) -> None:
        STREAMS.count += len(self.streams) - self._counted
        self._counted = len(self.streams)

    async def _answer_or_refuse(self, request: h2.events.RequestReceived) -> None:
        headers = dict(request.headers or ())
        method, path = headers.get(b":method", b""), headers.get(b":path", b"")
        if method != b"CONNECT" and method.isascii() and path and path.isascii():
            await super()._create_stream(request)
            return
        stream_id = request.stream_id
        with suppress(h2.exceptions.ProtocolError):  # the client has reset it
            self.connection.send_headers(
                stream_id, [(b":status", b"400"), (b"content-length", b"0")], end_stream=True
            )
            if request.stream_ended is None:
                # RFC 9113, section 8.1: an answer that does not need the rest of the request.
                self.connection.reset_stream(stream_id)
        await self._flush()

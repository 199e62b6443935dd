"""Fixes for Hypercorn's connections: no client can end the server; an answer takes one write."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pkgutil import resolve_name
from types import CodeType
from typing import Any

import h11
import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.trio.run
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer

from proxy.config import ConfigError
from proxy.web.door import (
    MAX_PLAIN,
    Door,
    EndOfHead,
    kept_start_of_head,
    plain_request,
    start_of_head,
)
from proxy.web.failed_connections import FAILED
from proxy.web.hypercorn_protocols import Http1, Http2, StreamBuffer, TookTooLittle, draining_of
from proxy.web.open_connections import CONNECTIONS
from proxy.web.responses import HttpResponse, PendingResponse
from proxy.web.slow_clients import PIECE, TRANSFERS

MAX_JOINED = 256 * 1024
"""Bytes of a body up to which joining it to the head costs less than a second write."""

GRACE_SECONDS = 1.0
"""How long a connection may be idle once the server stops: a request may be under way."""


class IdleTimer:
    """Replaces Hypercorn's timer: one task with a moving deadline, not a new task per request.

    Args:
        seconds: how long a connection may be idle.
        stopping: the event that is set when the server stops.
        close: ends the connection.
    """

    def __init__(self, seconds: float, stopping: Any, close: Callable[[], Awaitable[None]]) -> None:
        self._seconds = seconds
        self._stopping = stopping
        self._close = close
        self._idle = trio.CancelScope()
        self._is_busy = True
        self._waits = False
        self._has_ended = False

    async def restart(self, task_group: TaskGroup, _action: object) -> None:
        """Mark the connection as idle from now on. Does not wait."""
        if self._has_ended:
            return
        self._is_busy = False
        self.used()
        if not self._waits:
            self._waits = True
            task_group.spawn(self._wait)

    def used(self) -> None:
        """Let an idle connection be idle from now on."""
        seconds = GRACE_SECONDS if self._stopping.is_set() else self._seconds
        self._idle.deadline = trio.current_time() + seconds

    async def stop(self) -> None:
        """Mark the connection as busy. Does not wait."""
        self._is_busy = True
        self._idle.deadline = math.inf

    def end(self) -> None:
        """Stop waiting: the connection is closed."""
        self._has_ended = True
        self._idle.cancel()

    async def _wait(self) -> None:
        with self._idle:
            await self._stopping.wait()
            if not self._is_busy:
                self.used()
            await trio.sleep_forever()
        if self._has_ended:
            return
        with trio.CancelScope(shield=True):
            await self._close()


def _pieces(data: bytes, start: int = 0) -> Iterator[bytes | memoryview]:
    """Return ``data`` from ``start`` on in pieces of ``PIECE`` bytes, without a copy."""
    if not start and len(data) <= PIECE:
        return iter((data,))
    view = memoryview(data)
    return (view[at : at + PIECE] for at in range(start, len(data), PIECE))


class Connection(TCPServer):
    """Hypercorn's connection, with eight differences.

    1. An exception ends only this connection. In Hypercorn it ends the server.

    2. The connection can be ended while its client does not read. Hypercorn shields its sends from
    cancellation, so one such client would keep the process from ending. Closing the socket ends
    the shielded send.

    3. The head of an answer is sent together with the first part of its body. Hypercorn sends
    each separately, and then an empty write. Together these cost more than the rest of a hit from
    memory. ASGI requires this: "the protocol server must not start sending the response to the
    client until it has received at least one http.response.body event".

    4. The idle timer is ``IdleTimer``. Hypercorn starts and cancels a task for every request, and
    the last task waits until the timeout after the client has disconnected.

    5. A client that takes less than ``PIECE`` bytes in ``SECONDS`` is disconnected. If all
    clients together leave more than ``UNTAKEN`` bytes, slow ones are disconnected too.

    6. If more than ``MAX_CONNECTIONS`` are open, one of them ends (``OpenConnections``).

    7. The connection closes even if the application is cancelled during the close. Quart cancels
    the application when it learns that the connection closes.

    8. It has a door (``web.door``), if the application offers one: a plain request is answered by
    one write, without Hypercorn; without a task or a timer, if the answer needs no wait.
    """

    _has_given_up = False
    _expects_head = False
    _head = b""
    _early = b""
    """What the client sent while the door waited for an answer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        seconds, terminated = self.config.keep_alive_timeout, self.context.terminated
        self._idle_timer = IdleTimer(seconds, terminated, self._initiate_server_close)
        self.idle_task = self._idle_timer  # type: ignore[assignment]
        self._life = trio.CancelScope()
        self._draining = draining_of(self.context)
        self._door = _door_of(self.app, self.config, self.context, self.stream)
        self._end_of_head = EndOfHead(partial(self.config.response_headers, "h11"))
        # Otherwise the system tells of progress when a third of its buffer is free: megabytes.
        below = getattr(self.stream, "transport_stream", self.stream)
        with suppress(AttributeError, OSError):
            below.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, PIECE)

    async def protocol_send(self, event: Event) -> None:
        """Send the output of Hypercorn's protocols, and handle their other events."""
        if isinstance(event, TookTooLittle):
            await self._give_up()
            return
        if isinstance(event, Updated):
            CONNECTIONS.mark(self, is_idle=event.idle)
            self._expects_head = self._expects_head or not event.idle
        elif isinstance(event, RawData):
            if self._expects_head and self._is_before_body():
                self._expects_head = False
                self._head = event.data
                return
            head, self._head = self._head, b""
            if head and len(event.data) > MAX_JOINED:
                await self._send(head)
                await self._send(event.data)
            elif head or event.data:
                await self._send(head + event.data if head else event.data)
            return
        await super().protocol_send(event)

    async def _send(self, data: bytes, sent: int = 0) -> None:
        """Send ``data``, or close the connection if its client takes too little of it.

        Args:
            sent: bytes of it that are sent already.
        """
        async with self.send_lock:
            try:
                # Hypercorn shields its sends from cancellation too.
                with TRANSFERS.begin(data, shield=True) as transfer:
                    for piece in _pieces(data, sent):
                        await self.stream.send_all(piece)
                        transfer.took(len(piece))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
        if transfer.scope.cancelled_caught:
            await self._give_up()

    async def _give_up(self) -> None:
        """Close the connection of a client that takes too little."""
        if self._has_given_up:
            return
        self._has_given_up = True
        FAILED.tell("the client takes too little")
        await trio.aclose_forcefully(self.stream)
        await self.protocol.handle(Closed())

    def _is_before_body(self) -> bool:
        """Whether an HTTP/1 final response has begun."""
        protocol = self.protocol.protocol
        return isinstance(protocol, H11Protocol) and protocol.connection.our_state is h11.SEND_BODY

    async def run(self) -> None:
        """Serve one client until its connection ends."""
        CONNECTIONS.add(self)
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._close_when_cancelled)
                    await super().run()
                    nursery.cancel_scope.cancel()
        except* Exception as group:
            FAILED.tell_all(group)
        finally:
            CONNECTIONS.remove(self)
            # Without a protocol the TLS handshake has failed.
            protocol = getattr(getattr(self, "protocol", None), "protocol", None)
            if isinstance(protocol, Http2):
                protocol.end()

    def close_soon(self) -> None:
        """End the connection. Does not wait."""
        self._life.cancel()

    async def _read_data(self) -> None:
        try:
            if self._door is None:
                await super()._read_data()
            else:
                await self._read_past(self._door)
        finally:
            self._idle_timer.end()

    async def _read_past(self, door: Door) -> None:
        """Read until the client is gone, like Hypercorn, with a door before its protocol."""
        patience = self.config.read_timeout or math.inf
        # One scope whose deadline moves: a scope for each read costs as much as the parser.
        with trio.CancelScope(deadline=trio.current_time() + patience) as reading:
            data = None
            while data != b"":
                try:
                    data, self._early = self._early, b""
                    data = data or bytes(await self.stream.receive_some(MAX_RECV))
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
                left = self._answer(door, data)
                if left is not None:
                    # What follows may wait for longer than a client may be silent.
                    reading.deadline = math.inf
                    await left()
                reading.deadline = trio.current_time() + patience
        await self.protocol.handle(Closed())

    def _answer(self, door: Door, data: bytes) -> Callable[[], Awaitable[None]] | None:
        """Answer ``data`` without a wait, and return what is left to do; None: nothing."""
        scope = plain_request(data, door.images) if self._may_answer() else None
        answer = None if scope is None else door.answer(scope)
        if scope is None or answer is None:
            return partial(self.protocol.handle, RawData(data))
        self.protocol.protocol.keep_alive_requests += 1
        is_head = scope["method"] == "HEAD"
        if not isinstance(answer, HttpResponse):
            return partial(self._answer_later, answer, is_head)
        self._idle_timer.used()
        CONNECTIONS.used(self)
        rest = self._write(kept_start_of_head(answer), b"" if is_head else answer.body)
        return None if rest is None else partial(self._finish, rest)

    async def _answer_later(self, pending: PendingResponse, is_head: bool) -> None:
        """Wait for an answer, and send it. If the client leaves, the wait is cancelled."""
        await self.protocol_send(Updated(idle=False))
        self._expects_head = False
        answer: HttpResponse | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            answer = await pending()
            nursery.cancel_scope.cancel()
        if answer is None:  # the next read tells the end
            return
        is_last = self._draining.is_set()
        if is_last:
            self._early = b""  # RFC 9112, section 9.6: nothing is processed after the last answer
        head = start_of_head(answer) + (b"connection: close\r\n" if is_last else b"")
        rest = self._write(head, b"" if is_head else answer.body)
        if rest is not None:
            await rest()
        await self.protocol_send(Closed() if is_last else Updated(idle=True))

    async def _watch(self, waiting: trio.CancelScope) -> None:
        """Read what the client sends while it has no answer; cancel the wait if it leaves.

        One read is enough: as behind Hypercorn's parser, what was sent too early is not read on.
        It is a short one, for many clients may wait for one answer.
        """
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            self._early = bytes(await self.stream.receive_some(MAX_PLAIN))
        if not self._early:
            waiting.cancel()

    def _write(self, head: bytes, body: bytes) -> Callable[[], Awaitable[None]] | None:
        """Write an answer as far as the socket has room; return what sends the rest, or None.

        Args:
            head: without its end.
        """
        head += self._end_of_head.now()
        try:
            sent = os.writev(self.stream.socket.fileno(), (head, body))
        except BlockingIOError:
            sent = 0
        except OSError:  # the client is gone, and the next read tells so
            return None
        return None if sent == len(head) + len(body) else partial(self._send_rest, head, body, sent)

    def _may_answer(self) -> bool:
        """Whether the door may answer the next request of this connection.

        Not while Hypercorn reads or answers one, and not if the answer must say that the connection
        closes: Hypercorn says so.
        """
        protocol = self.protocol.protocol
        if not isinstance(protocol, Http1) or self._draining.is_set():
            return False
        parser = protocol.connection
        return (
            parser.our_state is h11.IDLE
            and parser.their_state is h11.IDLE
            and not parser.trailing_data[0]
            and protocol.keep_alive_requests + 1 < self.config.keep_alive_max_requests
        )

    async def _finish(self, rest: Callable[[], Awaitable[None]]) -> None:
        """Send the rest of an answer, which the socket has no room for."""
        await self.protocol_send(Updated(idle=False))
        self._expects_head = False
        await rest()
        await self.protocol_send(Updated(idle=True))

    async def _send_rest(self, head: bytes, body: bytes, sent: int) -> None:
        if sent < len(head):
            await self._send(head[sent:])
        await self._send(body, max(sent - len(head), 0))

    async def _close(self) -> None:
        # The shield causes no wait: the socket has room for the last bytes now, or never will.
        with trio.CancelScope(shield=True):
            await super()._close()

    async def _close_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(self.stream)


def _door_of(app: Any, config: Any, context: Any, stream: Any) -> Door | None:
    """Return the door of the application; None if Hypercorn has to see every request."""
    if hasattr(stream, "do_handshake"):  # TLS
        return None
    if config.accesslog or config.statsd_host or config.server_names or context.max_requests:
        return None
    found = getattr(app, "app", None)
    return found if hasattr(found, "answer") else None


PARTS: Mapping[str, tuple[str, ...]] = {
    "hypercorn.trio.run.worker_serve": ("TCPServer",),
    "hypercorn.trio.tcp_server.TCPServer.__init__": ("config", "context", "idle_task", "stream"),
    "hypercorn.trio.tcp_server.TCPServer.run": (
        "_close",
        "_read_data",
        "_task_group",
        "idle_task",
        "protocol",
        "protocol_send",
        "restart",
    ),
    "hypercorn.trio.tcp_server.TCPServer.protocol_send": (
        "idle_task",
        "protocol",
        "restart",
        "send_lock",
        "stop",
    ),
    "hypercorn.trio.tcp_server.TCPServer._read_data": ("handle", "receive_some"),
    "hypercorn.trio.tcp_server.TCPServer._close": ("aclose", "send_eof"),
    "hypercorn.trio.tcp_server.TCPServer._initiate_server_close": ("aclose", "handle"),
    "hypercorn.trio.task_group.TaskGroup.spawn": ("func", "args"),
    "hypercorn.trio.lifespan.Lifespan.__init__": ("app", "config", "state"),
    "hypercorn.trio.lifespan.Lifespan.handle_lifespan": ("started",),
    "hypercorn.trio.lifespan.Lifespan.wait_for_startup": ("startup_timeout",),
    "hypercorn.trio.lifespan.Lifespan.wait_for_shutdown": ("shutdown_timeout",),
    "hypercorn.trio.worker_context.WorkerContext.__init__": ("terminated",),
    "hypercorn.trio.worker_context.EventWrapper.is_set": (),
    "hypercorn.protocol.ProtocolWrapper.__init__": ("H11Protocol", "H2Protocol", "protocol"),
    "hypercorn.protocol.h11.H11Protocol.__init__": ("connection", "h11_max_incomplete_size"),
    "hypercorn.protocol.h11.H11Protocol._handle_events": (
        "RemoteProtocolError",
        "_check_protocol",
        "_send_error_response",
        "error_status_hint",
        "next_event",
    ),
    "hypercorn.protocol.h11.H11Protocol._send_h11_event": ("connection",),
    "hypercorn.protocol.h11.H11Protocol._maybe_recycle": (
        "_close_stream",
        "can_read",
        "start_next_cycle",
        "terminated",
    ),
    "hypercorn.protocol.h2.H2Protocol.__init__": ("connection", "local_settings", "streams"),
    "hypercorn.protocol.h2.H2Protocol.initiate": ("send_task", "spawn", "task_group"),
    "hypercorn.protocol.h2.H2Protocol.handle": ("_handle_events", "closed", "receive_data"),
    "hypercorn.protocol.h2.H2Protocol._handle_events": ("_create_stream", "streams"),
    "hypercorn.protocol.h2.H2Protocol._create_stream": ("StreamBuffer", "stream_buffers"),
    "hypercorn.protocol.h2.H2Protocol._close_stream": ("pop", "streams"),
    "hypercorn.protocol.h2.H2Protocol._send_data": ("close", "complete", "pop"),
    "hypercorn.protocol.h2.H2Protocol.stream_send": (
        "Body",
        "Response",
        "drain",
        "push",
        "set_complete",
    ),
    "hypercorn.protocol.h2.H2Protocol._flush": ("data_to_send",),
    "hypercorn.events.RawData.__init__": ("data",),
    "hypercorn.events.Updated.__init__": ("idle",),
}
"""The Hypercorn functions that our classes depend on, each with names it must use.

They are not public, and may change with any release.
"""


def check_hypercorn() -> None:
    """Raise ``ConfigError`` if Hypercorn's structure does not fit our classes."""
    for function, names in PARTS.items():
        code = _code_of(function)
        if code is None or not {*code.co_names, *code.co_varnames} >= {*names}:
            found = version("hypercorn")
            raise ConfigError(
                [f"hypercorn {found} has another {function}; install a release that fits, 0.18"]
            )


def _code_of(function: str) -> CodeType | None:
    owner, _, name = function.rpartition(".")
    try:
        found = getattr(resolve_name(owner), name)
    except (AttributeError, ImportError):
        return None
    return getattr(found, "__code__", None)


def install() -> None:
    """Make Hypercorn's Trio worker use our connections and protocols in this process.

    Raises:
        ConfigError: Hypercorn's structure does not fit our classes.
    """
    check_hypercorn()
    # Hypercorn has no setting for these. It looks up each name when it needs the class.
    hypercorn.trio.run.TCPServer = Connection  # type: ignore[attr-defined, assignment]
    hypercorn.protocol.H11Protocol = Http1  # type: ignore[attr-defined, assignment]
    hypercorn.protocol.H2Protocol = Http2  # type: ignore[attr-defined, assignment]
    hypercorn.protocol.h2.StreamBuffer = StreamBuffer  # type: ignore[misc, assignment]

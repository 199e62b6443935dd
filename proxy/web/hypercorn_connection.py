"""Fixes for Hypercorn's connections: no client can end the server; an answer takes one write."""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pkgutil import resolve_name
from types import CodeType
from typing import Any

import h11
import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.trio.run
import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer

from proxy.config import ConfigError
from proxy.web.hypercorn_protocols import Http1, Http2, StreamBuffer, TookTooLittle
from proxy.web.open_connections import CONNECTIONS
from proxy.web.slow_clients import PIECE, TRANSFERS

MAX_JOINED = 256 * 1024
"""Bytes of a body up to which joining it to the head costs less than a second write."""

log = structlog.get_logger(__name__)


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
        self._idle.deadline = trio.current_time() + self._seconds
        if not self._waits:
            self._waits = True
            task_group.spawn(self._wait)
        elif self._stopping.is_set():
            self._idle.cancel()

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
            if self._is_busy:  # ``restart`` comes after the answer, or ``end`` at the close
                await trio.sleep_forever()
        if self._has_ended:
            return
        with trio.CancelScope(shield=True):
            await self._close()


def _pieces(data: bytes) -> Iterator[bytes | memoryview]:
    """Return ``data`` in pieces of ``PIECE`` bytes, without a copy."""
    if len(data) <= PIECE:
        return iter((data,))
    view = memoryview(data)
    return (view[start : start + PIECE] for start in range(0, len(data), PIECE))


class Connection(TCPServer):
    """Hypercorn's connection, with seven differences.

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
    """

    _has_given_up = False
    _expects_head = False
    _head = b""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        seconds, terminated = self.config.keep_alive_timeout, self.context.terminated
        self._idle_timer = IdleTimer(seconds, terminated, self._initiate_server_close)
        self.idle_task = self._idle_timer  # type: ignore[assignment]
        self._life = trio.CancelScope()
        # Otherwise the system tells of progress when a third of its buffer is free: megabytes.
        with suppress(AttributeError, OSError):
            getattr(self.stream, "transport_stream", self.stream).socket.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, PIECE
            )

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

    async def _send(self, data: bytes) -> None:
        """Send ``data``, or close the connection if its client takes too little of it."""
        async with self.send_lock:
            try:
                # Hypercorn shields its sends from cancellation too.
                with TRANSFERS.begin(data, shield=True) as transfer:
                    for piece in _pieces(data):
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
        log.warning("connection failed", error="the client takes too little")
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
            log.warning("connection failed", error=repr(group.exceptions)[:500])
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
            await super()._read_data()
        finally:
            self._idle_timer.end()

    async def _close(self) -> None:
        # The shield causes no wait: the socket has room for the last bytes now, or never will.
        with trio.CancelScope(shield=True):
            await super()._close()

    async def _close_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(self.stream)


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
    "hypercorn.protocol.h2.H2Protocol.__init__": ("connection", "local_settings", "streams"),
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

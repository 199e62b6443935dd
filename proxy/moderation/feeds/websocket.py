"""A WebSocket to one server, over a ``Network``: received from, within bounds."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import trio
import trio_websocket

from proxy.egress.circuit import retry_after
from proxy.egress.endpoint import Origin
from proxy.egress.errors import EgressError
from proxy.egress.guarded_get import USER_AGENT
from proxy.egress.network import Network

HANDSHAKE_SECONDS = 20.0
"""From the first packet to the upgraded connection; a slow server's TLS takes about one."""

MAX_HANDSHAKE = 64 * 1024
"""Bytes of the answer to the request to upgrade, and of those that come with it."""

QUIET_SECONDS = 30.0
"""Without a message for so long, the server is asked for a sign of life (a ping)."""

PONG_SECONDS = 20.0
"""How long that may take."""

CLOSE_SECONDS = 2.0
"""How long the closing handshake may take; the connection is closed without it, too."""


class SocketFailed(Exception):
    """There is no connection, or none any more.

    Attributes:
        reason: one of a few words, for a metric.
        retry_after: seconds that the server asked to be left alone; 0 where it did not.
    """

    def __init__(self, reason: str, cause: str, retry_after: float = 0.0) -> None:
        super().__init__(cause)
        self.reason = reason
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Server:
    """Where a stream is, and what it is reached over."""

    network: Network
    origin: Origin


class Socket:
    """An open connection. For one task."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection
        # A message that was taken while a pong was waited for.
        self._taken: str | bytes | None = None

    async def receive(self) -> str | bytes:
        """The next message.

        Cancellation loses none.

        Raises:
            SocketFailed: the connection ended, a message was too large, or the server is silent
                and does not answer a ping either.
        """
        try:
            while self._taken is None:
                with trio.move_on_after(QUIET_SECONDS):
                    return await self._connection.get_message()
                await self._message_or_pong()
        except trio_websocket.ConnectionClosed as error:
            raise _ended(error) from error
        message, self._taken = self._taken, None
        return message

    async def _message_or_pong(self) -> None:
        """Wait for either: a pong may stand behind messages that were not taken yet."""
        has_life = False

        async def ping() -> None:
            nonlocal has_life
            # Where the connection ended, the other task meets it too.
            with suppress(trio_websocket.ConnectionClosed):
                await self._connection.ping()
                has_life = True
                nursery.cancel_scope.cancel()

        failure: trio_websocket.ConnectionClosed | None = None
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + PONG_SECONDS
            nursery.start_soon(ping)
            try:
                self._taken = await self._connection.get_message()
            except trio_websocket.ConnectionClosed as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if self._taken is None and not has_life:
            raise SocketFailed("silent", f"no pong within {PONG_SECONDS:g} s")


class _Handshake(trio.abc.Stream):
    """A stream that brings no more than ``MAX_HANDSHAKE`` bytes until ``is_done`` is set.

    The library keeps the whole body of an answer that refuses the upgrade.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._received = 0
        self.is_done = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._received += len(data)
        if not self.is_done and self._received > MAX_HANDSHAKE:
            raise trio.BrokenResourceError(f"a handshake of more than {MAX_HANDSHAKE} bytes")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def open_socket(server: Server, target: str, *, max_message: int) -> AsyncIterator[Socket]:
    """Connect for the time of the block. However it ends, the connection is closed then.

    Args:
        target: path and query.
        max_message: bytes of one message.

    Raises:
        SocketFailed: no connection came about within ``HANDSHAKE_SECONDS``, or the server
            refused to upgrade it.
    """
    failure: Exception | None = None
    stream = await _connected(server)
    try:
        async with trio.open_nursery() as nursery:
            try:
                connection = await _upgraded(nursery, stream, server.origin, target, max_message)
                yield Socket(connection)
                with trio.move_on_after(CLOSE_SECONDS):
                    await connection.aclose()
            except Exception as error:
                # Raised below, outside the nursery, which would wrap it in a group.
                failure = error
            nursery.cancel_scope.cancel()
    except* Exception as group:
        # Only the library's reader is left in the nursery; what it cannot read ends it in errors
        # of wsproto, of h11, or its own.
        failure = failure or _unreadable(server.origin, group.exceptions[0])
    finally:
        # The library leaves it open where a message was too large.
        await trio.aclose_forcefully(stream)
    if failure is not None:
        raise failure


async def _connected(server: Server) -> trio.abc.Stream:
    origin = server.origin
    try:
        with trio.fail_after(HANDSHAKE_SECONDS):
            stream = await server.network.connect(origin.host, origin.port)
            if origin.scheme == "https":
                stream = await server.network.start_tls(stream, origin.host)
    except trio.TooSlowError:
        raise SocketFailed("timeout", f"{origin}: no connection in time") from None
    except EgressError as error:
        raise SocketFailed("unreachable", str(error)) from error
    return stream


async def _upgraded(
    nursery: trio.Nursery, stream: trio.abc.Stream, origin: Origin, target: str, max_message: int
) -> trio_websocket.WebSocketConnection:
    limited = _Handshake(stream)
    try:
        with trio.fail_after(HANDSHAKE_SECONDS):
            connection = await trio_websocket.wrap_client_stream(
                nursery,
                # It takes any stream; only what it says of addresses needs a socket's.
                cast(Any, limited),
                origin.authority,
                target,
                extra_headers=[(b"User-Agent", USER_AGENT.encode())],
                max_message_size=max_message,
            )
    except trio.TooSlowError:
        raise SocketFailed("timeout", f"{origin}: no upgrade in time") from None
    except trio_websocket.ConnectionClosed as error:
        raise _ended(error) from error
    limited.is_done = True
    return connection


def _unreadable(origin: Origin, error: Exception) -> SocketFailed:
    if isinstance(error, trio_websocket.ConnectionRejected):
        asked = dict(error.headers or ()).get(b"retry-after", b"").decode("latin-1")
        wait = retry_after(asked or None, time.time())
        return SocketFailed("refused", f"{origin}: status {error.status_code}", wait)
    return SocketFailed("closed", f"{origin}: {type(error).__name__}: {error}")


def _ended(error: trio_websocket.ConnectionClosed) -> SocketFailed:
    reason = error.reason
    if reason is None:
        return SocketFailed("closed", "closed")
    text = f"closed with {reason.code} {(reason.reason or '')[:100]!a}"
    return SocketFailed("too large" if reason.code == 1009 else "closed", text)

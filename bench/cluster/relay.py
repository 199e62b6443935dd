"""A TCP relay between a node and an engine: it can end, hold or change what passes."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum

import trio

from bench.upstream import LOOPBACK

RECEIVE = 64 * 1024


class Mode(Enum):
    """What a relay does with what it gets."""

    WHOLE = "passes everything on"
    CUT = "ends its connections, and takes no new ones"
    HELD = "takes everything, and passes it on when it is whole again"
    LIES = "changes a byte of each chunk that the target sends"


class Relay:
    """A port of this machine before another one.

    Args:
        target: the port behind it, at ``behind``.
        host: the address to listen at.

    Attributes:
        port: that it listens at; if not given, any, once ``run`` has started.
    """

    def __init__(
        self, target: int, *, behind: str = LOOPBACK, host: str = LOOPBACK, port: int = 0
    ) -> None:
        self.port = port
        self.host = host
        self._target = (behind, target)
        self._mode = Mode.WHOLE
        self._flows = trio.Event()
        self._flows.set()
        self._scopes: set[trio.CancelScope] = set()

    def set(self, mode: Mode) -> None:
        """Change what it does, from the next byte on."""
        self._mode = mode
        if mode is Mode.HELD:
            self._flows = trio.Event()
        else:
            self._flows.set()
        if mode is Mode.CUT:
            for scope in self._scopes:
                scope.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled; then its connections have ended."""
        (listener,) = await trio.open_tcp_listeners(self.port, host=self.host)
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            if self._mode is Mode.CUT:
                return
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    await self._relay(stream)
                finally:
                    self._scopes.discard(scope)

    async def _relay(self, stream: trio.SocketStream) -> None:
        await self._flows.wait()
        try:
            there = await trio.open_tcp_stream(*self._target)
        except OSError:
            return
        async with there, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, stream, there, nursery.cancel_scope)
            nursery.start_soon(self._pass_back, there, stream, nursery.cancel_scope)

    async def _pass(
        self, source: trio.SocketStream, to: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await self._flows.wait()
                await to.send_all(data)
        scope.cancel()

    async def _pass_back(
        self, source: trio.SocketStream, to: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await self._flows.wait()
                await to.send_all(changed(data) if self._mode is Mode.LIES else data)
        scope.cancel()


def changed(data: bytes | bytearray) -> bytes:
    """A chunk with another last byte; as it is where it ends a head of HTTP, or is XML.

    What lists or refuses stays true: else clients would soon leave the store alone, and see no lie.
    """
    if data.endswith(b"\r\n\r\n") or b"<?xml" in data:
        return bytes(data)
    return bytes(data[:-1]) + bytes([data[-1] ^ 0x55])

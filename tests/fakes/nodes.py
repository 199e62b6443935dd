"""Nodes behind a balancer that answer at once, and tell what they were asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import h11
import trio

from tests.processes import until_accepted, until_refused


@dataclass
class FakeNode:
    """Listens on a port of 127.0.0.1, which it keeps when it stops and starts again.

    Attributes:
        name: the body of its answers.
        ready: what ``/readyz`` says.
        status: of its answers; None closes the connection in place of one.
        asked: the method and target of each request, without those of ``/readyz``.
        checked: how often ``/readyz`` was asked.
        released: requests for ``/held`` wait for it.
    """

    name: str
    ready: bool = True
    status: int | None = 200
    asked: list[tuple[str, str]] = field(default_factory=list)
    checked: int = 0
    port: int = 0
    released: trio.Event = field(default_factory=trio.Event)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def targets(self) -> list[str]:
        return [target for _, target in self.asked]

    async def start(self, nursery: trio.Nursery) -> None:
        """Listen, on the port of last time where there was one."""
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._scope = trio.CancelScope()
        nursery.start_soon(self._serve, listeners)
        await until_accepted(self.port)

    async def stop(self) -> None:
        """End as a process that is killed: nobody listens, and connections are closed."""
        self._scope.cancel()
        await until_refused(self.port)

    async def _serve(self, listeners: list[trio.SocketListener]) -> None:
        with self._scope:
            await trio.serve_listeners(self._converse, listeners)

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.EndOfMessage):
                    if not await self._answer(stream, connection, request):
                        return
                    connection.start_next_cycle()
                elif isinstance(event, h11.ConnectionClosed):
                    return

    async def _answer(
        self, stream: trio.SocketStream, connection: h11.Connection, request: h11.Request
    ) -> bool:
        """Whether the connection can be used again."""
        method, target = request.method.decode(), request.target.decode("latin-1")
        status = self.status
        if target == "/readyz":
            self.checked += 1
            status = 200 if self.ready else 503
        else:
            self.asked.append((method, target))
        if target == "/held":
            await self.released.wait()
        if status is None:
            return False
        body = self.name.encode()
        events: list[h11.Event] = [
            h11.Response(status_code=status, headers=[("Content-Length", str(len(body)))]),
            *([] if method == "HEAD" else [h11.Data(data=body)]),
            h11.EndOfMessage(),
        ]
        await stream.send_all(b"".join(connection.send(event) or b"" for event in events))
        return connection.our_state is h11.DONE


@asynccontextmanager
async def fake_nodes(nursery: trio.Nursery, names: Sequence[str]) -> AsyncIterator[list[FakeNode]]:
    """Nodes that listen while the block runs."""
    nodes = [FakeNode(name) for name in names]
    for node in nodes:
        await node.start(nursery)
    try:
        yield nodes
    finally:
        for node in nodes:
            node._scope.cancel()

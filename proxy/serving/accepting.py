"""Accepts connections for Hypercorn's protocols, and ends without losing one.

Hypercorn's own loop closes the listening sockets at once: the kernel then resets the connections
that wait in them, and idle clients lose the requests that they are sending.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import hypercorn
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.lifespan import Lifespan
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import LifespanTimeoutError, repr_socket_addr

from proxy.observability.log import server_log
from proxy.web.app import ImageProxyApp
from proxy.web.hypercorn_connection import Connection
from proxy.web.hypercorn_protocols import DrainingContext

SO_ATTACH_FILTER = 26
"""Of Linux; Python does not name it."""

HANDSHAKES = 0.1
"""Seconds in which those that have begun end. Clients are seldom further away."""

_LEAVE_OUT_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        # Load the byte of a TCP header that has its flags (RFC 9293, section 3.1).
        (0x30, 0, 0, 13),
        (0x45, 0, 1, 0x02),  # SYN?
        (0x06, 0, 0, 0),  # leave out
        (0x06, 0, 0, 0xFFFFFFFF),  # let through
    )
)
"""Classic BPF (Linux: Documentation/networking/filter.rst)."""


class Listener(trio.abc.Listener[trio.SocketStream]):
    """A listening socket that accepts what waits in it before it closes.

    Args:
        listening: listens already, without blocking.
        serve: is given the last connections. Does not wait.

    Attributes:
        address: where it listens, as in a URL.
    """

    def __init__(
        self, listening: socket.socket, serve: Callable[[trio.SocketStream], None]
    ) -> None:
        self._listening = listening
        self.address = repr_socket_addr(listening.family, listening.getsockname())
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        self._serve = serve

    async def accept(self) -> trio.SocketStream:
        """Return the next connection."""
        return await self._listener.accept()

    def turn_away(self) -> None:
        """Leave the first packet of new clients unanswered, as if it were lost.

        A client that connects between the last ``accept`` and the close would be reset. Now it
        asks again a second later (RFC 6298, section 2.1), when it is refused or another process
        listens here. Other processes that hold this socket accept no more either.
        """
        if sys.platform != "linux" or self._listening.family == socket.AF_UNIX:
            return
        code = ctypes.create_string_buffer(_LEAVE_OUT_SYN)
        program = struct.pack("@HP", len(_LEAVE_OUT_SYN) // 8, ctypes.addressof(code))
        with suppress(OSError):  # forbidden to this process
            self._listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    async def aclose(self) -> None:
        """Serve what waits, and close. Does not wait, and so loses no connection to others."""
        # An error: a client that is gone, or no descriptors; the rest is reset.
        with suppress(OSError):
            while True:
                stream, _ = self._listening.accept()
                stream.setblocking(False)
                self._serve(trio.SocketStream(trio.socket.from_stdlib_socket(stream)))
        self._listening.close()
        await self._listener.aclose()


async def serve_app(
    app: ImageProxyApp,
    settings: hypercorn.Config,
    open_sockets: Callable[[], Sequence[socket.socket]],
    context: DrainingContext,
    closing: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``closing``, then answer what has begun, for ``graceful_timeout`` at most.

    The application then has ``shutdown_timeout`` to stop.

    Args:
        open_sockets: called when the application has started; returns sockets that listen.
        context: its connections end after their next answers once it is draining.

    ``task_status`` is told the URLs. Cancellation closes everything at once.

    Raises:
        OSError: ``open_sockets`` failed.
        LifespanFailureError: the application did not start.
        LifespanTimeoutError: it did not start in time.
    """
    state: LifespanState = {}
    wrapped = ASGIWrapper(app)
    lifespan = Lifespan(wrapped, settings, state)

    async def serve(stream: trio.SocketStream) -> None:
        try:
            own = ConnectionState(state.copy())
            await Connection(wrapped, settings, context, own, stream).run()
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as living:
        await living.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as connections:

            def begin(stream: trio.SocketStream) -> None:
                connections.start_soon(serve, stream)

            listeners = [Listener(each, begin) for each in open_sockets()]
            urls = [f"http://{each.address}" for each in listeners]
            for url in urls:
                server_log().info("Running on %s", url)
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, serve, listeners, handler_nursery=connections)
                )
                task_status.started(urls)
                await closing.wait()
                if not context.others_accept:
                    for each in listeners:
                        each.turn_away()
                    await trio.sleep(HANDSHAKES)
                accepting.cancel_scope.cancel()
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + settings.graceful_timeout
        try:
            await lifespan.wait_for_shutdown()
        except LifespanTimeoutError:
            # A disk that hangs, or a busy machine: what was asked for is answered all the same.
            server_log().warning("the service did not stop in time; it is ended")
        living.cancel_scope.cancel()

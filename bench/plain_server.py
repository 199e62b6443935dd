"""One request a connection, without a parser: what upstreams stand on that misbehave on purpose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from bench.upstream import RECEIVE

Respond = Callable[[trio.SocketStream, str], Awaitable[None]]
"""Answers one request for a target (path and query) on a stream, which is closed afterwards."""

GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""How a connection ends that the proxy closed."""


async def answer_plain(respond: Respond, stream: trio.SocketStream) -> None:
    """Read the head of a request without a body, have it answered, and close the connection."""
    async with stream:
        with suppress(*GONE):
            request = bytearray()
            while not request.endswith(b"\r\n\r\n"):
                received = await stream.receive_some(RECEIVE)
                if not received:
                    return
                request += received
            await respond(stream, request.split(b" ", 2)[1].decode("ascii"))

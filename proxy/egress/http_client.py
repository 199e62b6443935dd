"""One small interface over two HTTP clients: a request whose answer is read as it comes.

Neither client follows redirects, decompresses, or opens a connection that did not come from the
``Network`` it was given.

Pure.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from proxy.egress.endpoint import Origin

Method = Literal["GET", "HEAD"]

MAX_IDLE = 64
"""Idle connections kept over all hosts: a federated network has more hosts than sockets."""


@dataclass(frozen=True, slots=True)
class StreamingResponse:
    """The head of an answer, and its body still to come.

    Attributes:
        status: three digits.
        headers: by lower-case name; of repeated ones the last.
        body: chunks as received, never decoded. Iterating raises ``BadAnswer`` when the
            connection breaks before the body's end. Who begins to iterate closes it.
    """

    status: int
    headers: Mapping[str, str]
    body: AsyncGenerator[bytes, None]


class HttpClient(Protocol):
    """Sends requests over connections that a ``Network`` opened."""

    def request(
        self, method: Method, origin: Origin, target: str, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[StreamingResponse]:
        """Ask ``origin`` for ``target`` (path and query).

        The connection is given back or closed when the block ends; a cancelled block closes it.

        Raises:
            Forbidden, ConnectFailed: from the network.
            BadAnswer: the connection broke, or what came is not HTTP.
        """
        ...

    async def close_expired(self) -> None:
        """Close the connections that have been idle for too long."""
        ...

    async def aclose(self) -> None:
        """Close all idle connections."""
        ...

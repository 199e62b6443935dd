"""The common interface of the two HTTP clients: a request whose answer is read as it arrives.

Neither client follows redirects or decompresses. Both get every connection from the ``Network``
that they were given.

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
"""Idle connections kept, for all hosts together: a federated network has more hosts than a process
has sockets."""


@dataclass(frozen=True, slots=True)
class StreamingResponse:
    """The head of an answer, and its body, which is not read yet.

    Attributes:
        status: three digits.
        headers: by lower-case name; if a header is repeated, the last one. A character for each
            byte (ISO 8859-1).
        body: chunks as received, never decoded. Iterating raises ``BadAnswer`` when the
            connection breaks before the body's end. The code that begins to iterate closes it.
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

        At the end of the block the connection is reused or closed; a cancelled block closes it.

        Raises:
            Forbidden, ConnectFailed: from the network.
            BadAnswer: the connection broke, or the bytes received are not HTTP.
        """
        ...

    async def close_expired(self) -> None:
        """Close the connections that have been idle for too long."""
        ...

    async def aclose(self) -> None:
        """Close all idle connections."""
        ...

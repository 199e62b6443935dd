"""The interface to the network: two methods, so that a guard, a fake and a counter stay small."""

from __future__ import annotations

from typing import Protocol

import trio


class Network(Protocol):
    """Opens streams. Both HTTP clients get all their streams from it."""

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Open a TCP stream to ``host`` (a name, or an address literal without brackets).

        Cancellation leaves no socket open.

        Raises:
            Forbidden: the destination is refused; nothing was sent to it.
            ConnectFailed: the name does not resolve, or the host does not accept a connection.
        """
        ...

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        """Start TLS over ``stream``, with ``host`` as server name and in the certificate check.

        On failure and on cancellation ``stream`` is closed.

        Raises:
            ConnectFailed: the handshake or the certificate check failed.
        """
        ...

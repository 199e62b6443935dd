"""The seam to the network: two methods, so that a guard, a fake and a counter stay small."""

from __future__ import annotations

from typing import Protocol

import trio


class Network(Protocol):
    """Opens streams. Both HTTP clients get theirs from here and from nowhere else."""

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """A TCP stream to ``host`` (a name or an address literal without brackets).

        Cancellation leaves no socket behind.

        Raises:
            Forbidden: the destination is refused; no packet left.
            ConnectFailed: the name does not resolve, or nobody answers there.
        """
        ...

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        """TLS over ``stream``; server name and certificate are those of ``host``.

        On failure and on cancellation ``stream`` is closed.

        Raises:
            ConnectFailed: the handshake or the certificate check failed.
        """
        ...

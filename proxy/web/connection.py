"""Hypercorn's connections, so that no client can end the server or keep it from ending."""

from __future__ import annotations

import hypercorn.trio.run
import structlog
import trio
from hypercorn.trio.tcp_server import TCPServer

log = structlog.get_logger(__name__)


class Connection(TCPServer):
    """As Hypercorn's, but for two things.

    An exception ends this connection alone. Hypercorn lets it end the server, and one request
    brings it about: an upgrade to a WebSocket with a byte behind it (its issue 225), or one to
    HTTP/2 whose settings do not decode.

    It also ends while its client does not read. Hypercorn shields what it sends from
    cancellation, so that one such client would keep the process from ending; closing the socket
    ends what the shield does not let be cancelled.
    """

    async def run(self) -> None:
        """Serve one client to its end."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._close_when_cancelled)
                await super().run()
                nursery.cancel_scope.cancel()
        except* Exception as group:
            log.warning("connection failed", error=repr(group.exceptions)[:500])

    async def _close_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(self.stream)


def install() -> None:
    """Have Hypercorn's Trio worker make its connections of this class, in this process."""
    # It has no setting for it, and looks the name up when it begins to serve.
    hypercorn.trio.run.TCPServer = Connection  # type: ignore[attr-defined]

"""Several machines on one database: folders of their own, in this process or others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from proxy.config import Config
from proxy.service import Service
from tests.fakes.world import World

LEASE = 60.0
"""Seconds: longer than a busy machine keeps a process from renewing it."""

SHORT_LEASE = 3.0
"""Seconds, where a test waits for the end of a lease."""


class Relay:
    """A TCP relay to a database, which can be cut without a word, as a partition does.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._whole = trio.Event()
        self._whole.set()

    def cut(self) -> None:
        """Pass nothing on any more. Connections stay open, and new ones are taken."""
        self._whole = trio.Event()

    def heal(self) -> None:
        """Pass on again, also what came meanwhile."""
        self._whole.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._relay, [listener])

    async def _relay(self, stream: trio.SocketStream) -> None:
        await self._whole.wait()
        try:
            async with (
                await trio.open_tcp_stream("127.0.0.1", self._target) as there,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._pass, stream, there, nursery.cancel_scope)
                nursery.start_soon(self._pass, there, stream, nursery.cancel_scope)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _pass(
        self, source: trio.SocketStream, to: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        async for data in source:
            await self._whole.wait()
            await to.send_all(data)
        scope.cancel()


def node_config(world: World, folder: Path, url: str, **sections: dict[str, Any]) -> Config:
    """The configuration of a machine of a cluster."""
    cluster = {"database": url, "lease": LEASE, **sections.pop("cluster", {})}
    return world.config(cache={"path": folder}, cluster=cluster, **sections)


@asynccontextmanager
async def node(
    world: World, folder: Path, url: str, **sections: dict[str, Any]
) -> AsyncIterator[Service]:
    """A machine of a cluster, while the block runs."""
    async with world.service(node_config(world, folder, url, **sections)) as service:
        yield service

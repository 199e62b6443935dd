"""The worker processes of one server, and how they tell one another what they have counted.

Each listens on a socket of its own in a folder that the first process made. A request for the
metrics asks the others while it waits; nothing is written between two requests, and a hit costs
what it costs without this.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog
import trio

from proxy.observability.metrics_snapshot import MetricsSnapshot

FOLDER_VARIABLE = "IMAGEPROXY_WORKERS_FOLDER"
"""Tells worker processes the folder. No setting: those begin in another way."""

PATIENCE = 2.0
"""Seconds for all the others to answer; Prometheus waits for ten."""

BACKLOG = 16

log = structlog.get_logger(__name__)


class WorkerPeers:
    """The other processes of this server.

    Args:
        folder: of the sockets; only this user may enter it.
        own: what this process has counted.
    """

    def __init__(self, folder: Path, own: Callable[[], MetricsSnapshot]) -> None:
        self._folder = folder
        self._own = own
        self._path = _path(folder, os.getpid())
        self._scope = trio.CancelScope()

    def stop(self) -> None:
        """End ``run``."""
        self._scope.cancel()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer the others until ``stop``; then take the socket away.

        Raises:
            OSError: the folder cannot be used.
        """
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as socket:
            await socket.bind(str(self._path))
            try:
                socket.listen(BACKLOG)
                serving = partial(trio.serve_listeners, self._answer, [trio.SocketListener(socket)])
                async with trio.open_nursery() as nursery:
                    await nursery.start(serving)
                    task_status.started()
                    with self._scope:
                        await trio.sleep_forever()
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True), suppress(OSError):
                    await trio.to_thread.run_sync(os.unlink, self._path)

    async def snapshots(self) -> list[MetricsSnapshot]:
        """This process's own, and those of all others that answer within ``PATIENCE``.

        Cancellation leaves no connection behind.
        """
        found = [self._own()]
        with trio.move_on_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for path in await trio.to_thread.run_sync(self._others):
                    nursery.start_soon(self._ask, path, found)
        return found

    def _others(self) -> list[Path]:
        return [path for path in self._folder.glob("*.sock") if path != self._path]

    async def _ask(self, path: Path, found: list[MetricsSnapshot]) -> None:
        try:
            async with await trio.open_unix_socket(str(path)) as stream:
                data = b"".join([bytes(part) async for part in stream])
            found.append(MetricsSnapshot.from_json(data))
        except (OSError, trio.BrokenResourceError, ValueError) as error:
            # It has ended, or is about to: what it counted is gone with it.
            log.info("a worker does not tell its metrics", cause=str(error))

    async def _answer(self, stream: trio.SocketStream) -> None:
        # One that asks and goes away is no failure of ours.
        with suppress(trio.BrokenResourceError):
            async with stream:
                await stream.send_all(self._own().to_json())


def forget(folder: Path, pid: int) -> None:
    """Take away the socket of a process that ended without doing so."""
    with suppress(OSError):
        _path(folder, pid).unlink()


def _path(folder: Path, pid: int) -> Path:
    return folder / f"{pid}.sock"

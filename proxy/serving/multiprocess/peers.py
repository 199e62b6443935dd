"""Exchanges metrics, and what is known of hosts, between the worker processes of one server.

Each process listens on its own socket in a folder that the first process made. A request for
them asks the others while it waits. Between such requests nothing is written, so a hit costs
no more than without this.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog
import trio

from proxy.observability.process_snapshot import ProcessSnapshot

FOLDER_VARIABLE = "IMAGEPROXY_WORKERS_FOLDER"
"""The variable that gives worker processes the folder. Not a setting: its prefix differs."""

PATIENCE = 2.0
"""Seconds for all the others to answer; Prometheus waits for ten."""

BACKLOG = 16

log = structlog.get_logger(__name__)


class WorkerPeers:
    """The other processes of this server.

    Args:
        folder: the folder of the sockets; only this user may enter it.
        own: returns what this process tells.
    """

    def __init__(self, folder: Path, own: Callable[[], ProcessSnapshot]) -> None:
        self._folder = folder
        self._own = own
        self._path = _path(folder, os.getpid())
        self._scope = trio.CancelScope()

    def stop(self) -> None:
        """End ``run``."""
        self._scope.cancel()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer the others until ``stop``; then remove the socket.

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

    async def snapshots(self) -> list[ProcessSnapshot]:
        """Return the snapshots of this process, and of all others that answer in ``PATIENCE``.

        Cancellation leaves no connection open.
        """
        found = [self._own()]
        with trio.move_on_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for path in await trio.to_thread.run_sync(self._others):
                    nursery.start_soon(self._ask, path, found)
        return found

    def _others(self) -> list[Path]:
        return [path for path in self._folder.glob("*.sock") if path != self._path]

    async def _ask(self, path: Path, found: list[ProcessSnapshot]) -> None:
        try:
            async with await trio.open_unix_socket(str(path)) as stream:
                data = b"".join([bytes(part) async for part in stream])
            found.append(ProcessSnapshot.from_json(data))
        except (OSError, trio.BrokenResourceError, ValueError) as error:
            # The process has ended, or is about to end: its counts are lost.
            log.info("a worker does not tell its metrics", cause=str(error))

    async def _answer(self, stream: trio.SocketStream) -> None:
        # A peer that asks and then disconnects is not our failure.
        with suppress(trio.BrokenResourceError):
            async with stream:
                await stream.send_all(self._own().to_json())


def forget(folder: Path, pid: int) -> None:
    """Remove the socket of a process that ended without removing it."""
    with suppress(OSError):
        _path(folder, pid).unlink()


def _path(folder: Path, pid: int) -> Path:
    return folder / f"{pid}.sock"

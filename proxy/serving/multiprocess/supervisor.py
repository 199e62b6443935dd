"""Starts the worker processes of one server, replaces those that end, and stops them together.

The first process owns the listening socket and answers no requests. Each worker inherits that
socket, and one end of a socket pair, its tie. The worker sends a byte over the tie when it serves.
When the tie closes, the worker stops; the tie also closes when the first process is killed.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from os.path import abspath
from pathlib import Path

import structlog
import trio

from proxy.serving import systemd
from proxy.serving.multiprocess import peers as siblings

SERVES = b"1"
"""The byte that a worker sends over its tie."""

RESTART_PAUSE = 1.0
"""Seconds before a worker that ended is replaced."""

BOOTSTRAP = """
import sys
sys.path[:] = sys.argv[2:]
from proxy.serving.multiprocess.worker_process import main
sys.exit(main(int(sys.argv[1])))
"""

log = structlog.get_logger(__name__)


class Supervisor:
    """Runs ``count`` workers.

    Args:
        listener: the bound socket; closed when the workers must stop.
        environment: the environment of the workers; contains their configuration.
        folder: the folder in which they exchange metrics.
        patience: seconds for a worker to stop, before it is killed.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        count: int,
        environment: Mapping[str, str],
        folder: Path,
        patience: float,
    ) -> None:
        self._listener = listener
        self._count = count
        self._folder = folder
        # Workers notify this process, and this process notifies systemd.
        environment = {key: value for key, value in environment.items() if key != systemd.VARIABLE}
        self._environment = environment | {siblings.FOLDER_VARIABLE: str(folder)}
        self._patience = patience
        self._stopping = trio.Event()
        self._serving = 0
        self._was_ready = False
        self._code = 0

    def stop(self) -> None:
        """End ``run`` once the requests in flight are answered; accept no new connections."""
        if not self._stopping.is_set():
            systemd.notify(systemd.STOPPING)
            self._listener.close()
            self._stopping.set()

    async def run(self) -> int:
        """Run the workers until ``stop``, or until one cannot start while no other serves.

        Cancellation kills them.

        Returns:
            The exit code: 0, or that of the worker that could not start.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(self._count):
                nursery.start_soon(self._keep_one)
        return self._code

    async def _keep_one(self) -> None:
        """Keep one worker running: start another each time one ends."""
        while True:
            served = False
            try:
                async with self._started() as (process, tie):
                    served = await self._serves(tie)
                    with self._counted(served):
                        code = await self._end_of(process, tie)
                how: dict[str, object] = {"pid": process.pid, **_how(code)}
            except OSError as error:  # no process, no descriptor
                code, how = 1, {"cause": str(error)}
            if self._stopping.is_set():
                return
            if not served and self._serving == 0:
                log.error("a worker cannot be started, and no other serves", **how)
                self._code = code if code > 0 else 1
                self.stop()
                return
            log.error("a worker ended; another is started", **how)
            with trio.move_on_after(RESTART_PAUSE):
                await self._stopping.wait()
            if self._stopping.is_set():
                return

    @contextmanager
    def _counted(self, serves: bool) -> Iterator[None]:
        """Count a worker as serving during the block."""
        self._serving += serves
        if self._serving == self._count and not self._was_ready:
            self._was_ready = True
            systemd.notify(systemd.READY)
        try:
            yield
        finally:
            self._serving -= serves

    @asynccontextmanager
    async def _started(self) -> AsyncIterator[tuple[trio.Process, trio.SocketStream]]:
        """Start a worker; at the end of the block, kill it if it still runs.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        tie = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        try:
            # A copy: ``stop`` may close the listener meanwhile.
            with theirs, self._listener.dup() as listener:
                descriptor = listener.fileno()
                process = await trio.lowlevel.open_process(
                    # Like ``-m``, but the current folder is not searched for modules.
                    [sys.executable, "-c", BOOTSTRAP, str(descriptor), *map(abspath, sys.path)],
                    stdin=theirs,
                    env=self._environment,
                    pass_fds=[descriptor],
                )
        except BaseException:
            ours.close()
            raise
        try:
            yield process, tie
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(tie)
                if process.poll() is None:
                    process.kill()
                    await process.wait()
                siblings.forget(self._folder, process.pid)

    async def _serves(self, tie: trio.SocketStream) -> bool:
        """Wait until the worker serves, ends, or must stop; return whether it serves."""
        serves = False

        async def heard() -> None:
            nonlocal serves
            with suppress(trio.BrokenResourceError):
                serves = await tie.receive_some(1) == SERVES
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(heard)
            await self._stopping.wait()
            nursery.cancel_scope.cancel()
        return serves

    async def _end_of(self, process: trio.Process, tie: trio.SocketStream) -> int:
        """Wait for a worker to end, and tell it when to stop.

        Returns:
            Its exit code, or minus the number of the signal that ended it.
        """

        async def tell() -> None:
            await self._stopping.wait()
            await trio.aclose_forcefully(tie)
            scope.deadline = trio.current_time() + self._patience

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell)
                await process.wait()
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            log.error("a worker did not stop; it is killed", pid=process.pid)
        return process.returncode or 0


def _how(code: int) -> dict[str, int]:
    return {"signal": -code} if code < 0 else {"exit_code": code}

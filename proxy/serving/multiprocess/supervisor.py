"""The worker processes of one server: started, replaced when one ends, stopped together.

The first process has the listening socket and answers nobody. Each worker inherits that socket,
and one end of a pair of sockets, its tie: by a byte it says that it serves, and by the end of it
learns that it is to stop, also when the first process was killed.
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
"""What a worker says over its tie."""

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
        listener: the socket, bound; closed when the workers are to stop.
        environment: of the workers; has their configuration.
        folder: where they tell one another what they have counted.
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
        # They tell this process, and it systemd.
        environment = {key: value for key, value in environment.items() if key != systemd.VARIABLE}
        self._environment = environment | {siblings.FOLDER_VARIABLE: str(folder)}
        self._patience = patience
        self._stopping = trio.Event()
        self._serving = 0
        self._was_ready = False
        self._code = 0

    def stop(self) -> None:
        """Have ``run`` end once the requests in flight are answered; nobody is accepted now."""
        if not self._stopping.is_set():
            systemd.notify(systemd.STOPPING)
            self._listener.close()
            self._stopping.set()

    async def run(self) -> int:
        """Run the workers until ``stop``, or until one cannot start while no other serves.

        Cancellation kills them.

        Returns:
            The exit code: 0, or that of the one that could not start.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(self._count):
                nursery.start_soon(self._keep_one)
        return self._code

    async def _keep_one(self) -> None:
        """One worker after another."""
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
        """Count a worker among those that serve, while it does."""
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
        """A worker; killed, if it still runs, at the end of the block.

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
                    # As ``-m``, but that the current folder is not where modules are looked for.
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
        """Wait until the worker serves, ends, or is to stop; whether it serves."""
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
        """The exit code of a worker, which is told when it is to stop; minus a signal's number."""

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

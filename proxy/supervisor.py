"""The worker processes of one server: started, replaced when one ends, stopped together.

The first process has the listening socket and answers nobody. Each worker inherits that socket,
and one end of a pair of sockets, its tie: by a byte it says that it serves, and by the end of it
learns that it is to stop, also when the first process was killed.
"""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
import trio

from proxy import siblings, systemd

SERVES = b"1"
"""What a worker says over its tie."""

RESTART_PAUSE = 1.0
"""Seconds before a worker that ended is replaced."""

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
        self._code = 0

    def stop(self) -> None:
        """Have ``run`` end once the requests in flight are answered; nobody is accepted now."""
        if not self._stopping.is_set():
            systemd.notify(systemd.STOPPING)
            self._listener.close()
            self._stopping.set()

    async def run(self) -> int:
        """Run the workers until ``stop``, or until one cannot start in the first place.

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
        has_served = False
        while not self._stopping.is_set():
            async with self._started() as (process, tie):
                serves = await self._serves(tie)
                has_served = has_served or serves
                code = await self._end_of(process, tie)
            if self._stopping.is_set():
                return
            if not has_served:
                self._code = code if code > 0 else 1
                self.stop()
                return
            log.error("a worker ended; another is started", pid=process.pid, **_how(code))
            with trio.move_on_after(RESTART_PAUSE):
                await self._stopping.wait()

    @asynccontextmanager
    async def _started(self) -> AsyncIterator[tuple[trio.Process, trio.SocketStream]]:
        """A worker; killed, if it still runs, at the end of the block."""
        ours, theirs = socket.socketpair()
        descriptor = self._listener.fileno()
        with theirs:
            tie = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            try:
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-m", "proxy.worker", str(descriptor)],
                    stdin=theirs,
                    env=self._environment,
                    pass_fds=[descriptor],
                )
            except BaseException:
                await trio.aclose_forcefully(tie)
                raise
        try:
            yield process, tie
        finally:
            await trio.aclose_forcefully(tie)
            with trio.CancelScope(shield=True):
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
        if serves:
            self._serving += 1
            if self._serving == self._count:
                systemd.notify(systemd.READY)
        return serves

    async def _end_of(self, process: trio.Process, tie: trio.SocketStream) -> int:
        """The exit code of a worker, which is told when it is to stop; minus a signal's number."""

        async def tell() -> None:
            await self._stopping.wait()
            await trio.aclose_forcefully(tie)
            scope.deadline = trio.current_time() + self._patience

        with trio.CancelScope(deadline=math.inf) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell)
                await process.wait()
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            log.error("a worker did not stop; it is killed", pid=process.pid)
        return process.returncode or 0


def _how(code: int) -> dict[str, int]:
    return {"signal": -code} if code < 0 else {"exit_code": code}

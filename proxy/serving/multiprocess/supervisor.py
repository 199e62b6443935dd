"""Starts the worker processes of one server, replaces those that end, and stops them together.

The first process owns the listening sockets and answers no requests. Each worker inherits these
sockets, and one end of a socket pair, its tie (``tie``), which brings its configuration, and says
when it must stop; when the tie closes, it stops without the delay of a drain. The tie also closes
when the first process is killed.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from os.path import abspath
from pathlib import Path

import structlog
import trio

from proxy.config import Config
from proxy.serving import systemd
from proxy.serving.multiprocess import peers as siblings
from proxy.serving.multiprocess.tie import SERVES, STOPS, configuring

RESTART_PAUSE = 1.0
"""Seconds before a worker that ended is replaced."""

BOOTSTRAP = """
import gc, sys
sys.path[:] = sys.argv[2:]
gc.disable()  # as in ``proxy.cli.serving``
from proxy.serving.multiprocess.worker_process import main
gc.freeze()
gc.enable()
sys.exit(main([int(each) for each in sys.argv[1].split(',')]))
"""

log = structlog.get_logger(__name__)


class Supervisor:
    """Runs ``server.workers`` workers.

    Args:
        listeners: the sockets that listen; closed when the workers must stop.
        config: what the workers are given.
        environment: the environment of the workers.
        folder: the folder in which they exchange metrics.
        patience: seconds for a worker to stop, before it is killed.
        on_serving: called once all workers serve for the first time.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        *,
        config: Config,
        environment: Mapping[str, str],
        folder: Path,
        patience: float,
        on_serving: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_serving = on_serving
        self._listeners = listeners
        self._config = config
        self._count = config.server.workers
        self._folder = folder
        # Workers notify this process, and this process notifies systemd.
        environment = {key: value for key, value in environment.items() if key != systemd.VARIABLE}
        self._environment = environment | {siblings.FOLDER_VARIABLE: str(folder)}
        self._patience = patience
        self._stopping = trio.Event()
        self._hurrying = trio.Event()
        # Set, and replaced, when there is something to tell the workers.
        self._news = trio.Event()
        self._serving = 0
        self._was_ready = False
        self._code = 0

    def stop(self) -> None:
        """End ``run`` once the requests in flight are answered; accept no new connections."""
        if not self._stopping.is_set():
            systemd.notify(systemd.STOPPING)
            for listener in self._listeners:
                listener.close()
            self._stopping.set()
            self._news.set()

    def take(self, config: Config) -> None:
        """Give ``config`` to every worker, now or when it starts."""
        self._config = config
        self._news.set()
        self._news = trio.Event()

    def stop_now(self) -> None:
        """``stop`` without the delay of a drain."""
        self.stop()
        self._hurrying.set()

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
                        code = await self._end_of(process)
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
        is_ready = self._serving == self._count and not self._stopping.is_set()
        if is_ready and not self._was_ready:
            self._was_ready = True
            self._on_serving()
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
            with theirs, ExitStack() as copies:
                # Copies: ``stop`` may close the listeners meanwhile.
                found = [copies.enter_context(each.dup()).fileno() for each in self._listeners]
                descriptors = ",".join(map(str, found))
                process = await trio.lowlevel.open_process(
                    # Like ``-m``, but the current folder is not searched for modules.
                    [sys.executable, "-c", BOOTSTRAP, descriptors, *map(abspath, sys.path)],
                    stdin=theirs,
                    env=self._environment,
                    pass_fds=found,
                )
        except BaseException:
            ours.close()
            raise
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, tie)
                yield process, tie
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(tie)
                if process.poll() is None:
                    process.kill()
                    await process.wait()
                siblings.forget(self._folder, process.pid)

    async def _tell(self, tie: trio.SocketStream) -> None:
        """Give a worker each configuration, the first of them at once, and tell it when to stop."""
        told: Config | None = None
        with suppress(trio.BrokenResourceError):  # it has ended
            while not self._stopping.is_set():
                if told is self._config:
                    await self._news.wait()
                else:
                    told = self._config
                    await tie.send_all(configuring(told))
            await tie.send_all(STOPS)
        await self._hurrying.wait()
        await trio.aclose_forcefully(tie)

    async def _serves(self, tie: trio.SocketStream) -> bool:
        """Wait until the worker serves, ends, or must stop; return whether it serves."""
        serves = False

        async def heard() -> None:
            nonlocal serves
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                serves = await tie.receive_some(1) == SERVES
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(heard)
            await self._stopping.wait()
            nursery.cancel_scope.cancel()
        return serves

    async def _end_of(self, process: trio.Process) -> int:
        """Wait for a worker to end; kill it if it does not in time once it must.

        Returns:
            Its exit code, or minus the number of the signal that ended it.
        """

        async def limit() -> None:
            await self._stopping.wait()
            scope.deadline = trio.current_time() + self._patience

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(limit)
                await process.wait()
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            log.error("a worker did not stop; it is killed", pid=process.pid)
        return process.returncode or 0


def _how(code: int) -> dict[str, int]:
    return {"signal": -code} if code < 0 else {"exit_code": code}

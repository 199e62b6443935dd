"""The service's side of the process that workers are forked from: starts it, and orders forks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

from proxy.imaging.workers.ipc import ENDED, FORK, ORDER, REAP, STILL_RUNS
from proxy.imaging.workers.sandbox import Limits

END_LIMIT = 5.0
"""Seconds until a killed process must be gone. It takes milliseconds unless the kernel hangs."""

FIRST_LOOK, LAST_LOOK = 0.0005, 0.05
"""Seconds between two looks whether a worker has ended; doubled each time."""

# "-I" ignores the environment and the user's folder. Our ``sys.path`` is passed as arguments.
BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from proxy.imaging.workers.fork_server import main; main(int(sys.argv[1]))"
)
BOOTSTRAP_FOR_VIDEOS = BOOTSTRAP.replace("fork_server", "video_fork_server")


class ForkServer:
    """The process, started with the first fork, and again after its end. For any thread.

    Args:
        for_videos: its workers make posters of videos, and nothing else. FFmpeg is in no other.
    """

    def __init__(self, *, for_videos: bool = False) -> None:
        self._for_videos = for_videos
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(
        self,
        limits: Limits,
        connection: socket.socket,
        source: int,
        room: int,
    ) -> None:
        """Order a worker, which introduces itself over its end of a socket later.

        If it cannot be forked, its end of the socket closes.

        Args:
            connection: its end.
            source, room: the descriptor of its source, and the bytes of it.

        Raises:
            OSError: there are no more processes or descriptors, or the process has just ended.
        """
        order = ORDER.pack(FORK, limits.memory, limits.cpu, room)
        with self._lock:
            socket.send_fds(self._running(), [order], [connection.fileno(), source])

    def is_running(self) -> bool:
        """Whether it lives. If not, the kernel has ended its workers too. Does not block."""
        process = self._process
        return process is not None and process.poll() is None

    def exit_code(self, pid: int) -> int | None:
        """Return how the worker ``pid`` ended; None if it has not, SIGKILL if nobody knows."""
        with self._lock:
            if self._control is None:
                return -signal.SIGKILL
            try:
                self._control.sendall(ORDER.pack(REAP, pid, 0, 0))
                data = self._control.recv(ENDED.size, socket.MSG_WAITALL)
            except OSError:
                # Its answer may still come, and would be taken for that to the next question.
                self._close()
                return -signal.SIGKILL
        if len(data) < ENDED.size:
            return -signal.SIGKILL
        (code,) = ENDED.unpack(data)
        return None if code == STILL_RUNS else int(code)

    def wait(self, timeout: float) -> int:
        """Return its exit code, or raise ``subprocess.TimeoutExpired``."""
        if self._process is None:
            return 0
        return self._process.wait(timeout)

    def close(self) -> None:
        """End it, and with it its workers. Waits at most ``END_LIMIT``. May be called twice."""
        with self._lock:
            self._close()

    def _running(self) -> socket.socket:
        if self._control is not None and self.is_running():
            return self._control
        self._close()
        ours, theirs = socket.socketpair()
        ours.settimeout(END_LIMIT)
        path = [os.path.abspath(folder) for folder in sys.path]
        bootstrap = BOOTSTRAP_FOR_VIDEOS if self._for_videos else BOOTSTRAP
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 (our own interpreter)
                    [sys.executable, "-I", "-c", bootstrap, str(theirs.fileno()), *path],
                    env={},
                    cwd="/",
                    # Workers share our standard error until they are ready, to report why they
                    # cannot start.
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            except BaseException:
                ours.close()
                raise
        self._control = ours
        return ours

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_LIMIT)
            self._process = None


class Forked:
    """A worker's process: as much of ``subprocess.Popen`` as its owner needs.

    Only the fork server can wait for it, and does when asked to. Until then the number is its own.
    """

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._lock = threading.Lock()
        self._exit_code: int | None = None

    def kill(self) -> None:
        """Kill it, unless it has ended. Waits for no more than another thread's look at it."""
        with self._lock:
            if self._exit_code is None and self._server.is_running():
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Return its exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        end, pause = time.monotonic() + timeout, FIRST_LOOK
        while True:
            with self._lock:
                if self._exit_code is None:
                    self._exit_code = self._server.exit_code(self.pid)
                if self._exit_code is not None:
                    return self._exit_code
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)

"""One of several worker processes of a server, started by ``supervisor``.

Its tie is its standard input, and brings its configuration.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from proxy.config import Config
from proxy.serving.multiprocess.peers import FOLDER_VARIABLE, WorkerPeers
from proxy.serving.multiprocess.tie import SERVES, next_configuration
from proxy.serving.serve import run


def main(descriptors: Sequence[int]) -> int:
    """Serve on the sockets inherited as ``descriptors``; return the exit code."""
    # The first process hears it, also where the whole group does.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as tie:
        tie.setblocking(False)
        config = trio.run(_told, tie)
        if config is None:  # the server stops before this process has begun
            return 0
        return run(
            config,
            lambda: [socket.socket(fileno=each) for each in descriptors],
            on_serving=partial(_tell, tie),
            orders=partial(_told, tie),
            peers=partial(WorkerPeers, Path(os.environ[FOLDER_VARIABLE])),
        )


def _tell(tie: socket.socket) -> None:
    with suppress(OSError):  # the tie is closed: this process is about to stop
        tie.send(SERVES)


async def _told(tie: socket.socket) -> Config | None:
    return await next_configuration(trio.socket.from_stdlib_socket(tie))

"""One of several worker processes of a server, started by ``supervisor``.

Its configuration is in its environment. Its tie is its standard input.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from proxy.config import ConfigError, load_config
from proxy.serving.multiprocess.peers import FOLDER_VARIABLE, WorkerPeers
from proxy.serving.multiprocess.supervisor import SERVES
from proxy.serving.serve import run


def main(descriptor: int) -> int:
    """Serve on the socket inherited as ``descriptor``; return the exit code."""
    try:
        config = load_config()
    except ConfigError as error:  # the file was changed since the first process read it
        print(f"imageproxy: {error}", file=sys.stderr)
        return 2
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as tie:
        tie.setblocking(False)
        return run(
            config,
            f"fd://{descriptor}",
            on_serving=partial(_tell, tie),
            also_until=partial(_end_of, tie),
            peers=partial(WorkerPeers, Path(os.environ[FOLDER_VARIABLE])),
        )


def _tell(tie: socket.socket) -> None:
    with suppress(OSError):  # the tie is closed: this process is about to stop
        tie.send(SERVES)


async def _end_of(tie: socket.socket) -> None:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(tie))
    with suppress(trio.BrokenResourceError):
        async for _ in stream:
            pass

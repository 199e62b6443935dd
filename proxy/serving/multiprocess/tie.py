"""What the first process and a worker say to each other over the worker's tie.

A worker begins with a configuration that it is given, and sends ``SERVES`` once it serves. More
configurations may come, and in the end ``STOPS``.
"""

from __future__ import annotations

import pickle
import struct

import trio

from proxy.config import Config

SERVES = b"1"
"""The byte that a worker sends."""

STOPS = b"0"
"""The byte that asks a worker to stop."""

CONFIGURES = b"c"
"""The byte before the length of a configuration, which follows."""

_LENGTH = struct.Struct("!I")


def configuring(config: Config) -> bytes:
    """Return the message that gives ``config`` to a worker, its secrets too."""
    data = pickle.dumps(config)
    return CONFIGURES + _LENGTH.pack(len(data)) + data


async def next_configuration(tie: trio.socket.SocketType) -> Config | None:
    """Return the next configuration, or None: the worker must stop, or the first process is gone.

    After a cancellation the tie can no longer be read.
    """
    try:
        if await tie.recv(1) != CONFIGURES:
            return None
        (length,) = _LENGTH.unpack(await _exactly(tie, _LENGTH.size))
        data = await _exactly(tie, length)
    except (OSError, EOFError):
        return None
    # The other end is that of the process that started this one, and nobody else's.
    config: Config = pickle.loads(data)  # noqa: S301
    return config


async def _exactly(tie: trio.socket.SocketType, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await tie.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data

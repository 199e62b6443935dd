"""Whether the server of this container answers where it was told to listen; exit 1 if not.

Of all that configures it, only the environment and the command decide: the image sets the variable,
which wins over a file. Asked every 10 seconds, so it imports little.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy.shared.binds import UnixBind, parse_bind

PATIENCE = 2.0
"""Seconds."""


def bind_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the first address that the server of this command listens on."""
    told = environment.get("IMAGE_PROXY_SERVER__BIND", "127.0.0.1:8080")
    for word, after in zip(command, [*command[1:], ""], strict=True):
        if word == "--bind" or word.startswith("--bind="):
            told = word.partition("=")[2] or after
    return told.split(",")[0].strip()


def is_healthy(bind: str) -> bool:
    """Whether ``/healthz`` is a 200."""
    found = parse_bind(bind)
    if isinstance(found, UnixBind):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(found.path)
    else:
        host, _, port = found.reached_at.rpartition(":")
        connection = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)
    with connection, connection.makefile("rb") as answer:
        connection.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return answer.readline().split()[1:2] == [b"200"]


if __name__ == "__main__":
    # The server is the first process, or docker-init is, with the server's command as its own.
    first = Path("/proc/1/cmdline").read_text(encoding="utf-8").split("\0")
    raise SystemExit(0 if is_healthy(bind_of(first, os.environ)) else 1)

"""Opens the sockets that the server listens on."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from proxy.shared.binds import Bind, TcpBind, UnixBind

BACKLOG = 1024

UNIX_MODE = 0o666
"""Any user of this machine may connect, as to a port; who may enter the folder can be fewer."""


class CannotListen(OSError):
    """An address that cannot be listened on; its ``filename`` is the address."""


def open_sockets(binds: Sequence[Bind]) -> list[socket.socket]:
    """Listen on each address, without blocking.

    A socket in the file system that nobody listens on any more is replaced.

    Raises:
        CannotListen: an address is in use, or not ours to use. None is listened on then, and no
            file of a socket is left.
    """
    found: list[socket.socket] = []
    for bind in binds:
        listening: socket.socket | None = None
        try:
            if isinstance(bind, UnixBind):
                listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                _bind_unix(listening, Path(bind.path))
            else:
                family = socket.AF_INET6 if bind.is_ipv6 else socket.AF_INET
                listening = socket.socket(family, socket.SOCK_STREAM)
                _bind_tcp(listening, bind, binds)
            listening.setblocking(False)
            listening.listen(BACKLOG)
        except OSError as error:
            for each in (*found, *([listening] if listening else [])):
                each.close()
            remove_sockets(binds)
            raise CannotListen(error.errno, error.strerror or str(error), str(bind)) from error
        found.append(listening)
    return found


def remove_sockets(binds: Sequence[Bind]) -> None:
    """Remove the files of sockets that this server listened on."""
    for bind in binds:
        if isinstance(bind, UnixBind):
            with suppress(OSError):
                _remove_stale(Path(bind.path))


def _bind_tcp(listening: socket.socket, bind: TcpBind, binds: Sequence[Bind]) -> None:
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if bind.is_ipv6 and any(
        isinstance(each, TcpBind) and not each.is_ipv6 and each.port == bind.port for each in binds
    ):
        # Otherwise ``[::]`` takes the port of ``0.0.0.0`` too.
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listening.bind((bind.host, bind.port))


def _bind_unix(listening: socket.socket, path: Path) -> None:
    _remove_stale(path)
    listening.bind(str(path))
    os.chmod(path, UNIX_MODE)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        OSError: somebody does.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except BlockingIOError:  # it listens, and is busy
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

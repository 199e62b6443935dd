"""Notifies systemd of the state of this process (sd_notify(3)); does nothing without systemd."""

from __future__ import annotations

import os
import socket

import structlog

log = structlog.get_logger(__name__)

VARIABLE = "NOTIFY_SOCKET"
"""The variable with the name of systemd's socket."""

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(state: str) -> None:
    """Send ``state`` to systemd. Never blocks, never raises."""
    address = os.environ.get(VARIABLE, "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket (unix(7))
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.connect(address)
            channel.send(state.encode())
    except OSError as error:
        log.warning("systemd was not told", state=state, cause=str(error))

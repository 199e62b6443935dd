"""The last moment of a listening socket."""

from __future__ import annotations

import socket
import sys

import pytest
import trio

from proxy.serving.accepting import Listener

ESTABLISHED, SYN_SENT = 1, 2
"""tcp(7), ``TCP_INFO``: the first byte of its answer."""


def connecting(port: int) -> socket.socket:
    """A client's socket after its first packet, which goes over loopback at once."""
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", port))
    return client


def state_of(client: socket.socket) -> int:
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="filters of sockets are Linux's")
async def test_who_comes_while_it_closes_is_not_reset_and_who_came_before_is_served() -> None:
    """Catches a client that is accepted by the kernel after the last accept, and never answered."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.setblocking(False)
    listening.listen()
    port = listening.getsockname()[1]
    served: list[trio.SocketStream] = []
    listener = Listener(listening, served.append)
    with connecting(port) as early:
        assert state_of(early) == ESTABLISHED
        listener.turn_away()
        with connecting(port) as late:
            assert state_of(late) == SYN_SENT
            early.send(b"asked")
            await listener.aclose()
            assert state_of(late) == SYN_SENT
            assert [await each.receive_some() for each in served] == [b"asked"]
    for each in served:
        await each.aclose()

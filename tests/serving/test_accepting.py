"""The last moment of a listening socket, and of the service behind it."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Any, cast

import hypercorn
import pytest
import trio
from trio.testing import MockClock

import proxy.serving.serve
from proxy.config import Config
from proxy.serving import accepting
from proxy.serving.accepting import HANDSHAKES, Listener, serve_app
from proxy.serving.serve import hypercorn_config, run
from proxy.web.app import ImageProxyApp
from proxy.web.hypercorn_protocols import DrainingContext

ESTABLISHED, SYN_SENT = 1, 2
"""tcp(7), ``TCP_INFO``: the first byte of its answer."""


def listening_socket() -> socket.socket:
    """A server's, on a free port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.setblocking(False)
    listening.listen()
    return listening


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
    listening = listening_socket()
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


class Stuck:
    """An application that hangs when it starts, or when it stops."""

    def __init__(self, at: str) -> None:
        self._at = f"lifespan.{at}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Speak ASGI's lifespan protocol."""
        while (message := await receive())["type"] != self._at:
            await send({"type": f"{message['type']}.complete"})
        await trio.sleep_forever()


async def test_a_service_that_does_not_stop_in_time_is_ended_and_that_is_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a stop over a slow disk that ends in a traceback, of a start, and in exit code 1."""
    # Applications that ran before have set up the other one.
    monkeypatch.setattr(accepting, "server_log", lambda: logging.getLogger(__name__))
    closing = trio.Event()
    closing.set()
    settings = hypercorn_config(Config())
    app = cast(ImageProxyApp, Stuck("shutdown"))
    began = trio.current_time()
    context = DrainingContext(others_accept=False)
    await serve_app(app, settings, lambda: [listening_socket()], context, closing)
    took = trio.current_time() - began
    assert took == pytest.approx(HANDSHAKES + settings.shutdown_timeout)
    (told,) = (record for record in caplog.records if record.levelno > logging.INFO)
    assert "did not stop in time" in told.getMessage()


def test_a_service_that_does_not_start_in_time_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a traceback, and the advice to look into ASGI."""
    monkeypatch.setattr(hypercorn.Config, "startup_timeout", 0)
    monkeypatch.setattr(proxy.serving.serve, "create_app", lambda *_, **__: Stuck("startup"))
    assert run(Config(), list, on_serving=lambda: None) == 1
    assert capsys.readouterr().err == "imageproxy: the service did not start in time\n"

"""``Type=notify``: what systemd is told, and when."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import proxy.serving.systemd
from proxy.serving.systemd import READY, notify
from tests.logs import logged_by
from tests.processes import PATIENCE, SERVE, run, serve, what_cannot_start

pytestmark = pytest.mark.slow

Listener = socket.socket


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Listener]:
    """systemd's end of ``NOTIFY_SOCKET``, at ``tmp_path / "notify"``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE)
        yield listener


async def told(manager: Listener) -> str:
    return (await trio.to_thread.run_sync(manager.recv, 4096)).decode()


@pytest.mark.parametrize("workers", [1, 2])
async def test_systemd_is_told_once_it_serves_and_when_it_stops(
    workers: int, manager: Listener, tmp_path: Path
) -> None:
    """Catches a unit that starts what needs it too early, or that waits for ever."""
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "IMAGE_PROXY_CACHE_PATH": str(tmp_path / "cache"),
        "IMAGE_PROXY_PROCESS__ISOLATION": "thread",
    }
    arguments = [*SERVE, "--workers", str(workers)]
    async with serve(arguments, environment, workers=workers) as server:
        assert await told(manager) == "READY=1"
        assert (await server.get("/readyz")).status == 200
        server.send(signal.SIGTERM)
        assert await told(manager) == "STOPPING=1"
        assert await server.exit_code() == 0
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):  # each of them once
        manager.recv(4096)


async def test_systemd_is_not_told_of_readiness_by_what_cannot_start(
    manager: Listener, tmp_path: Path
) -> None:
    """Catches READY as soon as the port is taken: Hypercorn does that in any case."""
    environment = {
        **what_cannot_start(tmp_path),
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "IMAGE_PROXY_CACHE_PATH": str(tmp_path / "cache"),
    }
    async with run(SERVE, environment) as process:
        assert await process.exit_code() == 1
        await process.line_with("imageproxy: .*cannot import name")
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_an_abstract_address_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an address that is taken for a file's name, as in some containers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0imageproxy-test-notify")
        listener.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", "@imageproxy-test-notify")
        notify(READY)
        assert listener.recv(4096) == b"READY=1"


def test_without_systemd_nothing_is_told_and_a_deaf_one_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with logged_by(proxy.serving.systemd, monkeypatch) as lines:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        notify(READY)
        assert lines == []
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
        notify(READY)
    assert [line["log_level"] for line in lines] == ["warning"]

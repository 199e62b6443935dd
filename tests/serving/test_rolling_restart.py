"""Two nodes behind nginx that are restarted one after the other, under load."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import trio

from tests.fakes.world import tiny_jpeg
from tests.nginx import command_for, nginx_program
from tests.ports import free_port
from tests.processes import PATIENCE, Client, imageproxy, listening, started, until, upstream

pytestmark = pytest.mark.slow

CLIENTS = 8

FRONT = """
    upstream nodes {{
        {servers}
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://nodes;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
"""


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_rolling_restart_behind_nginx_loses_nothing(workers: int, tmp_path: Path) -> None:
    """Catches kept connections that end under a request, and a listener that resets its queue."""
    ports = [free_port(), free_port()]
    front_port = free_port()
    servers = " ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in ports)
    front = command_for(
        nginx_program(), tmp_path / "nginx", FRONT.format(servers=servers, port=front_port)
    )
    statuses: list[int] = []
    ended: list[None] = []
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        target = f"/img/avatar/plain/{did}/{cid}"
        environment = internet.environment(tmp_path)

        async def ask() -> None:
            async with Client(front_port) as client:
                while not done.is_set():
                    await client.send(target)
                    statuses.append((await client.reply()).status)
            ended.append(None)

        async def grown() -> None:
            before = len(statuses)
            await until(lambda: len(statuses) > before + 50)

        def node(port: int) -> list[str]:
            bind = f"127.0.0.1:{port}"
            return [sys.executable, *imageproxy("serve", "--bind", bind, "--workers", str(workers))]

        done = trio.Event()
        async with (
            started(node(ports[0]), environment, workers=workers) as first,
            started(node(ports[1]), environment, workers=workers) as second,
            listening(front, front_port) as nginx,
        ):
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    for _ in range(CLIENTS):
                        nursery.start_soon(ask)
                    await grown()
                    first.send(signal.SIGTERM)
                    assert await first.exit_code() == 0
                    async with started(node(ports[0]), environment, workers=workers):
                        await grown()
                        second.send(signal.SIGTERM)
                        assert await second.exit_code() == 0
                        await grown()
                        done.set()
                        await until(lambda: ended == [None] * CLIENTS)
    assert set(statuses) == {200}, nginx.text

"""nginx, with the block that ``imageproxy nginx`` prints, and as a plain file server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from bench.processes import ROOT, BenchError, Server, inherited, started
from bench.upstream import LOOPBACK
from tests.nginx import command_for, find_nginx
from tests.ports import free_port

# Of both, so that their difference is the block. It answers more than wrk can ask for: one process.
_HTTP = """
    sendfile on;
    tcp_nopush on;
    types {{ image/jpeg jpg; }}
{site}
"""

_PLAIN = """
server {{
    listen {listen};
    root {images};
    location / {{
        try_files $uri =404;
    }}
}}
"""

_LISTEN = re.compile(r"(?m)^ *listen [^;]*;\n")


async def block_of(cache: Path, proxy: Server, **more: str) -> str:
    """What ``imageproxy nginx`` prints for a cache folder and the proxy behind it.

    Args:
        more: of the proxy's variables.

    Raises:
        BenchError: the command fails.
    """
    settings = {
        "IMAGE_PROXY_CACHE__PATH": str(cache),
        "IMAGE_PROXY_SERVER__BIND": f"{LOOPBACK}:{proxy.port}",
        **more,
    }
    done = await trio.run_process(
        [sys.executable, "-m", "proxy", "nginx"],
        capture_stdout=True,
        check=False,
        cwd=ROOT,
        env={**inherited(), **settings},
        stderr=subprocess.STDOUT,
    )
    text = done.stdout.decode()
    if done.returncode != 0:
        raise BenchError(f"imageproxy nginx ended with {done.returncode}\n{text}")
    return text


@asynccontextmanager
async def with_block(folder: Path, block: str) -> AsyncIterator[Server]:
    """nginx with a block, which listens on a port of this machine in place of what it says."""
    port = free_port()
    async with _nginx(folder, _listening(block, port), port) as server:
        yield server


def write_block(folder: Path, block: str, port: int) -> None:
    """Put another block in the place of that in ``folder``; nginx reads it on SIGHUP."""
    program = find_nginx()
    assert program is not None  # it runs
    command_for(program, folder, _HTTP.format(site=_listening(block, port)))


def _listening(block: str, port: int) -> str:
    listen = iter([f"    listen {LOOPBACK}:{port};\n"])
    return _LISTEN.sub(lambda _: next(listen, ""), block)


@asynccontextmanager
async def alone(folder: Path, images: Path) -> AsyncIterator[Server]:
    """nginx as a server of the files below a folder, and of nothing else."""
    port = free_port()
    site = _PLAIN.format(listen=f"{LOOPBACK}:{port}", images=images)
    async with _nginx(folder, site, port) as server:
        yield server


@asynccontextmanager
async def _nginx(folder: Path, site: str, port: int) -> AsyncIterator[Server]:
    program = find_nginx()
    if program is None:
        raise BenchError("no nginx here; on Debian: apt install nginx-light")
    log = folder / "nginx.log"
    command = command_for(program, folder, _HTTP.format(site=site))
    async with started(command, log=log) as process:
        yield Server(process, port, log)

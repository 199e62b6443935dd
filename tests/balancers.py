"""The balancers that commands print, run for real."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from proxy.config import Config
from proxy.tools.balancer.haproxy import haproxy_balancer
from proxy.tools.balancer.nginx import nginx_balancer
from tests.nginx import command_for, nginx_program
from tests.ports import free_port
from tests.processes import Server, listening
from tests.required import skip_unless_required


def haproxy_program() -> str:
    """Its path; without it the test is skipped, or fails where everything is required."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    if found is None:
        skip_unless_required("no haproxy here; on Debian: apt install haproxy")
    return found


def haproxy_of(folder: Path, port: int, config: Config, nodes: Sequence[str]) -> list[str]:
    """The command of HAProxy before ``nodes``."""
    file = folder / "haproxy.cfg"
    file.write_text(haproxy_balancer(config, nodes, bind=[f"127.0.0.1:{port}"]))
    return [haproxy_program(), "-db", "-f", str(file)]


def nginx_of(folder: Path, port: int, config: Config, nodes: Sequence[str]) -> list[str]:
    """The command of nginx before ``nodes``."""
    block = nginx_balancer(config, nodes, listen=[f"127.0.0.1:{port}"])
    return command_for(nginx_program(), folder / "nginx", block)


BALANCERS: dict[str, Callable[[Path, int, Config, Sequence[str]], list[str]]] = {
    "haproxy": haproxy_of,
    "nginx": nginx_of,
}


def run_balancer(
    name: str, folder: Path, nodes: Sequence[str], config: Config | None = None
) -> AbstractAsyncContextManager[Server]:
    """A balancer before nodes, ended with the block of ``async with``."""
    port = free_port()
    return listening(BALANCERS[name](folder, port, config or Config(), nodes), port)

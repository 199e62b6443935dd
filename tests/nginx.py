"""A real nginx with a block of ours in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from proxy.config import Config
from proxy.tools.nginx import server_block
from proxy.wiring import served_folder
from tests.ports import free_port
from tests.processes import Server, listening
from tests.required import skip_unless_required

MAIN = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/temp;
    proxy_temp_path {folder}/temp;
    fastcgi_temp_path {folder}/temp;
    uwsgi_temp_path {folder}/temp;
    scgi_temp_path {folder}/temp;
{http}
}}
"""

HTTP = """
    # What others may have set for all servers, and the block must undo.
    types {{ text/html jpg; }}
    default_type text/html;
    gzip on;
    open_file_cache max=1000 inactive=600s;
    open_file_cache_valid 600s;
    include {folder}/site.conf;
"""


def find_nginx() -> str | None:
    """Its path, where it is installed."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")


def nginx_program() -> str:
    """Its path; without it the test is skipped, or fails where nginx is required."""
    program = find_nginx()
    if program is None:
        skip_unless_required("no nginx here; on Debian: apt install nginx-light")
    return program


def images_of(config: Config) -> Path:
    """The folder that nginx looks for files in."""
    return served_folder(config)


def block_for(config: Config, port: int) -> str:
    """The server block of ``config``, listening on a port of 127.0.0.1."""
    return server_block(config, images_of(config), listen=[f"127.0.0.1:{port}"])


def check(folder: Path, block: str) -> str:
    """What ``nginx -t`` says of a block, mistakes and warnings."""
    done = subprocess.run(
        [*_command(folder, block), "-t"], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == ("test is successful" in done.stderr), done.stderr
    return "\n".join(line for line in done.stderr.splitlines() if "[" in line)


def run_nginx(folder: Path, config: Config) -> AbstractAsyncContextManager[Server]:
    """nginx with the block of ``config``, ended with the block of ``async with``."""
    port = free_port()
    return listening(_command(folder, block_for(config, port)), port)


def _command(folder: Path, block: str) -> list[str]:
    command = command_for(nginx_program(), folder, HTTP.format(folder=folder))
    (folder / "site.conf").write_text(block)
    return command


def command_for(program: str, folder: Path, http: str) -> list[str]:
    """nginx with one worker, its files in ``folder``, and more lines of its ``http`` block."""
    folder.mkdir(exist_ok=True)
    # Its workers must be able to enter a temporary folder.
    user = "user root;" if os.geteuid() == 0 else ""
    file = folder / "nginx.conf"
    file.write_text(MAIN.format(folder=folder, user=user, http=http))
    return [program, "-p", str(folder), "-c", str(file), "-e", "stderr"]

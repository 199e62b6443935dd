"""The image of ``deploy/Dockerfile``: built, and served from as confined as compose.yaml says.

Only its base is another one, of the same Python: Debian's, where pip is as the official image has
it. A mount namespace stands in for the container: a read-only root with one folder to write in.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.deployed.debian import copy_of_base, entered, output, run
from tests.ports import free_port
from tests.processes import ROOT

STARTS_WITHIN = 60.0

STOPS_WITHIN = 20.0

MOUNTS = """
set -e
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount --rbind /dev "$1/dev"
mount --bind "$2" "$1/var/lib/imageproxy"
root=$1 && shift 2
exec chroot "$root" env -i "$@"
"""


def check(folder: Path) -> None:
    """Fail for an image that cannot be built, or does not serve as compose.yaml runs it."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["imageproxy"]
    assert compose["read_only"] is True
    assert compose["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in compose["security_opt"]
    with built(folder) as (root, configuration):
        serve_from(root, configuration, folder)


def serve_from(root: Path, configuration: dict[str, Any], folder: Path) -> None:
    """Start it, look into it, and stop it."""
    volume = folder / "volume"
    volume.mkdir()
    user = int(configuration["User"])
    os.chown(volume, user, user)
    command = [*configuration["Entrypoint"], *configuration["Cmd"]]
    port = free_port()
    environment = [*configuration["Env"], f"IMAGE_PROXY_SERVER__BIND=127.0.0.1:{port}"]
    confined = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
                "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]  # fmt: skip
    entering = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", MOUNTS, "sh"]
    inside = [*entering, str(root), str(volume), *environment, *confined]
    serving = subprocess.Popen([*inside, *command])
    try:
        until_ready(serving, port)
        doctor = subprocess.run(
            [*inside, "imageproxy", "doctor"], check=False, capture_output=True, text=True
        )
        for sound in ("cache folder", "sandbox"):
            assert f"ok    {sound}:" in doctor.stdout, doctor.stdout + doctor.stderr
        subprocess.run([*inside, "python", "/opt/imageproxy/healthcheck.py"], check=True)
        denied = subprocess.run([*inside, "touch", "/opt/x"], check=False, capture_output=True)
        assert b"Read-only file system" in denied.stderr
        # As a container is stopped: it is the first process there, whose signals have no defaults.
        children = Path(f"/proc/{serving.pid}/task/{serving.pid}/children").read_text()
        os.kill(int(children), getattr(signal, configuration["StopSignal"]))
        assert serving.wait(timeout=STOPS_WITHIN) == 0
    finally:
        serving.kill()
        serving.wait()


@contextmanager
def built(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of the image, and its configuration."""
    base = copy_of_base(folder)
    with entered(base) as begin:
        run(*begin, "python3", "-m", "venv", "/usr/local")
    recipe = ROOT / "deploy/Dockerfile"
    (name,) = set(re.findall(r"^FROM (\S+)", recipe.read_text(), re.MULTILINE))
    store = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "runroot")]
    try:
        empty = output(*store, "from", "scratch")
        run(*store, "add", empty, base, "/")
        run(*store, "commit", "--rm", empty, name)
        how = ["--isolation", "chroot", "--network", "host", "--pull-never"]
        run(*store, "bud", *how, "--file", recipe, "--tag", "atproto-imageproxy", ROOT)
        inspected = json.loads(output(*store, "inspect", "--type", "image", "atproto-imageproxy"))
        container = output(*store, "from", "--pull-never", "atproto-imageproxy")
        yield Path(output(*store, "mount", container)), inspected["Docker"]["config"]
    finally:
        # Also what a step that failed left mounted.
        run(*store, "rm", "--all")


def until_ready(serving: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        assert serving.poll() is None, "it ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                assert answer.read() == b"ok\n"
                return
        except OSError:  # refused, or no answer yet
            assert time.monotonic() < deadline, "it does not serve"
            time.sleep(0.1)

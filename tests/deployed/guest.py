"""Runs in the virtual machine, as root, beside the unit: whether it does what it promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import trio
from PIL import Image

from tests.documents import shell_lines
from tests.processes import Client, Upstream, upstream

PASSED, FAILED = "guest: passed", "guest: failed"

PORT = 8080

SECRETS = Path("/etc/imageproxy/environment")

DOCUMENTS = ("operations.md", "nginx.md", "moderation.md")
"""What they tell an operator to type works on a machine that was installed as the unit says."""

CACHE = Path("/var/lib/imageproxy/images")


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def shown(name: str) -> str:
    return systemctl("show", "imageproxy", "--value", "-p", name).strip()


def journal() -> str:
    """What the service has logged."""
    command = ["journalctl", "--unit=imageproxy", "--output=cat", "--no-pager"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the service. On an emulated processor a look takes time that a start needs."""
    with trio.fail_after(180):
        while True:
            if condition():
                return
            await trio.sleep(2)


def picture(number: int) -> bytes:
    made = BytesIO()
    Image.radial_gradient("L").resize((600, 400 + number)).save(made, "JPEG")
    return made.getvalue()


def children() -> set[int]:
    """Of every thread of the service: what image workers are forked from."""
    listed = Path("/proc", shown("MainPID")).glob("task/*/children")
    return {int(pid) for each in listed for pid in each.read_text().split()}


async def get(path: str) -> tuple[int, str]:
    async with Client(PORT) as client:
        await client.send(path)
        reply = await client.reply()
        return reply.status, reply.headers.get("x-cache", "")


async def main() -> None:
    """Raise ``AssertionError`` for what is not as promised."""
    assert shown("ActiveState") == "active", "it did not start as installed"
    assert await get("/readyz") == (200, "")
    ok("it starts with the boot, as installed")
    async with upstream() as internet:
        await try_out(internet)
    for name in DOCUMENTS:
        as_documented(Path("docs", name))
    await stop()


async def try_out(internet: Upstream) -> None:
    """With a directory and a PDS that it can reach."""
    number = iter(range(100))

    def path() -> str:
        did, cid = internet.add_blob(picture(next(number)))
        return f"/img/avatar_small/plain/{did}/{cid}"

    let_reach(internet)
    systemctl("restart", "imageproxy")
    assert await get("/readyz") == (200, ""), "a restart returns once it serves"
    ok("a restart returns once it serves")

    first = path()
    assert await get(first) == (200, "miss")
    await until(lambda: any(each.is_file() for each in CACHE.rglob("*")))
    assert await get(first) == (200, "hit")
    ok("pictures come, from sandboxed workers within the unit's own limits, and are kept")

    workers = children()
    assert workers, "no image workers"
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert await get(path()) == (200, "miss")
    assert children()
    assert children().isdisjoint(workers)
    assert shown("NRestarts") == "0"
    ok("image workers that are killed are replaced, and the service goes on")

    before = shown("MainPID")
    systemctl("reload", "imageproxy")
    await until(lambda: "configuration reloaded" in journal())
    assert (shown("MainPID"), shown("ActiveState")) == (before, "active")
    assert await get(first) == (200, "hit")
    ok("a reload reads the configuration anew, and stops nothing")

    os.kill(int(shown("MainPID")), signal.SIGKILL)
    await until(lambda: shown("NRestarts") == "1" and shown("ActiveState") == "active")
    assert await get(first) == (200, "hit")
    ok("it is started anew when it is killed")


async def stop() -> None:
    """Stop it."""
    began = time.monotonic()
    systemctl("stop", "imageproxy")
    assert shown("Result") == "success"
    assert shown("ExecMainStatus") == "0"
    assert time.monotonic() - began < 20, "a stop of an idle service hangs"  # an emulated machine
    ok("it stops at once when nothing is in flight")


def as_documented(document: Path) -> None:
    """Run the commands that a document tells an operator to type, as they stand there."""
    commands = shell_lines(document.read_text())
    assert commands, document
    for command in commands:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        # Without a network there is something for it to find.
        expected = {0, 1} if "imageproxy doctor" in command else {0}
        assert done.returncode in expected, (command, done.returncode, done.stdout, done.stderr)
        ok(f"{document}: {command[:90]}")


def let_reach(internet: Upstream) -> None:
    """Configure it by the file for secrets."""
    settings = internet.environment(Path("unused"))
    del settings["IMAGE_PROXY_CACHE__PATH"]
    SECRETS.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    SECRETS.chmod(0o600)


def ok(sentence: str) -> None:
    print(f"ok    {sentence}", flush=True)


if __name__ == "__main__":
    try:
        trio.run(main)
    except BaseException:
        print(FAILED, flush=True)
        log = ["journalctl", "--unit=imageproxy", "--lines=30", "--output=cat", "--no-pager"]
        subprocess.run(log, check=False)
        raise
    print(PASSED, flush=True)
    sys.exit(0)

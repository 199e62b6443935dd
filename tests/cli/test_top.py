"""``imageproxy top`` before a real server, on a terminal and without one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.cli.test_output import documented_keys
from tests.fakes.world import tiny_jpeg
from tests.processes import (
    PATIENCE,
    ROOT,
    SERVE,
    Server,
    own_environment,
    run,
    serve,
    until,
    upstream,
)

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-operator"

ENTERS, LEAVES = b"\x1b[?1049h", b"\x1b[?1049l"
"""The alternate screen (xterm's control sequences, DECSET 1049)."""


class Terminal:
    """A program on a terminal of its own.

    Attributes:
        text: all that it has written.
    """

    def __init__(self, ours: int, theirs: int, process: trio.Process) -> None:
        self._ours = ours
        self._theirs = theirs
        self._process = process
        self.text = b""

    def settings(self) -> list[object]:
        """How the terminal treats keys."""
        return termios.tcgetattr(self._theirs)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def send(self, signal_: signal.Signals) -> None:
        self._process.send_signal(signal_)

    async def until(self, text: bytes) -> None:
        """Wait until it has written ``text``."""
        with trio.fail_after(PATIENCE):
            while text not in self.text:
                await trio.lowlevel.wait_readable(self._ours)
                self.text += os.read(self._ours, 65536)

    async def exit_code(self) -> int:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                code = await self._process.wait()
                nursery.cancel_scope.cancel()
        os.set_blocking(self._ours, False)
        with suppress(BlockingIOError):
            self.text += os.read(self._ours, 65536)
        return code

    async def _read(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._ours)
            self.text += os.read(self._ours, 65536)


@asynccontextmanager
async def terminal(*arguments: str, **more: str) -> AsyncIterator[Terminal]:
    """``imageproxy top`` on a terminal of 80 columns and 24 lines."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # Of rich: they stand for the size of the terminal.
    environment = own_environment({"TERM": "xterm", **more})
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "proxy", "top", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        try:
            yield Terminal(ours, theirs, process)
        finally:
            with trio.CancelScope(shield=True):
                if process.poll() is None:
                    process.kill()
                await process.wait()
    finally:
        os.close(ours)
        os.close(theirs)


@asynccontextmanager
async def busy_server(folder: Path) -> AsyncIterator[tuple[Server, Sequence[str]]]:
    """A server that has answered a miss and a hit, and the options by which it is watched."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        environment = internet.environment(folder, SERVER__ADMIN_TOKEN=TOKEN)
        async with serve(SERVE, environment) as server:
            for _ in range(2):
                reply = await server.get(f"/img/avatar_thumbnail/plain/{did}/{cid}")
                assert reply.status == 200
            yield server, ("--url", f"http://127.0.0.1:{server.port}", "--token", TOKEN)


async def test_a_terminal_shows_the_server_until_it_is_enough_and_is_as_before(
    tmp_path: Path,
) -> None:
    """Catches a shell that echoes nothing, or is left in the other screen, after q or Ctrl-C."""
    async with busy_server(tmp_path) as (server, options):
        for end in ("q", signal.SIGINT, signal.SIGTERM):
            async with terminal(*options) as shown:
                before = shown.settings()
                # The PDS is a host that only the route names; rates come with the second refresh.
                await shown.until(b"prompt")
                await shown.until(b"refused 0.0/s")
                assert ENTERS in shown.text
                assert LEAVES not in shown.text
                assert shown.settings() != before
                if isinstance(end, str):
                    shown.type(end.encode())
                else:
                    shown.send(end)
                assert await shown.exit_code() == 0
                assert shown.text.rstrip().endswith(LEAVES), "nothing is written after it"
                assert shown.settings() == before
        async with terminal(*options) as shown:
            await shown.until(b"refused 0.0/s")
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
            await shown.until(b"does not answer")
            shown.type(b"q")
            assert await shown.exit_code() == 0


async def test_without_a_terminal_there_is_a_line_for_each_refresh(tmp_path: Path) -> None:
    """Catches escapes in a file, and a line that stays in a buffer until the end."""
    async with busy_server(tmp_path) as (_, options):
        async with run(["-m", "proxy", "top", *options], {}) as lines:
            await until(lambda: lines.text.count("\n") >= 2)
            lines.send(signal.SIGINT)
            assert await lines.exit_code() == 0
            for line in lines.text.splitlines():
                assert re.match(r"\d\d:\d\d:\d\d requests 0\.0/s hits -", line)
                assert line.isprintable()
        async with run(["-m", "proxy", "top", *options, "--once", "--json"], {}) as once:
            assert await once.exit_code() == 0
            (found,) = map(json.loads, once.text.splitlines())
        assert list(found) == documented_keys()["top"]
        assert [each["standing"] for each in found["hosts"]] == ["prompt"]
        assert found["blocks"] == 0


def fails(*arguments: str) -> tuple[int, str]:
    """The exit code and the line of a run that prints nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "top", "--once", *arguments],
        cwd=ROOT,
        env=own_environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


async def test_what_keeps_it_from_watching_is_one_line(tmp_path: Path) -> None:
    """Catches a traceback, and zeros where there is nobody."""
    async with busy_server(tmp_path) as (_, options):
        url = options[1]
        for arguments, told in (
            (("--url", url, "--token", "wrong, and long enough"), "does not know this token"),
            (("--url", "http://127.0.0.1:9"), "does not answer"),
            (("--url", f"{url}/healthz"), "404"),
        ):
            code, text = await trio.to_thread.run_sync(fails, *arguments)
            assert (code, text.count("\n")) == (1, 1)
            assert text.startswith("imageproxy: ")
            assert told in text


@pytest.mark.parametrize("token", ["a secret of two\nlines of a file", "too short"])
def test_what_no_server_has_as_a_token_is_refused_and_not_repeated(token: str) -> None:
    """Catches the header of a request in an error, and the token in it."""
    code, text = fails("--url", "http://127.0.0.1:9", "--token", token)
    assert code == 2
    assert "--token" in text
    assert token[:8] not in text


async def test_a_screen_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    """Catches an ImportError, and a screen taken before it is told."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich/__init__.py").write_text("raise ImportError('not here')\n")
    async with terminal("--url", "http://127.0.0.1:9", PYTHONPATH=str(tmp_path)) as shown:
        assert await shown.exit_code() == 2
    assert b"atproto-imageproxy[top]" in shown.text
    assert ENTERS not in shown.text

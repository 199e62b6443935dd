"""Ozone, Bluesky's own labeler, beside a running network; its PostgreSQL comes and goes with it.

It needs PostgreSQL's server programs; on Debian: ``postgresql``.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.devnet import Devnet, DevnetUnavailable, ensure_installed
from tests.ports import free_port

HERE = Path(__file__).resolve().parent
PATIENCE = 60.0
"""Seconds for each to start; both take two or three on an idle machine."""


class Ozone:
    """A running Ozone.

    Attributes:
        did: the labeler's.
        url: where it serves.
    """

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._commands = process.stdin
        self._answers = process.stdout
        self._received = bytearray()
        self.did = ""
        self.url = ""

    async def started(self) -> None:
        """Wait until it serves.

        Raises:
            DevnetUnavailable: it did not start; standard error says why.
        """
        ready = await self._answer()
        self.did, self.url = ready["did"], ready["url"]

    async def take_down(self, subject: dict[str, str], *, hours: int | None = None) -> None:
        """Take an account or a record down, as a moderator; for so many hours, or for good."""
        await self._do("takedown", subject=subject, hours=hours)

    async def label(
        self,
        uri: str,
        *,
        cid: str | None = None,
        create: list[str] | None = None,
        negate: list[str] | None = None,
        hours: float | None = None,
    ) -> None:
        """Sign and send labels."""
        await self._do("label", uri=uri, cid=cid, create=create, negate=negate, hours=hours)

    async def _do(self, name: str, **options: Any) -> None:
        given = {key: value for key, value in options.items() if value is not None}
        await self._commands.send_all(json.dumps({"do": name, **given}).encode() + b"\n")
        answer = await self._answer()
        assert "error" not in answer, answer

    async def _answer(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            chunk = await self._answers.receive_some()
            if not chunk:
                raise DevnetUnavailable("Ozone ended; standard error says why")
            self._received += chunk
        line, _newline, rest = self._received.partition(b"\n")
        self._received = rest
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def run_ozone(devnet: Devnet) -> AsyncIterator[Ozone]:
    """Run an empty Ozone while the block runs.

    Raises:
        DevnetUnavailable: PostgreSQL is not installed, or one of both did not start.
    """
    installed = await trio.to_thread.run_sync(ensure_installed)
    node = shutil.which("node")
    assert node is not None
    async with _postgres() as database:
        command = [node, str(HERE / "ozone.mjs"), devnet.plc_url, devnet.pds_url]
        process = await trio.lowlevel.open_process(
            [*command, devnet.pds_did, database],
            cwd=installed,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            ozone = Ozone(process)
            with trio.move_on_after(PATIENCE) as starting:
                await ozone.started()
            if starting.cancelled_caught:
                raise DevnetUnavailable(f"Ozone not ready after {PATIENCE:.0f} seconds")
            yield ozone
        finally:
            await _end(process)


@asynccontextmanager
async def _postgres() -> AsyncIterator[str]:
    """The URL of an empty database on loopback."""
    programs = _postgres_programs()
    # As root it refuses to run; Debian's package brings a user for it.
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="devnet-postgres-") as folder:
        data = Path(folder) / "data"
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        make = [programs / "initdb", "-D", data, "-A", "trust", "-U", "ozone", "--no-sync"]
        made = await trio.run_process(
            [str(part) for part in make], capture_stdout=True, capture_stderr=True, check=False,
            user=user, cwd="/",
        )  # fmt: skip
        if made.returncode:
            raise DevnetUnavailable(f"initdb: {made.stderr.decode()[-500:]}")
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": folder,
            "fsync": "off",
        }
        command = [str(programs / "postgres"), "-D", str(data), "-p", str(port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.DEVNULL,
            user=user, cwd="/",
        )  # fmt: skip
        try:
            await _until_it_answers(port)
            yield f"postgres://ozone@127.0.0.1:{port}/postgres"
        finally:
            with trio.CancelScope(shield=True):
                process.terminate()  # which waits for connections; Ozone has closed its own
                with trio.move_on_after(5):
                    await process.wait()
                process.send_signal(3)  # SIGQUIT: at once
                await process.wait()


async def _until_it_answers(port: int) -> None:
    with trio.move_on_after(PATIENCE):
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.1)
            else:
                await stream.aclose()
                return
    raise DevnetUnavailable("PostgreSQL did not start")


def _postgres_programs() -> Path:
    # Debian keeps the server's programs out of the path, a folder for each version.
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = shutil.which("initdb")
    if path:
        found.append(Path(path))
    if not found:
        raise DevnetUnavailable("PostgreSQL's initdb is not installed")
    return found[-1].parent


async def _end(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.aclose()
        with trio.move_on_after(10):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await process.stdout.aclose()

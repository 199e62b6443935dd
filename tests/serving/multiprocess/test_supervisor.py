"""Several worker processes: one that dies is replaced, and none outlives the first process."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.config import Config
from proxy.serving.multiprocess import supervisor
from proxy.serving.multiprocess.supervisor import Supervisor
from tests.fakes.world import tiny_jpeg
from tests.processes import (
    SERVE,
    imageproxy,
    run,
    serve,
    started,
    until,
    upstream,
    what_cannot_start,
)
from tests.serving.test_serve import img, is_gone, metric

pytestmark = pytest.mark.slow

TWO = [*SERVE, "--workers", "2"]


async def test_a_worker_that_is_killed_is_replaced_while_the_other_serves(tmp_path: Path) -> None:
    """Catches Hypercorn's own: one killed for its memory ends the service, with exit code 0."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        async with serve(TWO, internet.environment(tmp_path), workers=2) as server:
            before = set(server.workers)
            killed = min(before)
            os.kill(killed, signal.SIGKILL)
            ended = await server.line_with('"event":"a worker ended')
            assert f'"pid":{killed},' in ended.string
            assert '"signal":9' in ended.string
            assert (await server.get(img(did, cid))).status == 200
            await until(lambda: len(server.workers - before) == 1)
            await server.get("/healthz")
            # The dead one's socket is gone: nobody asks it for its share of the metrics.
            assert await metric(server, "imageproxy_coalesced_total") == 0
            assert "does not tell its metrics" not in server.text
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
            assert all(is_gone(pid) for pid in server.workers)


async def test_workers_end_with_a_first_process_that_was_killed(tmp_path: Path) -> None:
    """Catches workers that serve on, with what was configured then, beside those of a new start."""
    environment = {"IMAGE_PROXY_CACHE__PATH": str(tmp_path)}
    async with serve(TWO, environment, workers=2) as server:
        server.send(signal.SIGKILL)
        await until(lambda: all(is_gone(pid) for pid in server.workers))


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_port_of_another_server_of_the_same_user_is_in_use(
    workers: str, tmp_path: Path
) -> None:
    """Catches SO_REUSEPORT, by which an old and a new configuration share the requests."""
    environment = {"IMAGE_PROXY_CACHE__PATH": str(tmp_path)}
    async with serve(TWO, environment, workers=2) as server:
        arguments = imageproxy("serve", "--bind", f"127.0.0.1:{server.port}", "--workers", workers)
        async with run(arguments, environment) as second:
            assert await second.exit_code() == 1
            assert "Address already in use" in second.text


async def test_workers_that_cannot_start_end_it_with_their_reason(tmp_path: Path) -> None:
    """Catches a service that tries for ever what never succeeds."""
    environment = {
        **what_cannot_start(tmp_path),
        "IMAGE_PROXY_CACHE__PATH": str(tmp_path / "cache"),
    }
    async with run(TWO, environment) as process:
        assert await process.exit_code() == 1
        await process.line_with("imageproxy: .*cannot import name")


async def test_workers_import_nothing_from_the_folder_that_they_are_started_in(
    tmp_path: Path,
) -> None:
    """Catches ``python -m``, by which a file of a stranger there runs as the service."""
    (tmp_path / "trio.py").write_text("raise SystemExit('a stranger')")
    there = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(tmp_path)]
    program = Path(sys.executable).with_name("imageproxy")
    environment = {"IMAGE_PROXY_CACHE__PATH": str(tmp_path / "cache")}
    command = [*there, str(program), *TWO[2:]]
    async with started(command, environment, workers=2) as server:
        server.send(signal.SIGTERM)
        assert await server.exit_code() == 0


# The first process, with workers that only say that they serve.

STUB = """
import os, socket, sys
if os.path.exists(os.environ["BROKEN"]):
    sys.exit(3)
tie = socket.socket(fileno=0)
told = tie.makefile("rb")
def configured():
    length = int.from_bytes(told.read(4), "big")
    with open(os.environ["TOLD"], "a") as file:
        print(os.getpid(), told.read(length).hex(), file=file)
assert told.read(1) == b"c"
configured()
tie.send(b"1")
with open(os.environ["STARTED"], "a") as file:
    print(os.getpid(), file=file)
while told.read(1) == b"c":
    configured()
"""


@dataclass
class Stubs:
    """A supervisor of two of them."""

    supervisor: Supervisor
    folder: Path

    def pids(self) -> list[int]:
        """Of all that have said that they serve, in that order."""
        try:
            return [int(line) for line in (self.folder / "started").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def levels(self) -> list[tuple[int, str]]:
        """The process and the level of the log of each configuration that one was given."""
        lines = [line.split() for line in (self.folder / "told").read_text().splitlines()]
        return [(int(pid), pickle.loads(bytes.fromhex(data)).log.level) for pid, data in lines]  # noqa: S301

    async def serve(self, count: int) -> None:
        """Wait until so many have served."""
        await until(lambda: len(self.pids()) == count)


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubs]:
    monkeypatch.setattr(supervisor, "BOOTSTRAP", STUB)
    own = {name.upper(): str(tmp_path / name) for name in ("started", "told", "broken")}
    config = Config.model_validate({"server": {"workers": 2}})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Supervisor(
            [listener], config=config, environment=os.environ | own, folder=tmp_path, patience=10
        )
        yield Stubs(made, tmp_path)


async def test_a_cancelled_supervisor_leaves_no_worker(stubs: Stubs) -> None:
    """Catches a clean-up that the cancellation ends before it kills."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stubs.supervisor.run)
        await stubs.serve(2)
        nursery.cancel_scope.cancel()
    assert all(is_gone(pid) for pid in stubs.pids())


async def test_a_worker_that_cannot_be_started_for_now_leaves_the_others_serving(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a fork that fails for want of memory, and takes the healthy workers with it."""
    open_process, failures = trio.lowlevel.open_process, [errno.ENOMEM, errno.EAGAIN]

    async def failing(*arguments: Any, **more: Any) -> trio.Process:
        if len(stubs.pids()) == 2 and failures:
            code = failures.pop()
            raise OSError(code, os.strerror(code))
        return await open_process(*arguments, **more)

    monkeypatch.setattr(trio.lowlevel, "open_process", failing)
    monkeypatch.setattr(supervisor, "RESTART_PAUSE", 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stubs.supervisor.run)
        await stubs.serve(2)
        killed, other = stubs.pids()
        os.kill(killed, signal.SIGKILL)
        await stubs.serve(3)
        assert failures == []
        assert not is_gone(other)
        stubs.supervisor.stop()
    assert all(is_gone(pid) for pid in stubs.pids())


async def test_a_server_that_stops_says_no_more_that_it_is_ready(stubs: Stubs) -> None:
    """Catches a stop in the moment in which the last worker serves: its sockets are closed."""
    ready: list[None] = []

    def stop_it(serves: bool) -> AbstractContextManager[None]:
        if serves and stubs.supervisor._serving == 1:
            stubs.supervisor.stop()
        return counted(serves)

    counted = stubs.supervisor._counted
    stubs.supervisor._on_serving = lambda: ready.append(None)
    stubs.supervisor._counted = stop_it  # type: ignore[method-assign, assignment]
    assert await stubs.supervisor.run() == 0
    assert ready == []


def of_level(level: str) -> Config:
    return Config.model_validate({"server": {"workers": 2}, "log": {"level": level}})


async def test_every_worker_gets_a_new_configuration_and_so_does_one_that_starts_later(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a worker that begins with what the server began with, or with a file half written."""
    monkeypatch.setattr(supervisor, "RESTART_PAUSE", 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stubs.supervisor.run)
        await stubs.serve(2)
        first = stubs.pids()
        stubs.supervisor.take(of_level("debug"))
        stubs.supervisor.take(of_level("error"))
        await until(lambda: {(pid, "error") for pid in first} <= set(stubs.levels()))
        os.kill(first[0], signal.SIGKILL)
        await stubs.serve(3)
        (later,) = set(stubs.pids()) - set(first)
        assert [level for pid, level in stubs.levels() if pid == later] == ["error"]
        stubs.supervisor.stop()
    assert all(is_gone(pid) for pid in stubs.pids())


async def test_a_server_whose_workers_cannot_start_ends(stubs: Stubs) -> None:
    """Catches a socket that is kept open for ever, in which clients wait for nobody."""
    codes: list[int] = []

    async def run() -> None:
        codes.append(await stubs.supervisor.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await stubs.serve(2)
        (stubs.folder / "broken").touch()
        for pid in stubs.pids():
            os.kill(pid, signal.SIGKILL)
    assert codes == [3]

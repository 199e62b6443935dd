"""SIGHUP as an operator sends it, and as a terminal does that has gone."""

from __future__ import annotations

import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from proxy.model.identifiers import Cid, Did
from tests.fakes.world import tiny_jpeg
from tests.processes import (
    PATIENCE,
    ROOT,
    SERVE,
    Client,
    Server,
    Upstream,
    own_environment,
    run,
    serve,
    started,
    until,
    upstream,
)
from tests.serving.test_serve import img, is_gone

pytestmark = pytest.mark.slow

SMALL = 'width = 8\nheight = 8\nfit = "cover"\nquality = {quality}\n'
WORKERS = pytest.mark.parametrize("workers", [1, 2])


class Configured:
    """A server with a configuration file."""

    def __init__(self, folder: Path, internet: Upstream, workers: int) -> None:
        self.file = folder / "config.toml"
        self.write()
        self.workers = workers
        named = ["--config", str(self.file), "--workers", str(workers)]
        self.arguments = [*SERVE, *named]
        self.environment = internet.environment(folder / "cache")

    def write(self, text: str = "", quality: int = 50, level: str = "info") -> None:
        """Have the file say so, with a preset ``small``."""
        small = SMALL.format(quality=quality)
        self.file.write_text(f'{text}\n[log]\nlevel = "{level}"\n[presets.small]\n{small}')

    async def reload(self, server: Server) -> None:
        """Have the server take the file, in all its processes."""
        told = server.text.count('"configuration reloaded"')
        server.send(signal.SIGHUP)
        await server.line_with('"configuration reloaded"', after=told)
        if self.workers > 1:
            taken = (told + 1) * self.workers - 1
            await server.line_with('"configuration taken"', after=taken)


@asynccontextmanager
async def reloadable(
    folder: Path, workers: int
) -> AsyncIterator[tuple[Server, Configured, tuple[Did, Cid]]]:
    """A server that serves, its file, and a picture."""
    async with upstream() as internet:
        picture = internet.add_blob(tiny_jpeg())
        configured = Configured(folder, internet, workers)
        async with serve(configured.arguments, configured.environment, workers=workers) as server:
            yield server, configured, picture


@WORKERS
async def test_a_reload_takes_changed_presets_and_no_answer_of_before_outlives_it(
    workers: int, tmp_path: Path
) -> None:
    """Catches an ETag of the old pixels, an old URL that fails, and a worker that was forgotten."""
    async with reloadable(tmp_path, workers) as (server, configured, (did, cid)):
        small = img(did, cid, "small")
        first = await server.get(small)
        assert (first.status, (await server.get(img(did, cid, "new"))).status) == (200, 400)
        configured.write("[presets.new]\n" + SMALL.format(quality=40), quality=60)
        await configured.reload(server)
        for _ in range(4 * workers):  # of any worker
            reply = await server.get(small, ("If-None-Match", first.headers["etag"]))
            assert reply.status == 200
            assert reply.headers["etag"] != first.headers["etag"]
            assert (await server.get(img(did, cid, "new"))).status == 200
            assert (await server.get(img(did, cid, "avatar"))).status == 200
        line = await server.line_with('"event":"configuration reloaded"')
        assert '"taken":["presets.new","presets.small"]' in line.string
        assert "print nginx's block and clients' presets anew" in line.string
        configured.write()
        await configured.reload(server)
        for _ in range(4 * workers):
            assert (await server.get(img(did, cid, "new"))).status == 400
            assert (await server.get(small)).headers["etag"] == first.headers["etag"]
        assert is_gone(server.pid) is False
        assert "worker ended" not in server.text


@WORKERS
async def test_a_hangup_during_the_start_is_heard_after_it(workers: int, tmp_path: Path) -> None:
    """Catches a rotation of logs that ends a server which is just starting."""
    pipe, later = tmp_path / "config.toml", tmp_path / "later.toml"
    os.mkfifo(pipe)
    later.write_text('[log]\nlevel = "debug"\n')
    arguments = [*SERVE, "--config", str(pipe), "--workers", str(workers)]
    cache = {"IMAGE_PROXY_CACHE__PATH": str(tmp_path / "cache")}
    async with run(arguments, own_environment(cache)) as server:

        def give() -> None:
            with pipe.open("w") as given:  # returns when it is being read
                server.send(signal.SIGHUP)
                given.write('[log]\nlevel = "info"\n')
                later.replace(pipe)  # for whoever opens it next

        with trio.fail_after(PATIENCE):
            await trio.to_thread.run_sync(give, abandon_on_cancel=True)
        line = await server.line_with('"configuration reloaded"')
        assert '"log.level"' in line.string


async def test_a_configuration_from_a_pipe_stays_in_force(tmp_path: Path) -> None:
    """Catches presets that go with a SIGHUP, because the pipe that named them is empty by then.

    As with ``--config <(sops -d config.toml)``. A named pipe that nobody writes into is waited for.
    """
    async with reloadable(tmp_path, 1) as (server, configured, (did, cid)):
        configured.file.unlink()
        os.mkfifo(configured.file)
        server.send(signal.SIGHUP)
        line = await server.line_with("the new configuration is wrong")
        assert "no regular file" in line.string
        assert (await server.get(img(did, cid, "small"))).status == 200
        configured.file.unlink()
        configured.write(quality=60)
        await configured.reload(server)


@WORKERS
async def test_a_wrong_file_leaves_what_was_and_is_told_in_one_line_with_every_mistake(
    workers: int, tmp_path: Path
) -> None:
    """Catches a server that ends, one that takes half, and a later worker that reads the file."""
    async with reloadable(tmp_path, workers) as (server, configured, (did, cid)):
        before = await server.get(img(did, cid, "small"))
        configured.write('[fetch]\ntimeout = "soon"\n[server]\ncolour = 1', quality=101)
        server.send(signal.SIGHUP)
        line = (await server.line_with("the new configuration is wrong")).string
        assert '"level":"error"' in line
        for key in ("fetch.timeout", "server.colour", "presets.small.quality"):
            assert key in line
        if workers > 1:
            killed = min(server.workers)
            os.kill(killed, signal.SIGKILL)
            await until(lambda: len(server.workers) == workers + 1)
        for _ in range(4 * workers):
            after = await server.get(img(did, cid, "small"))
            assert (after.status, after.headers["etag"]) == (200, before.headers["etag"])
        assert server.text.count("the new configuration is wrong") == 1


@WORKERS
async def test_a_reload_changes_the_level_of_the_log_and_names_what_needs_a_restart(
    workers: int, tmp_path: Path
) -> None:
    """Catches loggers that are bound to the level of the start, and a key that goes unsaid."""
    async with reloadable(tmp_path, workers) as (server, configured, (did, cid)):
        await server.get(img(did, cid, "small"))
        await server.line_with('"event":"request"')
        configured.write("[cache]\nttl_days = 3", level="warning")
        server.send(signal.SIGHUP)
        line = (await server.line_with("a change needs a restart")).string
        assert '"keys":["cache.ttl_days"]' in line

        async def is_quiet() -> bool:
            before = len(server.lines)
            for _ in range(4 * workers):
                await server.get(img(did, cid, "small"))
            return len(server.lines) == before

        await until(is_quiet)
        configured.write(level="debug")
        server.send(signal.SIGHUP)
        await server.line_with('"configuration reloaded"')
        if workers > 1:
            await server.line_with('"configuration taken"', after=workers - 1)
        asked = server.text.count('"event":"request"')
        await server.get(img(did, cid, "small"))
        await server.line_with('"event":"request"', after=asked)


@WORKERS
async def test_requests_under_load_are_answered_whole_while_presets_change(
    workers: int, tmp_path: Path
) -> None:
    """Catches a reload that drops connections, and an answer between two tables."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        configured = Configured(tmp_path, internet, workers)
        target = img(did, cid, "small")
        answers: list[tuple[int, str]] = []

        async def ask() -> None:
            async with Client(server.port) as client:
                while not done.is_set():
                    await client.send(target)
                    reply = await client.reply()
                    answers.append((reply.status, reply.headers["etag"]))

        done = trio.Event()
        async with serve(configured.arguments, configured.environment, workers=workers) as server:
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(ask)
                    for quality in (60, 50, 70):
                        before = len(answers)
                        await until(lambda before=before: len(answers) > before + 50)  # type: ignore[misc]
                        configured.write(quality=quality)
                        await configured.reload(server)
                    before = len(answers)
                    await until(lambda: len(answers) > before + 50)
                    done.set()
        assert {status for status, _ in answers} == {200}
        assert len({etag for _, etag in answers}) == 3


@WORKERS
async def test_a_request_under_way_is_answered_after_a_hangup(workers: int, tmp_path: Path) -> None:
    """Catches a server that drains, and one whose preset is gone before its picture is made."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        held = internet.hold_blobs()
        configured = Configured(tmp_path, internet, workers)
        async with (
            serve(configured.arguments, configured.environment, workers=workers) as server,
            Client(server.port) as client,
        ):
            await client.send(img(did, cid, "small"))
            await held.seen.wait()
            configured.file.write_text("")
            await configured.reload(server)
            held.released.set()
            assert (await client.reply()).status == 200
            await client.send(img(did, cid, "small"))
            assert (await client.reply()).status == 400


async def test_a_hangup_of_all_its_processes_stops_none(tmp_path: Path) -> None:
    """Catches a worker that ends when the whole group is told."""
    async with upstream() as internet:
        configured = Configured(tmp_path, internet, 2)
        async with serve(configured.arguments, configured.environment, workers=2) as server:
            os.killpg(server.pid, signal.SIGHUP)
            await server.line_with('"configuration reloaded"')
            await server.line_with('"configuration taken"', after=1)
            assert "worker ended" not in server.text


async def test_a_hangup_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """Catches a server under nohup(1) that ends with the terminal that it was started in."""
    ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", sys.executable]
    environment = {"IMAGE_PROXY_CACHE__PATH": str(tmp_path)}
    async with started([*ignoring, *SERVE], environment) as server:
        server.send(signal.SIGHUP)
        for _ in range(3):
            assert (await server.get("/healthz")).status == 200
        server.send(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert "reloaded" not in server.text


@WORKERS
async def test_a_server_ends_with_the_terminal_that_it_was_started_in(
    workers: int, tmp_path: Path
) -> None:
    """Catches a server that keeps its port after its window was closed."""
    ours, theirs = pty.openpty()
    # The first process of a session that opens a terminal has it as its own.
    own = ["sh", "-c", 'exec <"$0" >"$0" 2>&1 && exec "$@"', os.ttyname(theirs), sys.executable]
    process = await trio.lowlevel.open_process(
        [*own, *SERVE, "--workers", str(workers)],
        cwd=ROOT,
        env=own_environment({"IMAGE_PROXY_CACHE__PATH": str(tmp_path)}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown = b""
        with trio.fail_after(PATIENCE):
            while b"ready" not in shown:
                await trio.lowlevel.wait_readable(ours)
                shown += os.read(ours, 4096)
            # It is that of the window that shows it.
            os.close(ours)
            assert await process.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()

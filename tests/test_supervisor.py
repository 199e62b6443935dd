"""Several worker processes: one that dies is replaced, and none outlives the first process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.fakes.world import tiny_jpeg
from tests.processes import (
    SERVE,
    Client,
    imageproxy,
    run,
    serve,
    until,
    until_refused,
    upstream,
    what_cannot_start,
)
from tests.test_serving import img, is_gone, metric

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


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_hangup_ends_it_as_a_termination_does(workers: int, tmp_path: Path) -> None:
    """Catches a process that is gone at once, and its requests with it."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        held = internet.hold_blobs()
        arguments = [*SERVE, "--workers", str(workers)]
        async with (
            serve(arguments, internet.environment(tmp_path), workers=workers) as server,
            Client(server.port) as client,
        ):
            await client.send(img(did, cid))
            await held.seen.wait()
            server.send(signal.SIGHUP)
            await until_refused(server.port)
            held.released.set()
            assert (await client.reply()).status == 200
            assert await server.exit_code() == 0
            await server.line_with('"signal":"SIGHUP","event":"stopping"')

"""A stop as clients see it: no request without an answer, whatever stands in front."""

from __future__ import annotations

import signal
from pathlib import Path

import h11
import pytest
import trio

from tests.fakes.world import tiny_jpeg
from tests.processes import PATIENCE, SERVE, Client, Server, serve, until, upstream

pytestmark = pytest.mark.slow

CLIENTS = 16


class Loop:
    """Clients that ask one after the other, over connections that they keep as long as they may.

    Attributes:
        answered: how many answers they had.
        lost: what happened to requests that had none.
    """

    def __init__(self, port: int, target: str) -> None:
        self._port = port
        self._target = target
        self.answered = 0
        self.lost: list[str] = []

    async def run(self) -> None:
        """Ask until nobody listens any more."""
        while True:
            try:
                async with Client(self._port) as client:
                    await self._ask(client)
            except ConnectionRefusedError:
                return

    async def _ask(self, client: Client) -> None:
        closes = False
        while not closes:
            try:
                await client.send(self._target)
                reply = await client.reply()
            except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
                self.lost.append(repr(error))
                return
            assert reply.status == 200
            self.answered += 1
            closes = reply.headers.get("connection") == "close"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("delay", ["0", "0.3"])
async def test_clients_in_a_tight_loop_lose_no_request_to_a_stop(
    workers: int, delay: str, tmp_path: Path
) -> None:
    """Catches connections that are cut between two requests, or reset in the listener's queue."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        environment = internet.environment(tmp_path, SERVER__DRAIN_DELAY=delay)
        arguments = [*SERVE, "--workers", str(workers)]
        async with serve(arguments, environment, workers=workers) as server:
            target = f"/img/avatar/plain/{did}/{cid}"
            assert (await server.get(target)).status == 200
            loops = [Loop(server.port, target) for _ in range(CLIENTS)]
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    for each in loops:
                        nursery.start_soon(each.run)
                    await until(lambda: all(each.answered > 10 for each in loops))
                    server.send(signal.SIGTERM)
            assert [each.lost for each in loops if each.lost] == []
            assert await server.exit_code() == 0


async def test_a_server_that_drains_is_not_ready_and_goes_on_answering_until_its_delay_is_over(
    tmp_path: Path,
) -> None:
    """Catches a listener that closes before a balancer has asked, and a delay that none can end."""
    environment = {
        "IMAGE_PROXY_CACHE__PATH": str(tmp_path),
        "IMAGE_PROXY_SERVER__DRAIN_DELAY": "3600",
    }
    async with serve(SERVE, environment) as server:
        async with Client(server.port) as client:
            await client.send("/readyz")
            assert (await client.reply()).status == 200
            server.send(signal.SIGTERM)
            await until_draining(server)
            await client.send("/healthz")
            reply = await client.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
        server.send(signal.SIGTERM)
        assert await server.exit_code() == 0


async def test_a_second_signal_ends_the_delay_of_every_worker(tmp_path: Path) -> None:
    """Catches a delay that only the first process, which serves nobody, knows to be over."""
    environment = {
        "IMAGE_PROXY_CACHE__PATH": str(tmp_path),
        "IMAGE_PROXY_SERVER__DRAIN_DELAY": "3600",
    }
    async with serve([*SERVE, "--workers", "2"], environment, workers=2) as server:
        server.send(signal.SIGTERM)
        await until_draining(server)
        server.send(signal.SIGTERM)
        assert await server.exit_code() == 0


async def until_draining(server: Server) -> None:
    """Wait until ``/readyz`` says so."""

    async def drains() -> bool:
        reply = await server.get("/readyz")
        return (reply.status, reply.body) == (503, b"draining\n")

    await until(drains)

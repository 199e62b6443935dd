"""Moderation as operators meet it: worker processes, the command line, a store that fails."""

from __future__ import annotations

import itertools
import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio

from proxy.config import load_config
from tests.fakes.world import tiny_jpeg
from tests.moderation import checkpoint
from tests.moderation.race import race
from tests.nginx import nginx_program, run_nginx
from tests.processes import SERVE, Client, Server, Upstream, imageproxy, run, serve, until, upstream

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-operator"
WORKERS = [*SERVE, "--workers", "2"]

REQUESTS = 10_000
CONNECTIONS = 50
ROUNDS = 5


def targets_of(did: str, cid: str) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every way to a byte of a blob, and to the word that a copy of it is still good."""
    image = f"/img/avatar_thumbnail/plain/{did}/{cid}"
    return [
        (image, ()),
        (f"/blob/{did}/{cid}", ()),
        (image, (("If-None-Match", "*"),)),
        (f"{image}@webp", ()),
        (f"/img/avatar_small/plain/{did}/{cid}", ()),
    ]


async def admin(port: int, method: str, route: str, value: object) -> int:
    """Ask an admin route; its status."""
    authorization = ("Authorization", f"Bearer {TOKEN}")
    async with Client(port) as client:
        body = json.dumps(value).encode()
        await client.send(f"/admin/{route}", authorization, method=method, body=body)
        return (await client.reply()).status


async def race_rounds(internet: Upstream, port: int, admin_port: int) -> None:
    """Race requests at ``port`` against blocks, of owners, of blobs, and of pairs."""
    for number in range(ROUNDS):
        did, cid = internet.add_blob(tiny_jpeg((number, 2, 3)))
        targets = targets_of(did, cid)
        selection = [{"did": did}, {"cid": cid}, {"did": did, "cid": cid}][number % 3]
        block = partial(admin, admin_port, "POST", "blocks", selection)

        outcome = await race(
            port,
            itertools.cycle(targets),
            block,
            requests=REQUESTS // ROUNDS,
            connections=CONNECTIONS,
        )
        assert outcome.call == 200
        assert outcome.leaked == []
        assert outcome.before[200] > REQUESTS // ROUNDS // 10, "there was something to get"
        assert outcome.after[404] > REQUESTS // ROUNDS // 10, "and it was asked for after"
        assert set(outcome.before) <= {200, 304, 404}


@pytest.mark.parametrize("memory_mb", ["64", "0"])
async def test_after_the_call_has_answered_no_request_gets_a_byte(
    memory_mb: str, tmp_path: Path
) -> None:
    """Catches an answer before all workers know, and a hit between its check and its end: from
    memory, and from disk."""
    async with upstream() as internet:
        more = {"SERVER__ADMIN_TOKEN": TOKEN, "CACHE__MEMORY_MB": memory_mb}
        environment = internet.environment(tmp_path, **more)
        async with serve(WORKERS, environment, workers=2) as server:
            await race_rounds(internet, server.port, server.port)


@pytest.mark.nginx
async def test_nor_through_nginx_which_serves_hits_from_disk(tmp_path: Path) -> None:
    """Catches a file that a late write of the other worker brings back for nginx to serve."""
    nginx_program()
    async with upstream() as internet:
        environment = internet.environment(tmp_path / "cache", SERVER__ADMIN_TOKEN=TOKEN)
        async with serve(WORKERS, environment, workers=2) as server:
            bind = {"IMAGE_PROXY_SERVER__BIND": f"127.0.0.1:{server.port}"}
            config = load_config(environment=environment | bind)
            async with run_nginx(tmp_path / "nginx", config) as front:
                await race_rounds(internet, front.port, server.port)


async def test_a_block_by_a_command_is_in_force_in_every_worker_when_it_returns(
    tmp_path: Path,
) -> None:
    """Catches a command that writes a file and leaves the rest to luck."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        environment = internet.environment(tmp_path, SERVER__ADMIN_TOKEN=TOKEN)
        targets = targets_of(did, cid)
        async with serve(WORKERS, environment, workers=2) as server:

            async def command(*arguments: str) -> None:
                async with run(imageproxy(*arguments), environment) as process:
                    assert await process.exit_code() == 0, process.text
                    await process.line_with("; in force in 2 processes$")
                    assert "warning" not in process.text

            async def statuses() -> set[int]:
                # Each over a connection of its own: whichever worker takes it.
                asked = itertools.islice(itertools.cycle(targets), 30)
                return {(await server.get(target, *headers)).status for target, headers in asked}

            assert await statuses() == {200, 304}
            await command("blocks", "add", "--did", did, "--reason", "a court said so")
            assert await statuses() == {404}
            await command("blocks", "remove", "--did", did)
            assert await statuses() == {200, 304}
            await command("cache", "purge", "--cid", cid)
            reply = await server.get(targets[0][0])
            assert reply.headers["x-cache"] == "miss"


async def test_a_block_holds_after_a_restart(tmp_path: Path) -> None:
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        environment = internet.environment(tmp_path, SERVER__ADMIN_TOKEN=TOKEN)
        async with serve(SERVE, environment) as server:
            assert await admin(server.port, "POST", "blocks", {"did": did}) == 200
        async with serve(SERVE, environment) as server:
            for target, headers in targets_of(did, cid):
                assert (await server.get(target, *headers)).status == 404
        assert internet.blobs_asked_for == 0


async def test_a_store_that_is_damaged_stops_all_workers_from_serving_until_it_is_whole(
    tmp_path: Path,
) -> None:
    """Catches hits out of memory while nobody can tell what is blocked, and silence about it."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        environment = internet.environment(tmp_path, SERVER__ADMIN_TOKEN=TOKEN)
        store = tmp_path / "moderation.sqlite3"
        async with serve(WORKERS, environment, workers=2) as server:
            for target, headers in targets_of(did, cid):
                await server.get(target, *headers)
            copy = tmp_path / "copy"
            with closing(sqlite3.connect(store)) as source, closing(sqlite3.connect(copy)) as to:
                source.backup(to)
            checkpoint(store)
            for suffix in ("-wal", "-shm"):
                store.with_name(store.name + suffix).unlink()
            store.write_bytes(b"this is no database" * 1000)

            async def all_are(status: int) -> bool:
                ready = [await server.get("/readyz") for _ in range(10)]
                asked = itertools.islice(itertools.cycle(targets_of(did, cid)), 20)
                found = {(await server.get(target, *headers)).status for target, headers in asked}
                return {each.status for each in ready} == {status} and found == {status}

            await until(lambda: all_are(503))
            reply = await server.get("/readyz")
            assert reply.body.startswith(b"blocks cannot be read: ")
            assert str(tmp_path).encode() not in reply.body
            busy = await server.get(targets_of(did, cid)[0][0])
            assert busy.body == b"busy\n"
            assert "retry-after" in busy.headers
            assert await admin(server.port, "POST", "blocks", {"did": did}) == 503
            assert (await server.get("/healthz")).status == 200
            store.unlink()
            copy.rename(store)

            async def ready() -> bool:
                return all([(await server.get("/readyz")).status == 200 for _ in range(10)])

            await until(ready)
            assert (await server.get(targets_of(did, cid)[0][0])).status == 200
            assert await admin(server.port, "POST", "blocks", {"did": did}) == 200
            assert await all_gone(server, did, cid)


async def all_gone(server: Server, did: str, cid: str) -> bool:
    asked = itertools.islice(itertools.cycle(targets_of(did, cid)), 20)
    return {(await server.get(target, *headers)).status for target, headers in asked} == {404}


async def test_a_start_with_a_store_that_cannot_be_read_serves_nothing_and_says_so(
    tmp_path: Path,
) -> None:
    """Catches a start that serves what is blocked, and one that ends before it can recover."""
    (tmp_path / "blocks.sqlite3").write_text("this is no database")
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        async with serve(SERVE, internet.environment(tmp_path)) as server:
            assert (await server.get("/readyz")).status == 503
            for target, headers in targets_of(did, cid):
                assert (await server.get(target, *headers)).status == 503
            assert internet.blobs_asked_for == 0
            (tmp_path / "blocks.sqlite3").unlink()

            async def ready() -> bool:
                return (await server.get("/readyz")).status == 200

            await until(ready)
            assert (await server.get(targets_of(did, cid)[0][0])).status == 200


async def test_a_server_that_is_killed_delays_no_decision(tmp_path: Path) -> None:
    """Catches a mark of the dead that every block waits for, and is told of."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        environment = internet.environment(tmp_path)
        async with serve(SERVE, environment) as server:
            async with serve(SERVE, environment) as killed:
                assert (await killed.get(targets_of(did, cid)[0][0])).status == 200
            # Its block ends it with SIGKILL.
            with trio.fail_after(30):
                async with run(imageproxy("blocks", "add", "--did", did), environment) as process:
                    assert await process.exit_code() == 0, process.text
            assert await all_gone(server, did, cid)

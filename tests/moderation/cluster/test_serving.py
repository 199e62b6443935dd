"""A cluster as operators meet it: workers, nginx beside them, commands, a machine that dies."""

from __future__ import annotations

import itertools
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import trio

from proxy.config import load_config
from tests.fakes.world import tiny_jpeg
from tests.moderation.cluster import LEASE, SHORT_LEASE
from tests.moderation.race import race
from tests.moderation.test_serving import TOKEN, WORKERS, admin, targets_of
from tests.nginx import nginx_program, run_nginx
from tests.processes import SERVE, Upstream, files_in, imageproxy, run, serve, until, upstream

pytestmark = pytest.mark.slow


def on(database: str, *, lease: float = LEASE) -> dict[str, str]:
    return {
        "SERVER__ADMIN_TOKEN": TOKEN,
        "CLUSTER__DATABASE": database,
        "CLUSTER__LEASE": str(lease),
    }


async def race_twice(internet: Upstream, port: int, admin_port: int, requests: int) -> None:
    """Race requests at one machine against a block of an owner, and one of a blob, at another."""
    for number in range(2):
        did, cid = internet.add_blob(tiny_jpeg((number, 2, 3)))
        block = partial(admin, admin_port, "POST", "blocks", [{"did": did}, {"cid": cid}][number])
        targets = itertools.cycle(targets_of(did, cid))
        outcome = await race(port, targets, block, requests=requests, connections=50)
        assert outcome.call == 200
        assert outcome.leaked == []
        assert outcome.before[200] > 50, "there was something to get"
        assert outcome.after[404] > 50, "and it was asked for after"
        assert set(outcome.before) <= {200, 304, 404}


async def test_a_block_at_one_machine_holds_in_every_worker_of_another(
    tmp_path: Path, database_url: str
) -> None:
    """Catches a worker that nobody waits for."""
    async with upstream() as internet:
        first = internet.environment(tmp_path / "a", **on(database_url))
        second = internet.environment(tmp_path / "b", **on(database_url))
        async with (
            serve(WORKERS, first, workers=2) as here,
            serve(WORKERS, second, workers=2) as there,
        ):
            await race_twice(internet, there.port, here.port, requests=1500)


@pytest.mark.nginx
async def test_nor_does_nginx_beside_another_machine_serve_it(
    tmp_path: Path, database_url: str
) -> None:
    """Catches a file that another machine's nginx serves after the call has answered."""
    nginx_program()
    async with upstream() as internet:
        first = internet.environment(tmp_path / "a", **on(database_url))
        second = internet.environment(tmp_path / "b", **on(database_url))
        async with (
            serve(WORKERS, first, workers=2) as here,
            serve(WORKERS, second, workers=2) as there,
        ):
            bind = {"IMAGE_PROXY_SERVER__BIND": f"127.0.0.1:{there.port}"}
            config = load_config(environment=second | bind)
            async with run_nginx(tmp_path / "nginx", config) as front:
                await race_twice(internet, front.port, here.port, requests=5000)


@pytest.mark.nginx
async def test_a_machine_that_is_killed_leaves_no_file_to_nginx_and_delays_for_a_lease_alone(
    tmp_path: Path, database_url: str
) -> None:
    """Catches files that nginx serves when nobody follows decisions beside it any more."""
    nginx_program()
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        target = f"/img/avatar_thumbnail/plain/{did}/{cid}"
        first = internet.environment(tmp_path / "a", **on(database_url))
        second = internet.environment(tmp_path / "b", **on(database_url, lease=SHORT_LEASE))
        async with serve(SERVE, first) as here:
            async with serve(SERVE, second) as there:
                bind = {"IMAGE_PROXY_SERVER__BIND": f"127.0.0.1:{there.port}"}
                config = load_config(environment=second | bind)
                async with run_nginx(tmp_path / "nginx", config) as front:
                    assert (await front.get(target)).status == 200
                    await until(lambda: len(files_in(tmp_path / "b")) == 1)
                    await until((tmp_path / "b" / "served").is_symlink)
                    os.kill(there.pid, signal.SIGKILL)
                    with trio.fail_after(SHORT_LEASE + 20):
                        assert await admin(here.port, "POST", "blocks", {"did": did}) == 200
                    assert (await front.get(target)).status == 503
                    assert len(files_in(tmp_path / "b")) == 1
            async with serve(SERVE, second) as there:
                assert (await there.get(target)).status == 404
                assert files_in(tmp_path / "b") == []


async def test_the_commands_go_from_one_machine_to_several(
    tmp_path: Path, database_url: str
) -> None:
    """Catches a command that looks into the folder where the decisions are no more."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        alone = internet.environment(tmp_path, SERVER__ADMIN_TOKEN=TOKEN)
        shared = internet.environment(tmp_path, **on(database_url))
        target = f"/img/avatar_thumbnail/plain/{did}/{cid}"

        async def command(environment: dict[str, str], *arguments: str) -> str:
            async with run(imageproxy(*arguments), environment) as process:
                assert await process.exit_code() == 0, process.text
                return process.text

        async with serve(SERVE, alone) as server:
            assert (await server.get(target)).status == 200
            assert await admin(server.port, "POST", "blocks", {"did": did}) == 200
        assert "1 blocks and 1 decisions" in await command(shared, "cluster", "import")
        assert "already" in await command(shared, "cluster", "import")
        async with serve(SERVE, shared) as server:
            assert (await server.get(target)).status == 404
            assert did in await command(shared, "blocks", "list")
            await command(shared, "blocks", "remove", "--did", did)
            assert (await server.get(target)).status == 200
            text = await command(shared, "blocks", "add", "--cid", cid)
            assert "in force in 1 process" in text
            assert (await server.get(target)).status == 404
            assert "lift" in await command(shared, "blocks", "audit")
            assert "/served" in await command(shared, "nginx")

"""A server on a file system of its own that fills up, or turns read-only, under it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.fakes.world import tiny_jpeg
from tests.processes import SERVE, Server, Upstream, serve, until, upstream
from tests.required import skip_unless_required

SIZE = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        skip_unless_required("only root may mount a file system, and here only on Linux")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        skip_unless_required(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room; the file to remove to have it again."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    return ballast


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


class Asked:
    """A server, and what it says of itself and of pictures."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def state(self, path: str) -> str:
        """The ``X-Cache`` of a picture, which must come."""
        reply = await self._server.get(path)
        assert reply.status == 200, reply.body
        return reply.headers["x-cache"]

    async def is_hit(self, path: str) -> bool:
        return await self.state(path) == "hit"

    async def readiness(self) -> tuple[int, str]:
        reply = await self._server.get("/readyz")
        return reply.status, reply.body.decode()

    async def is_ready(self) -> bool:
        return (await self.readiness())[0] == 200

    async def write_errors(self) -> float:
        for line in (await self._server.get("/metrics")).body.decode().splitlines():
            if line.startswith("imageproxy_cache_write_errors_total "):
                return float(line.split()[1])
        return 0.0


def pictures(made: Upstream, count: int) -> list[str]:
    return [
        "/img/avatar_thumbnail/plain/{}/{}".format(*made.add_blob(tiny_jpeg((number, 0, 0))))
        for number in range(0, 50 * count, 50)
    ]


async def test_a_disk_that_fills_up_costs_no_request_and_is_used_again_when_there_is_room(
    disk: Path,
) -> None:
    """Catches errors for images that a PDS has, and a cache that stays off until a restart."""
    async with upstream() as made:
        before, during, later, after = pictures(made, 4)
        environment = made.environment(disk / "cache", CACHE__MEMORY_MB="0")
        async with serve(SERVE, environment) as server:
            asked = Asked(server)
            assert await asked.state(before) == "miss"
            await until(lambda: asked.is_hit(before))
            assert await asked.write_errors() == 0

            ballast = await trio.to_thread.run_sync(fill, disk)
            assert await asked.state(during) == "miss"

            async def is_noticed() -> bool:
                return await asked.readiness() == (
                    503,
                    "cache unusable: No space left on device\n",
                )

            await until(is_noticed)
            assert await asked.write_errors() >= 1
            assert await asked.state(later) == "miss"
            assert (await server.get("/healthz")).status == 200

            ballast.unlink()
            await until(asked.is_ready)
            assert await asked.state(after) == "miss"
            await until(lambda: asked.is_hit(after))
            assert await asked.state(before) == "hit"


async def test_a_disk_that_is_read_only_at_the_start_is_used_as_soon_as_it_is_not(
    disk: Path,
) -> None:
    """Catches a server that does not start without its cache, or never looks at it again."""
    async with upstream() as made:
        during, after = pictures(made, 2)
        await trio.to_thread.run_sync(remount, disk, "ro")
        async with serve(SERVE, made.environment(disk / "cache")) as server:
            asked = Asked(server)
            assert await asked.readiness() == (503, "cache unusable: Read-only file system\n")
            assert await asked.state(during) == "miss"
            await trio.to_thread.run_sync(remount, disk, "rw")
            await until(asked.is_ready)
            assert await asked.state(after) == "miss"
            await until(lambda: any((disk / "cache" / "images").rglob("*.jpg")))

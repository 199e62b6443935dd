"""A server on a file system of its own that fills up, or turns read-only, under it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, suppress
from pathlib import Path

import pytest
import trio

from proxy.cache.disk import DiskCache
from proxy.model.keys import ImageKey
from proxy.model.selection import Selection
from proxy.moderation.store import ModerationStore
from tests.cache import entry, key, owner
from tests.fakes.world import tiny_jpeg
from tests.processes import (
    SERVE,
    Server,
    Upstream,
    files_in,
    imageproxy,
    run,
    serve,
    until,
    upstream,
)
from tests.required import skip_unless_required

pytestmark = pytest.mark.slow

SIZE = 4 << 20
MOST_PUTS = 2000
SMALL = key(MOST_PUTS)


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
        return await self.readiness() == (200, "ok\n")

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
                    200,
                    "ok\ndegraded: the cache takes no more: No space left on device\n",
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
            assert await asked.readiness() == (
                200,
                "ok\ndegraded: the cache takes no more: Read-only file system\n",
            )
            assert await asked.state(during) == "miss"
            await trio.to_thread.run_sync(remount, disk, "rw")
            await until(asked.is_ready)
            assert await asked.state(after) == "miss"
            await until(lambda: bool(files(disk)))


async def fill_cache(folder: Path, number: int, size: int) -> None:
    """Put ``number`` entries of ``size`` bytes there, and note nothing in memory."""
    cache = DiskCache(folder, max_bytes=1 << 30)
    await cache.check()
    for each in range(number):
        await cache.put(key(each), entry(size))
    await cache.make_indexed()
    await cache.aclose()
    with closing(ModerationStore(folder / "moderation.sqlite3")) as store:
        store.make()


def files(disk: Path) -> list[Path]:
    return [path for path in files_in(disk / "cache") if path.suffix == ".jpg"]


async def command(environment: dict[str, str], *arguments: str) -> list[str]:
    """Run one that must succeed; what it wrote."""
    async with run(imageproxy(*arguments), environment) as process:
        assert await process.exit_code() == 0, process.text
        return process.lines


COMMANDS = [
    ("blocks", "add", "--did", owner(1)),
    ("cache", "purge", "--did", owner(1)),
    ("cache", "cleanup"),
    ("cache", "verify", "--repair"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
async def test_a_command_that_removes_works_on_a_full_disk(
    disk: Path, arguments: tuple[str, ...]
) -> None:
    """Catches a removal whose own records find no room: nothing but rm would help."""
    await fill_cache(disk / "cache", 40, 50_000)
    # Wrong for the verification, and more than a cleanup leaves.
    (removed,) = (path for path in files(disk) if key(1).blob.cid in path.name)
    if "verify" in arguments:
        await trio.to_thread.run_sync(removed.write_bytes, b"damaged")
    await trio.to_thread.run_sync(fill, disk)
    environment = {
        "IMAGE_PROXY_CACHE__PATH": str(disk / "cache"),
        "IMAGE_PROXY_CACHE__MAX_GB": str(500_000 / 1024**3),
    }
    await command(environment, *arguments)
    if arguments == ("cache", "cleanup"):
        assert 0 < len(files(disk)) <= 10
    else:
        assert not removed.exists()
        assert len(files(disk)) > 10, "no more is given up than is needed"
    # The index is true to what is left.
    await command(environment, "cache", "verify")
    if "blocks" in arguments:
        assert any(owner(1) in line for line in await command(environment, "blocks", "list"))


async def test_a_full_disk_keeps_no_server_from_blocking_nor_from_starting(disk: Path) -> None:
    """Catches a takedown that has to wait for a larger disk, and a restart that serves nothing."""
    async with upstream() as made:
        blocked, served = pictures(made, 2)
        did = blocked.split("/")[4]
        environment = made.environment(
            disk / "cache", SERVER__ADMIN_TOKEN="a-secret-of-the-operator"
        )
        await fill_cache(disk / "cache", 40, 50_000)
        async with serve(SERVE, environment) as server:
            asked = Asked(server)
            assert await asked.state(blocked) == "miss"
            await trio.to_thread.run_sync(fill, disk)
            reply = await server.get(
                "/admin/blocks",
                ("Authorization", "Bearer a-secret-of-the-operator"),
                ("Content-Type", "application/json"),
                method="POST",
                body=json.dumps({"did": did}).encode(),
            )
            assert reply.status == 200, reply.body
            assert (await server.get(blocked)).status == 404
        await trio.to_thread.run_sync(fill, disk)
        async with serve(SERVE, environment) as server:

            async def serves() -> bool:
                return (await server.get(served)).status == 200

            await until(serves)
            assert (await server.get(blocked)).status == 404


async def fail_as_it_fills(disk: Path, cache: DiskCache) -> list[int]:
    """Fill the disk each time a file is to appear until nothing is recorded; what was put."""
    tried: list[int] = []
    for number in range(MOST_PUTS):
        tried.append(number)
        try:
            await cache.put(key(number), entry(2000 + number))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
            return tried
        (disk / "ballast").unlink()
    raise AssertionError("the disk was never too full to record an entry")


@pytest.fixture
async def filled(disk: Path) -> AsyncIterator[DiskCache]:
    """A cache whose disk has no more room as soon as a file is to appear, ``SMALL`` apart."""

    def may_keep(image: ImageKey) -> bool:
        if image != SMALL:
            fill(disk)
        return True

    async with aclosing(DiskCache(disk / "cache", max_bytes=1 << 30, may_keep=may_keep)) as cache:
        yield cache


async def verified(disk: Path) -> list[str]:
    return await command({"IMAGE_PROXY_CACHE__PATH": str(disk / "cache")}, "cache", "verify")


@pytest.mark.parametrize("by", ["a cleanup", "the next write", "the end"])
async def test_a_file_that_appeared_as_its_disk_filled_up_is_recorded_when_there_is_room(
    disk: Path, filled: DiskCache, by: str
) -> None:
    """Catches a file that no index has: no eviction finds it, and it is told as a fault."""
    await filled.make_indexed()
    tried = await fail_as_it_fills(disk, filled)
    placed = [
        each for each in tried if any(key(each).blob.cid in path.name for path in files(disk))
    ]
    assert placed == tried, "the last one appeared too, or there is nothing to see here"
    (disk / "ballast").unlink()
    if by == "a cleanup":
        await filled.cleanup()
    if by == "the next write":
        await filled.put(SMALL, entry(100))
    if by == "the end":
        await filled.aclose()
    assert "0 wrong" in (await verified(disk))[-1]


async def test_a_file_that_appeared_as_its_disk_filled_up_goes_with_a_purge_of_its_blob(
    disk: Path, filled: DiskCache
) -> None:
    """Catches a blocked picture that nginx serves on: the index did not know where it was."""
    await filled.make_indexed()
    unrecorded = (await fail_as_it_fills(disk, filled))[-1]
    cid = key(unrecorded).blob.cid
    assert any(cid in path.name for path in files(disk))
    (disk / "ballast").unlink()
    assert await filled.purge(Selection(cid=cid)) == 1
    assert not any(cid in path.name for path in files(disk))

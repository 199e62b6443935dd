"""What is not a regular file in the cache folder is not opened: it may block, or be elsewhere."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from proxy.cache.disk import DiskCache
from proxy.cache.files import CacheFolder
from proxy.cache.layout import entry_folder, entry_name
from proxy.coordination.build_locks import BuildLocks
from proxy.coordination.leader import FolderLeadership
from proxy.coordination.liveness import Liveness
from proxy.model.formats import Format
from proxy.shared.regular_file import NotRegular, open_regular
from proxy.shared.sqlite import Database
from tests.cache import entry, key
from tests.fakes.world import World
from tests.processes import PATIENCE
from tests.web import img, serving

OUTSIDE = b"\xff\xd8\xff a file elsewhere"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    # An address has at most 107 bytes: the name alone, from within the folder.
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        made.bind(path.name)


def link(path: Path) -> None:
    outside = path.parent / "outside"
    outside.write_bytes(OUTSIDE)
    path.symlink_to(outside)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPECIAL = pytest.mark.parametrize("make", [fifo, unix_socket, link, link_to_a_device])
Make = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Come back to this folder after the test."""
    monkeypatch.chdir(Path.cwd())


def cache_in(folder: Path) -> DiskCache:
    return DiskCache(folder, max_bytes=10**9)


def path_of(folder: Path) -> Path:
    return folder / "images" / entry_folder(key(1)) / entry_name(key(1), Format.JPEG)


@SPECIAL
async def test_an_entry_that_is_not_a_file_is_a_miss_and_is_replaced(
    make: Make, tmp_path: Path
) -> None:
    """Catches a hit that waits for a FIFO without an end, and one that is read elsewhere."""
    async with aclosing(cache_in(tmp_path)) as cache:
        await cache.put(key(1), entry())
        path_of(tmp_path).unlink()
        make(path_of(tmp_path))
        with trio.fail_after(PATIENCE):
            assert await cache.get(key(1)) is None
            await cache.put(key(1), entry())
            assert await cache.get(key(1)) == entry()


@SPECIAL
async def test_chores_read_regular_files_alone(make: Make, tmp_path: Path) -> None:
    """Catches an index with a file from elsewhere, and a chore that waits for a FIFO."""
    async with aclosing(cache_in(tmp_path)) as cache:
        path_of(tmp_path).parent.mkdir(parents=True)
        make(path_of(tmp_path))
        with trio.fail_after(PATIENCE):
            await cache.make_indexed()
            assert cache.statistics().entries == 0
            found = [fault async for _, faults in cache.verify(repair=True) for fault in faults]
            assert ("foreign", path_of(tmp_path)) in found
            await cache.cleanup()
        assert list((tmp_path / "images").rglob("*@*")) == []


async def test_a_shard_that_is_a_link_is_not_entered(tmp_path: Path) -> None:
    """Catches files elsewhere that are indexed, evicted and removed as entries."""
    outside = tmp_path / "elsewhere"
    async with aclosing(cache_in(outside)) as cache:
        await cache.put(key(1), entry())
    shard = path_of(outside).parents[2]
    linked = tmp_path / "cache" / shard.relative_to(outside)
    linked.parent.mkdir(parents=True)
    linked.symlink_to(shard)
    async with aclosing(cache_in(tmp_path / "cache")) as cache:
        await cache.make_indexed()
        assert cache.statistics().entries == 0
    assert path_of(outside).exists()


@SPECIAL
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_an_index_that_is_not_a_file_is_made_anew(suffix: str, make: Make, tmp_path: Path) -> None:
    """Catches an index that is written elsewhere, or at which the service hangs."""
    path = tmp_path / f"index-1.sqlite3{suffix}"
    make(path)
    folder = CacheFolder(tmp_path, max_bytes=10**9, ttl_seconds=0, may_keep=lambda key: True)
    folder.check()
    folder.put(key(1), entry())
    found = folder.get(key(1))
    assert found is not None
    assert found[0] == entry()
    assert not path.is_symlink()
    folder.close()
    if make is link:
        assert (tmp_path / "outside").read_bytes() == OUTSIDE


@pytest.mark.parametrize("make", [fifo, unix_socket, link_to_a_device])
def test_a_store_that_is_not_a_file_fails(make: Make, tmp_path: Path) -> None:
    """Catches decisions that are written to a device, or a start that hangs."""
    make(tmp_path / "store")
    database = Database(tmp_path / "store", "", synchronous="FULL")
    with pytest.raises(NotRegular), database.reading():
        pass
    assert os.path.lexists(tmp_path / "store")


@SPECIAL
def test_a_lock_that_is_not_a_file_fails(make: Make, tmp_path: Path) -> None:
    """Catches a start that waits for a FIFO to be read."""
    make(tmp_path / ".store.lock")
    database = Database(tmp_path / "store", "", synchronous="FULL")
    with pytest.raises(NotRegular), database.reading():
        pass


@SPECIAL
async def test_coordination_takes_regular_files_alone(make: Make, tmp_path: Path) -> None:
    """Catches a mark, a build lock or a leader's lock that hangs, or is a file elsewhere."""
    make(tmp_path / "special")
    leader = FolderLeadership(tmp_path / "special")
    with pytest.raises(NotRegular):
        leader.take()
    locks = BuildLocks(tmp_path / "special", timeout=1)
    release, _ = await locks.acquire(key(1))
    release()
    locks.close()
    marks = Liveness(tmp_path)
    assert marks.living() == frozenset()
    assert "special" not in marks.bury()
    marks.enter()
    assert marks.living() == {marks.token}
    marks.leave()


@SPECIAL
def test_what_takes_the_place_of_a_file_between_look_and_opening_is_closed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a check of the name alone."""
    make(tmp_path / "special")
    monkeypatch.setattr("proxy.shared.regular_file.is_regular", lambda path: True)
    before = len(os.listdir("/proc/self/fd"))
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        with pytest.raises(NotRegular) as failed:
            open_regular(tmp_path / "special", flags)
        assert failed.value.errno == errno.EINVAL
    assert len(os.listdir("/proc/self/fd")) == before


@SPECIAL
async def test_a_service_answers_with_such_a_file_in_the_place_of_a_result(
    make: Make, world: World
) -> None:
    """Catches a hit that hangs, or has the bytes of another file."""
    did, cid = world.add_blob()
    async with serving(world, world.config(cache={"memory_mb": 0})) as client:
        first = await client.get(img(did, cid))
        assert first.status == 200
    (path,) = (each for each in world.cache_path.rglob(f"{cid}@*") if each.is_file())
    path.unlink()
    make(path)
    async with serving(world, world.config(cache={"memory_mb": 0})) as client:
        second = await client.get(img(did, cid))
        assert (second.status, second.body) == (200, first.body)
        assert second.headers["x-cache"] == "miss"

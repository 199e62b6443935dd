"""Build locks: one process makes a result at a time, and no lock outlasts its process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.cache.disk import DiskCache
from proxy.cache.interface import Entry
from proxy.coordination.build_locks import (
    FIRST_POLL_SECONDS,
    LONGEST_POLL_SECONDS,
    BuildLocks,
    _byte_of,
)
from proxy.model.formats import OUTPUTS
from proxy.model.keys import ImageKey
from proxy.model.presets import DEFAULT_PRESETS
from tests.cache import blob_cid, key, owner
from tests.fakes.parts import FakeFetcher, FakeProcessor, FakeResolver, Gate
from tests.fakes.sites import cid_of
from tests.fakes.world import World
from tests.processes import PATIENCE

HOLD = """
import sys
from pathlib import Path
import trio
from proxy.coordination.build_locks import BuildLocks
from tests.cache import key

async def main():
    locks = BuildLocks(Path(sys.argv[1]), timeout=600)
    release, waited = await locks.acquire(key(int(sys.argv[2])))
    print("waited" if waited else "acquired", flush=True)
    for line in sys.stdin:
        release()
        print("released", flush=True)

trio.run(main)
"""


class Neighbour:
    """Another process that acquires a build lock, and holds it."""

    def __init__(self, path: Path, number: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def release(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self.told() == "released"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def locks_of(path: Path, timeout: float = 600) -> BuildLocks:
    return BuildLocks(path, timeout=timeout)


async def is_free(locks: BuildLocks, wanted: ImageKey) -> bool:
    """Whether the lock is acquired by the first try."""
    release, _ = await locks.acquire(key(99))  # opens the file, in a thread
    release()
    with trio.move_on_after(0) as patience:
        release, _ = await locks.acquire(wanted)
        release()
    return not patience.cancelled_caught


@pytest.mark.parametrize("end", [Neighbour.release, Neighbour.kill])
async def test_a_lock_of_another_process_is_waited_for_until_it_is_released_or_its_process_ends(
    tmp_path: Path, end: Callable[[Neighbour], None]
) -> None:
    """Catches work done twice, and a lock that a SIGKILL leaves behind for ever."""
    path = tmp_path / "sub" / "flights.lock"
    neighbour = Neighbour(path, 1)
    try:
        assert neighbour.told() == "acquired"
        locks = locks_of(path)
        assert not await is_free(locks, key(1))
        assert await is_free(locks, key(2)), "another result has another lock"
        end(neighbour)
        with trio.fail_after(PATIENCE):
            release, _ = await locks.acquire(key(1))
        release()
    finally:
        neighbour.kill()


async def test_acquiring_says_whether_another_process_held_the_lock(tmp_path: Path) -> None:
    """Catches a second fetch because nobody looked into the cache again."""
    locks = locks_of(tmp_path / "flights.lock")
    release, was_held = await locks.acquire(key(1))
    release()
    assert not was_held
    neighbour = Neighbour(tmp_path / "flights.lock", 1)
    held: list[bool] = []

    async def acquire() -> None:
        release, was_held = await locks.acquire(key(1))
        held.append(was_held)
        release()

    try:
        assert neighbour.told() == "acquired"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acquire)
            await wait_all_tasks_blocked()
            assert held == []
            neighbour.release()
        assert held == [True]
    finally:
        neighbour.kill()


async def test_a_cancelled_wait_leaves_no_lock(tmp_path: Path) -> None:
    """Catches a result that nobody makes any more because somebody once waited for it."""
    locks = locks_of(tmp_path / "flights.lock")
    release, _ = await locks.acquire(key(1))
    assert not await is_free(locks, key(1))
    release()
    assert await is_free(locks, key(1))


async def test_a_wait_ends_at_its_deadline_and_leaves_the_lock_to_its_holder(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Catches a request that a stopped neighbour holds up for ever, and a release of its lock."""
    path = tmp_path / "flights.lock"
    neighbour = Neighbour(path, 1)
    try:
        assert neighbour.told() == "acquired"
        locks = locks_of(path, timeout=35)
        await locks.acquire(key(2))  # opens the file, in a thread: the clock would jump
        began = trio.current_time()
        with capture_logs() as logs, trio.fail_after(60):
            release, was_held = await locks.acquire(key(1))
        assert trio.current_time() - began == pytest.approx(35)
        assert was_held
        assert [line["log_level"] for line in logs] == ["warning"]
        release()
        assert not await is_free(locks, key(1))
        neighbour.release()
        assert await is_free(locks, key(1))
    finally:
        neighbour.kill()


async def test_giving_up_a_wait_does_not_release_the_lock_of_an_earlier_write(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Catches a release that is not the holder's: the next process would not find the file."""
    locks = locks_of(tmp_path / "flights.lock", timeout=35)
    release_first, _ = await locks.acquire(key(1))
    release_second, _ = await locks.acquire(key(1))
    release_second()
    assert not await is_free(locks, key(1))
    release_first()
    assert await is_free(locks, key(1))


async def test_a_held_lock_is_tried_often_at_first_and_seldom_later(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches 100 tries a second for as long as a neighbour is stopped, and a slow first one."""
    locks = locks_of(tmp_path / "flights.lock", timeout=100)
    await locks.acquire(key(1))
    tries: list[float] = []
    really_try = locks._try

    def counted(byte: int) -> bool:
        tries.append(trio.current_time())
        return really_try(byte)

    monkeypatch.setattr(locks, "_try", counted)
    await locks.acquire(key(1))
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert pauses[0] == pytest.approx(FIRST_POLL_SECONDS)
    assert max(pauses) == pytest.approx(LONGEST_POLL_SECONDS)
    assert len(tries) < 100 / LONGEST_POLL_SECONDS + 20


def test_every_part_of_a_key_makes_another_lock(tmp_path: Path) -> None:
    """Catches two results that wait for each other."""
    keys = [
        key(preset=preset, did=owner(who), cid=blob_cid(what), format_=format_)
        for preset in ("avatar", "banner")
        for who in (1, 2)
        for what in (1, 2)
        for format_ in (None, *OUTPUTS)
    ]
    positions = {_byte_of(each) for each in keys}
    assert len(positions) == len(keys)
    assert max(positions) < 2**62


async def test_without_a_usable_file_nothing_is_waited_for(tmp_path: Path) -> None:
    """Catches a broken disk that takes the images down which could still be fetched."""
    (tmp_path / "file").write_bytes(b"")
    locks = locks_of(tmp_path / "file" / "flights.lock")
    with trio.fail_after(PATIENCE):
        release, was_held = await locks.acquire(key(1))
    release()
    assert not was_held
    locks.close()


TRY = """
import fcntl, os, sys

descriptor = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))
except OSError:
    print("held")
else:
    print("free")
"""


async def state_of(path: Path, wanted: ImageKey) -> str:
    """What another process finds when it tries to lock."""
    command = [sys.executable, "-c", TRY, str(path), str(_byte_of(wanted))]
    done = await trio.run_process(command, capture_stdout=True)
    return done.stdout.decode().strip()


async def test_the_lock_is_held_until_the_result_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a lock released before the write: a process that waited makes the result again."""
    data = b"a picture"
    wanted = key(cid=cid_of(data))
    resolver, fetcher, processor = FakeResolver(), FakeFetcher(), FakeProcessor()
    resolver.pds[wanted.blob.did] = "https://pds.example"
    fetcher.blobs["https://pds.example", wanted.blob] = data
    writing = Gate()
    really_put = DiskCache.put

    async def put(cache: DiskCache, key: ImageKey, entry: Entry) -> None:
        await writing.passed()
        await really_put(cache, key, entry)

    monkeypatch.setattr(DiskCache, "put", put)
    writing.close()
    config = world.config()
    path = config.cache.path / "flights.lock"
    async with world.service(
        config, resolver=resolver, fetcher=fetcher, processor=processor
    ) as service:
        assert (await service.get(wanted, DEFAULT_PRESETS["avatar"])).cache == "miss"
        assert await state_of(path, wanted) == "held"
        writing.open()
        while service._writer.pending(wanted) is not None:
            await trio.lowlevel.checkpoint()
        assert await state_of(path, wanted) == "free"

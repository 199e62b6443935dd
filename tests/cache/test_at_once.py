"""Hits from disk without a wait: they are what a hit in a thread would be, or they are none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from proxy.cache.disk import LARGEST_AT_ONCE, DiskCache
from proxy.cache.files import TOUCH_AFTER
from proxy.cache.interface import Entry
from proxy.cache.lately_read import TRUSTED_SECONDS
from proxy.cache.layout import entry_folder, entry_name
from proxy.model.formats import Format
from proxy.model.selection import Everything, Selection, Selections
from proxy.shared.cached_file import CachedFiles
from tests.cache import entry, key
from tests.cache.test_disk import DAY, GIGABYTE, Clock, path_of
from tests.required import skip_unless_required

MakeCache = Callable[..., DiskCache]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def possible(tmp_path: Path) -> None:
    (tmp_path / "probe").write_bytes(b"x")
    if CachedFiles().read(os.fsencode(tmp_path / "probe"), 1) is None:
        skip_unless_required("needs Linux 5.12, and temporary files on a disk")


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[MakeCache]:
    """Makes a cache over one folder: a second one is what another process has."""
    with ExitStack() as closed:

        def make(**arguments: Any) -> DiskCache:
            cache = DiskCache(
                tmp_path / "cache", **{"max_bytes": GIGABYTE, "clock": clock, **arguments}
            )
            closed.callback(cache._folder.close)
            return cache

        yield make


async def test_what_was_read_is_a_hit_at_once_and_asks_the_index_nothing(
    make: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a wait for SQLite, or for a thread, before every hit."""
    cache = make()
    await cache.put(key(), entry())
    assert cache.at_once(key()) is None, "not read yet"
    assert await cache.get(key()) == entry()
    with monkeypatch.context() as patched:
        patched.setattr(cache._folder, "_index", None)
        assert cache.at_once(key()) == entry()
        assert cache.at_once(key(2)) is None


async def test_what_was_missing_a_moment_ago_needs_no_thread_until_it_is_there(
    make: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a thread for each of the looks of a miss, and a result of another process unseen."""
    mine, other = make(), make()
    assert await mine.get(key()) is None
    with monkeypatch.context() as patched:
        patched.setattr(mine._folder, "get", None)
        assert await mine.get(key()) is None
    await other.put(key(), entry())
    assert await mine.get(key()) == entry()


async def test_a_purge_by_any_process_ends_it_before_the_purge_has_answered(
    make: MakeCache,
) -> None:
    """Catches a descriptor, or a copy, that outlives the file."""
    mine, other = make(), make()
    await mine.put(key(), entry())
    await mine.get(key())
    assert mine.at_once(key()) is not None
    assert await other.purge(Selection(cid=key().blob.cid)) == 1
    assert mine.at_once(key()) is None
    assert await mine.get(key()) is None
    # Made again: nothing of before is in the way.
    await other.put(key(), entry(7))
    assert mine.at_once(key()) is None
    assert await mine.get(key()) == entry(7)
    assert mine.at_once(key()) == entry(7)


async def others_run() -> None:
    """A wait in which threads have Python's lock: a loop of checkpoints would keep it from them."""
    await trio.to_thread.run_sync(int)


async def test_no_purge_is_outrun_however_often_another_process_reads(make: MakeCache) -> None:
    """Catches a hit at once after a purge has answered, and what a read under way brings back.

    By the clock of the machine: the kernel notes by it when the reader beside has read the file.
    """
    mine, other = (make(clock=time.time, fsync=False) for _ in range(2))
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            while True:
                await mine.get(key())
                mine.at_once(key())
                await others_run()

        nursery.start_soon(read)
        for number in range(20):
            await other.put(key(), entry(number))
            while mine.at_once(key()) is None:
                await others_run()
            mine.forget(Everything())
            assert await other.purge(Selection(did=key().blob.did)) >= 1
            assert mine.at_once(key()) is None
        nursery.cancel_scope.cancel()


async def test_what_is_forgotten_during_its_reading_is_not_remembered(make: MakeCache) -> None:
    """Catches a block that a read under way undoes."""
    cache = make()
    await cache.put(key(), entry())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.get, key())
        await trio.testing.wait_all_tasks_blocked()
        with suppress(IndexError):
            cache.forget(Selections([Selection(did=key().blob.did)]))
    if len(cache._lately_read):  # the thread was faster
        cache.forget(Selections([Selection(did=key().blob.did)]))
    assert cache.at_once(key()) is None


@pytest.mark.parametrize("change", ["overwritten", "cut", "gone", "a link"])
async def test_a_file_that_is_not_what_was_read_is_left_to_the_thread(
    change: str, make: MakeCache, tmp_path: Path
) -> None:
    """Catches a damaged picture that is served because it was good once."""
    cache = make()
    await cache.put(key(), entry())
    await cache.get(key())
    path = path_of(tmp_path / "cache" / "images", key())
    data = path.read_bytes()
    path.unlink()
    if change == "overwritten":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "cut":
        path.write_bytes(data[:-1])
    elif change == "a link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    assert cache.at_once(key()) is None
    assert await cache.get(key()) is None
    assert cache.at_once(key()) is None


async def test_what_expires_is_no_hit_at_once_either(make: MakeCache, clock: Clock) -> None:
    cache = make(ttl_seconds=DAY)
    await cache.put(key(), entry())
    await cache.get(key())
    path = path_of(cache.images, key())
    clock.advance(DAY)
    os.utime(path, (clock.now, path.stat().st_mtime))
    assert cache.at_once(key()) is None
    assert await cache.get(key()) is None


async def test_a_use_that_has_to_be_recorded_is_left_to_the_thread_which_records_it(
    make: MakeCache, clock: Clock
) -> None:
    """Catches the hottest picture being evicted as the least used, and writes on the loop."""
    cache = make()
    await cache.put(key(), entry())
    await cache.get(key())
    path = path_of(cache.images, key())
    before = clock.now - 2 * TOUCH_AFTER
    os.utime(path, (before, path.stat().st_mtime))
    assert cache.at_once(key()) is None
    assert await cache.get(key()) == entry()
    assert path.stat().st_atime == pytest.approx(clock.now)
    assert cache.at_once(key()) == entry()


async def test_a_large_file_is_left_to_the_thread(make: MakeCache) -> None:
    """Catches a loop that hashes megabytes."""
    cache = make()
    large = Entry(b"\xff\xd8\xff" + bytes(LARGEST_AT_ONCE), Format.JPEG)
    await cache.put(key(), large)
    assert await cache.get(key()) == large
    assert cache.at_once(key()) is None


async def test_the_index_is_asked_again_after_a_while(
    make: MakeCache, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a folder that was replaced while nobody read it, and one that is trusted for ever."""
    cache = make()
    await cache.put(key(), entry())
    await cache.get(key())
    autojump_clock.jump(TRUSTED_SECONDS - 1)
    assert cache.at_once(key()) == entry()
    autojump_clock.jump(1)
    assert cache.at_once(key()) is None


def test_the_path_that_is_remembered_is_that_of_the_layout(make: MakeCache) -> None:
    cache = make()
    cache._folder.put(key(), entry())
    found = cache._folder.get(key())
    assert found is not None
    expected = cache.images / entry_folder(key()) / entry_name(key(), found[1].format)
    assert found[1].path == os.fsencode(expected)

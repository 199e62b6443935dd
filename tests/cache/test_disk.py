"""The disk tier, in a real folder: what is in it is whole, bounded, and nowhere else.

File times are the tier's only records, so time comes from a clock that tests advance. It starts
now: the kernel notes reads by its own clock.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from libipld import encode_cid
from trio.testing import wait_all_tasks_blocked

from proxy.cache.disk import DiskCache
from proxy.cache.files import TOUCH_AFTER, CacheFolder
from proxy.cache.index import File, Index, IndexEntry, Rows, Totals
from proxy.cache.interface import Cache, Entry
from proxy.cache.layout import FORMATS_OF_AUTO, entry_folder, entry_name
from proxy.coordination.liveness import Liveness
from proxy.errors import InvalidCid, InvalidDid, InvalidPreset
from proxy.model.formats import OUTPUTS, Format
from proxy.model.identifiers import Cid, Did, cid_digest, parse_did, spellings
from proxy.model.keys import BlobKey, ImageKey, image_key
from proxy.model.picture_info import info_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from tests.cache import SIGNATURES, blob_cid, entry, key, owner
from tests.cache.test_layout import dids
from tests.examples import examples
from tests.processes import until
from tests.required import skip_unless_required

DAY = 86400.0
GIGABYTE = 1024**3


class Clock:
    """Seconds since the epoch, advanced by hand."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


OWN = {"processes", "index-1.sqlite3", ".index-1.sqlite3.lock"} | {
    f"index-1.sqlite3-{suffix}" for suffix in ("wal", "shm")
}
"""What a cache folder has beside its files."""

IN_THE_WAY = f"{os.strerror(errno.EEXIST)}|{os.strerror(errno.ENOTDIR)}"
MakeCache = Callable[..., DiskCache]


@pytest.fixture
def make(root: Path, clock: Clock) -> Iterator[MakeCache]:
    """Makes a cache over the folder; a second one is what a restart would give.

    They are closed at the end of the test.
    """
    with ExitStack() as closed:

        def make(**arguments: Any) -> DiskCache:
            settings = {"max_bytes": GIGABYTE, "clock": clock, **arguments}
            cache = DiskCache(root.parent, **settings)
            closed.callback(cache._folder.close)
            return cache

        yield make


@pytest.fixture
def cache(make: MakeCache) -> DiskCache:
    return make()


def path_of(root: Path, key: ImageKey, format_: Format = Format.JPEG) -> Path:
    return root / entry_folder(key) / entry_name(key, format_)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def size_below(folder: Path) -> int:
    """Of all files, while others come and go."""
    sizes = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append(Path(parent, name).stat().st_size)
    return sum(sizes)


def read_at(path: Path, time: float) -> None:
    """Have a file be read by somebody else."""
    os.utime(path, (time, path.stat().st_mtime))


async def verified(cache: DiskCache, *, repair: bool = False) -> list[tuple[str, Path]]:
    async with aclosing(cache.verify(repair=repair)) as parts:
        return [each async for _, found in parts for each in found]


async def indexed(cache: DiskCache, entries: int) -> None:
    """Have the index be made anew, until it knows so many."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.keep_indexed)
        await until(lambda: cache.statistics().entries == entries)
        nursery.cancel_scope.cancel()


def content(path: Path) -> bytes:
    return path.read_bytes()


def exists(path: Path) -> bool:
    return path.exists()


def plant(path: Path, data: bytes, *, at: float) -> None:
    """A file that somebody else wrote at ``at``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (at, at))


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """No file of this process grows beyond ``after`` bytes: writes stop in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def end(cache: DiskCache) -> None:
    """Have its process be gone, as the kernel does with whatever it had locked."""
    liveness = cache._folder._liveness
    assert liveness._descriptor is not None
    os.close(liveness._descriptor)
    liveness._descriptor = None


def failing(code: int) -> Callable[..., Any]:
    def fail(*_arguments: object, **_options: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


# What is kept, and under which key.


@pytest.mark.parametrize("format_", list(SIGNATURES))
async def test_what_was_put_is_got(cache: DiskCache, format_: Format) -> None:
    """Catches bytes or a format that change on the way through the disk."""
    asked = None if format_ in (Format.JPEG, Format.GIF) else format_
    wanted = info_key(key().blob) if format_ is Format.JSON else key(format_=asked)
    await cache.put(wanted, entry(5000, format_))
    assert await cache.get(wanted) == entry(5000, format_)


@pytest.mark.parametrize("format_", FORMATS_OF_AUTO)
async def test_a_result_without_an_asked_format_is_found_in_the_format_it_has(
    cache: DiskCache, format_: Format
) -> None:
    """Catches a look-up that takes "no format" for JPEG."""
    await cache.put(key(), entry(100, format_))
    assert await cache.get(key()) == entry(100, format_)


async def test_a_key_that_was_never_put_is_a_miss(cache: DiskCache, root: Path) -> None:
    """Catches an exception, and folders made by looking."""
    assert await cache.get(key()) is None
    assert not exists(root)


async def test_a_later_put_replaces_the_earlier_one(cache: DiskCache) -> None:
    """Catches two files for one key, of which the older one is found."""
    await cache.put(key(), entry(100))
    await cache.put(key(), entry(300, fill=b"\x01"))
    assert await cache.get(key()) == entry(300, fill=b"\x01")
    assert cache.statistics() == Totals(1, 300)


async def test_what_was_put_outlives_the_process(make: MakeCache) -> None:
    """Catches an index in memory that a restart forgets."""
    await make().put(key(), entry())
    assert await make().get(key()) == entry()


async def test_presets_formats_blobs_and_owners_are_kept_apart(cache: DiskCache) -> None:
    """Catches a key without one of its parts: one picture served as another."""
    keys = [
        key(preset=preset, did=owner(who), cid=blob_cid(what), format_=format_)
        for preset in ("avatar", "avatar_small")
        for who in (1, 2)
        for what in (1, 2)
        for format_ in (None, *OUTPUTS)
    ]
    for number, each in enumerate(keys):
        await cache.put(each, entry(100 + number, each.format or Format.JPEG))
    for number, each in enumerate(keys):
        assert await cache.get(each) == entry(100 + number, each.format or Format.JPEG)


async def test_a_changed_preset_does_not_find_what_the_old_one_made(cache: DiskCache) -> None:
    """Catches yesterday's pixels behind today's preset."""
    await cache.put(key(), entry())
    changed = DEFAULT_PRESETS["avatar"].model_copy(update={"quality": 1})
    other = image_key({"avatar": changed}, "avatar", owner(), blob_cid())
    assert await cache.get(other) is None


async def test_a_file_lies_where_the_layout_says(cache: DiskCache, root: Path) -> None:
    """Catches an entry that nginx does not find."""
    await cache.put(key(), entry())
    assert files_below(root) == [path_of(root, key())]


@pytest.mark.parametrize(
    "did",
    [
        "did:plc:z72i7hdynmk6r22z27h6tvur",
        "did:web:example.com",
        "did:web:a.b.c.d.example.com",
        "did:web:localhost%3A2583",
        "did:web:" + ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 57, "com"]),
    ],
)
async def test_special_characters_and_length_of_a_did_make_no_difference(
    cache: DiskCache, did: str
) -> None:
    """Catches an owner that cannot be kept, or is kept where a purge does not look."""
    wanted = key(did=parse_did(did))
    await cache.put(wanted, entry())
    assert await cache.get(wanted) == entry()
    assert await cache.purge(Selection(did=parse_did(did))) == 1


@given(did=dids)
@examples(30)
def test_nothing_is_ever_outside_the_folder(did: Did) -> None:
    """Catches an owner whose name leads elsewhere, when it is kept and when it goes."""

    async def work(outside: Path) -> None:
        cache = DiskCache(outside, max_bytes=GIGABYTE)
        await cache.put(key(did=did), entry())
        parts = {path.parts[len(outside.parts)] for path in files_below(outside)}
        assert parts - OWN == {"images"}
        assert await cache.purge(Selection(did=did)) == 1
        assert {path.parts[len(outside.parts)] for path in files_below(outside)} <= OWN
        await cache.aclose()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(work, Path(folder))


def test_no_part_of_a_key_or_selection_can_be_empty() -> None:
    """Catches an empty part that stands for all: a purge of everything."""
    with pytest.raises(InvalidPreset):
        image_key(DEFAULT_PRESETS, "", owner(), blob_cid())
    with pytest.raises(InvalidDid):
        image_key(DEFAULT_PRESETS, "avatar", "", blob_cid())
    with pytest.raises(InvalidCid):
        image_key(DEFAULT_PRESETS, "avatar", owner(), "")
    with pytest.raises(ValueError, match="needs a DID, a CID, or both"):
        Selection()


def test_a_disk_cache_is_a_cache_and_touches_nothing_when_made(root: Path) -> None:
    """Catches a constructor that fails, or writes, before anything is asked of it."""
    cache: Cache = DiskCache(root.parent, max_bytes=1, ttl_seconds=1)
    assert isinstance(cache, DiskCache)
    assert cache.images == root
    assert cache.statistics() == Totals(0, 0)
    assert files_below(root.parent) == []


def test_a_relative_folder_is_held_on_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cache that moves with the working directory."""
    monkeypatch.chdir(tmp_path)
    cache = DiskCache(Path("cache"), max_bytes=1)
    monkeypatch.chdir("/")
    assert cache.images == tmp_path / "cache" / "images"


# Size and counting.


async def test_statistics_follow_every_put_replacement_and_purge(cache: DiskCache) -> None:
    """Catches a gauge that drifts from the folder."""
    assert cache.statistics() == Totals(0, 0)
    await cache.put(key(1), entry(1000))
    await cache.put(key(2), entry(1000))
    assert cache.statistics() == Totals(2, 2000)
    await cache.put(key(2), entry(400))
    assert cache.statistics() == Totals(2, 1400)
    await cache.purge(Selection(did=owner(1)))
    assert cache.statistics() == Totals(1, 400)
    await cache.purge(Selection(did=owner(1)))
    assert cache.statistics() == Totals(1, 400)


async def test_the_limit_holds_for_what_was_there_before_without_a_cleanup(
    make: MakeCache,
) -> None:
    """Catches a process without a cleanup job that counts its own writes alone."""
    await make().put(key(1), entry(1000))
    cache = make()
    await cache.put(key(2), entry(400))
    assert cache.statistics() == Totals(2, 1400)


async def test_a_cleanup_counts_what_another_process_left(make: MakeCache) -> None:
    """Catches a restart after which the cache may grow to twice its limit."""
    await make().put(key(1), entry(1000))
    after_restart = make()
    assert await after_restart.cleanup() == 0
    assert after_restart.statistics() == Totals(1, 1000)


async def test_by_preset_counts_each_preset_alone(make: MakeCache) -> None:
    """Catches a preset that hides in another one's row."""
    cache = make()
    assert await cache.by_preset() == {}
    await cache.put(key(1), entry(100))
    await cache.put(key(2), entry(200))
    await cache.put(key(1, preset="banner"), entry(400))
    avatar, banner = key(1), key(1, preset="banner")
    assert await make().by_preset() == {
        f"avatar-{avatar.fingerprint}": Totals(2, 300),
        f"banner-{banner.fingerprint}": Totals(1, 400),
    }


# Eviction by size.


async def test_nothing_is_evicted_below_the_limit(make: MakeCache, clock: Clock) -> None:
    """Catches eviction by age alone."""
    evicted: list[tuple[str, int]] = []
    cache = make(max_bytes=200, on_evicted=lambda *what: evicted.append(what))
    await cache.put(key(1), entry(100))
    clock.advance(DAY)
    await cache.put(key(2), entry(100))
    assert await cache.cleanup() == 0
    assert await cache.get(key(1)) == entry(100)
    assert await cache.get(key(2)) == entry(100)
    assert evicted == []


async def test_the_least_recently_used_goes_first(make: MakeCache, clock: Clock) -> None:
    """Catches first in, first out: the oldest picture may be everybody's avatar."""
    cache = make(max_bytes=1000)
    for number in range(10):
        await cache.put(key(number), entry(100))
        clock.advance(1)
    clock.advance(2 * TOUCH_AFTER)
    for used in (0, 4):
        assert await cache.get(key(used)) is not None
    await cache.put(key(10), entry(100))
    kept = [number for number in range(11) if await cache.get(key(number)) is not None]
    assert kept == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]


async def test_the_limit_holds_after_every_single_write(make: MakeCache, clock: Clock) -> None:
    """Catches a limit that holds once an hour, and eviction of more than has to go."""
    evicted: list[tuple[str, int]] = []
    cache = make(max_bytes=10_000, on_evicted=lambda *what: evicted.append(what))
    for number in range(30):
        await cache.put(key(number), entry(1000))
        clock.advance(1)
        assert cache.statistics().bytes == min(number + 1, 10) * 1000
        assert sum(path.stat().st_size for path in files_below(cache.images)) <= 10_000
    assert evicted == [("size", 1)] * 20


async def test_the_limit_holds_while_several_processes_write_at_once(make: MakeCache) -> None:
    """Catches each one counting its own writes alone."""
    caches = [make(max_bytes=20_000) for _ in range(4)]
    highest = 0

    async def put(cache: DiskCache, numbers: range) -> None:
        nonlocal highest
        for number in numbers:
            await cache.put(key(number), entry(1000))
            highest = max(highest, size_below(cache.images))

    async with trio.open_nursery() as nursery:
        for number, cache in enumerate(caches):
            nursery.start_soon(put, cache, range(number * 100, number * 100 + 25))
    assert highest <= 20_000
    assert sum(row.bytes for row in (await caches[0].by_preset()).values()) == 20_000


async def test_what_nginx_read_is_passed_over_and_asked_for_again_later(
    make: MakeCache, root: Path, clock: Clock
) -> None:
    """Catches recency by the service's own reads alone: nginx serves most hits without it."""
    cache = make(max_bytes=3000)
    for number in range(3):
        await cache.put(key(number), entry(1000))
        clock.advance(10)
    read_at(path_of(root, key(0)), clock.now)
    clock.advance(10)
    await cache.put(key(3), entry(1000))
    assert [exists(path_of(root, key(n))) for n in range(4)] == [True, False, True, True]
    await cache.put(key(4), entry(1000))
    await cache.put(key(5), entry(1000))
    assert [exists(path_of(root, key(n))) for n in range(6)] == [
        *(False, False, False),
        *(True, True, True),
    ], "read once is not read for ever"


async def test_room_is_made_although_everything_was_just_read(
    make: MakeCache, root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a search for something unread that goes through the whole cache for one write."""
    monkeypatch.setattr("proxy.cache.files.MOST_PASSED_OVER", 3)
    cache = make(max_bytes=10_000)
    for number in range(10):
        await cache.put(key(number), entry(1000))
        clock.advance(10)
    for number in range(10):
        read_at(path_of(root, key(number)), clock.now + number)
    clock.advance(100)
    await cache.put(key(10), entry(1000))
    gone = [number for number in range(11) if not exists(path_of(root, key(number)))]
    assert gone == [3], "three were passed over, and the next one went"


async def test_the_limit_holds_for_what_was_there_before(make: MakeCache, clock: Clock) -> None:
    """Catches a lowered limit that is only kept for new entries."""
    for number in range(10):
        await make().put(key(number), entry(1000))
        clock.advance(1)
    assert await make(max_bytes=5000).cleanup() == 5
    assert len([n for n in range(10) if await make().get(key(n)) is not None]) == 5


async def test_an_entry_beyond_the_whole_limit_does_not_stay(make: MakeCache) -> None:
    """Catches a limit that one large result breaks for good."""
    cache = make(max_bytes=1000)
    await cache.put(key(), entry(2000))
    assert cache.statistics() == Totals(0, 0)
    assert await cache.get(key()) is None


async def test_a_use_is_noted_and_leaves_the_time_of_writing_alone(
    cache: DiskCache, root: Path, clock: Clock
) -> None:
    """Catches the seed's single time: with it, whatever is used never expires."""
    written = clock.now
    await cache.put(key(), entry())
    clock.advance(2 * TOUCH_AFTER)
    await cache.get(key())
    status = path_of(root, key()).stat()
    assert status.st_atime == clock.now
    assert status.st_mtime == written


async def test_a_use_is_not_noted_with_every_hit(
    cache: DiskCache, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a write to the disk per request."""
    await cache.put(key(), entry())
    notes: list[object] = []
    monkeypatch.setattr(os, "utime", lambda *arguments, **_options: notes.append(arguments))
    clock.advance(TOUCH_AFTER - 1)
    for _ in range(10):
        assert await cache.get(key()) is not None
    assert notes == []


async def test_a_use_that_cannot_be_noted_is_still_a_hit(
    cache: DiskCache, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a cache on a read-only file system that serves nothing of what it has."""
    await cache.put(key(), entry())
    clock.advance(DAY)
    monkeypatch.setattr(os, "utime", failing(errno.EROFS))
    assert await cache.get(key()) == entry()


# Expiry.


async def test_an_entry_expires_by_the_time_of_writing_not_of_use(
    make: MakeCache, root: Path, clock: Clock
) -> None:
    """Catches a TTL that every use puts off, and one that is a second off."""
    cache = make(ttl_seconds=DAY)
    await cache.put(key(), entry())
    for _ in range(23):
        clock.advance(3600)
        assert await cache.get(key()) == entry()
    clock.advance(3599)
    assert await cache.get(key()) == entry()
    clock.advance(1)
    assert await cache.get(key()) is None


async def test_an_entry_expires_by_its_file_when_the_index_was_lost(
    make: MakeCache, root: Path, clock: Clock
) -> None:
    """Catches one that is served once more, and from memory for an hour, because it is unknown."""
    plant(path_of(root, key()), entry().data, at=clock.now - 2 * DAY)
    assert await make(ttl_seconds=DAY).get(key()) is None


async def test_what_a_read_found_expired_is_counted_when_it_goes(
    make: MakeCache, root: Path, clock: Clock
) -> None:
    """Catches entries that go without a metric telling of it."""
    evicted: list[tuple[str, int]] = []
    cache = make(ttl_seconds=DAY, on_evicted=lambda *what: evicted.append(what))
    await cache.put(key(), entry())
    clock.advance(DAY)
    assert await cache.get(key()) is None
    await cache.cleanup()
    assert evicted == [("ttl", 1)]
    assert files_below(root) == []
    assert cache.statistics() == Totals(0, 0)


async def test_an_expired_entry_can_be_put_again(make: MakeCache, clock: Clock) -> None:
    """Catches an entry that is replaced with its old age."""
    cache = make(ttl_seconds=DAY)
    await cache.put(key(), entry())
    clock.advance(2 * DAY)
    await cache.put(key(), entry(200))
    assert await cache.get(key()) == entry(200)


async def test_a_cleanup_removes_what_expired_and_nothing_else(
    make: MakeCache, clock: Clock
) -> None:
    """Catches a cleanup that is off by one entry, or tells a wrong number."""
    evicted: list[tuple[str, int]] = []
    cache = make(ttl_seconds=DAY, on_evicted=lambda *what: evicted.append(what))
    await cache.put(key(1), entry())
    clock.advance(2 * DAY)
    await cache.put(key(2), entry())
    assert await cache.cleanup() == 1
    assert await cache.get(key(1)) is None
    assert await cache.get(key(2)) == entry()
    assert evicted == [("ttl", 1)]


async def test_without_a_ttl_nothing_expires(make: MakeCache, clock: Clock) -> None:
    """Catches a TTL of 0 taken for "at once"."""
    cache = make(ttl_seconds=0)
    await cache.put(key(), entry())
    clock.advance(365 * DAY)
    assert await cache.cleanup() == 0
    assert await cache.get(key()) == entry()


async def test_a_cleanup_judges_by_age_first_and_by_size_then(
    make: MakeCache, clock: Clock
) -> None:
    """Catches a fresh entry evicted for the room that an expired one takes."""
    evicted: list[tuple[str, int]] = []
    for number in range(3):
        await make().put(key(number), entry(400))
        clock.advance(1)
    clock.advance(DAY)
    for number in range(3, 6):
        await make().put(key(number), entry(400))
        clock.advance(1)
    cache = make(max_bytes=1000, ttl_seconds=DAY, on_evicted=lambda *what: evicted.append(what))
    assert await cache.cleanup() == 4
    assert evicted == [("ttl", 3), ("size", 1)]
    assert cache.statistics() == Totals(2, 800)


# Files that are not what they should be.


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty, as a power cut leaves it"),
        pytest.param(b"\x00" * 5000, id="zeros, as a power cut leaves it"),
        pytest.param(b"\xff\xd8", id="truncated"),
        pytest.param(SIGNATURES[Format.PNG], id="another format"),
        pytest.param(b"<!DOCTYPE html><script>", id="foreign"),
    ],
)
async def test_a_damaged_file_is_a_miss_and_goes(
    cache: DiskCache, root: Path, clock: Clock, data: bytes
) -> None:
    """Catches a broken picture that is served until somebody purges it."""
    path = path_of(root, key())
    plant(path, data, at=clock.now)
    assert await cache.get(key()) is None
    assert not path.exists()
    await cache.put(key(), entry())
    assert await cache.get(key()) == entry()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="truncated"),
        pytest.param(lambda data: data[:40] + b"\x01" + data[41:], id="one byte altered"),
        pytest.param(lambda data: data + b"\x00", id="longer"),
    ],
)
async def test_a_file_that_was_changed_on_disk_is_a_miss_and_goes(
    cache: DiskCache, root: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Catches trust in a good beginning: half a picture is served for a year."""
    await cache.put(key(), entry())
    path = path_of(root, key())
    path.write_bytes(damage(path.read_bytes()))
    assert await cache.get(key()) is None
    assert not exists(path)
    assert cache.statistics() == Totals(0, 0)
    await cache.put(key(), entry())
    assert await cache.get(key()) == entry()


async def test_a_file_that_is_replaced_while_it_is_read_is_not_taken_for_damaged(
    cache: DiskCache, make: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a good file removed because it was held against the record before it."""
    await cache.put(key(), entry(100))
    other = make()
    find = Rows.find
    replaced = False

    def find_after_the_other(rows: Rows, file: File) -> IndexEntry | None:
        nonlocal replaced
        found = find(rows, file)
        if not replaced:
            replaced = True
            other._folder.put(key(), entry(300))
            return found
        return find(rows, file)

    monkeypatch.setattr(Rows, "find", find_after_the_other)
    assert await cache.get(key()) in (entry(100), entry(300))
    assert replaced
    assert await cache.get(key()) == entry(300)


async def test_verify_tells_what_is_wrong_both_ways_and_repair_mends_just_that(
    cache: DiskCache, root: Path, clock: Clock
) -> None:
    """Catches a repair that removes good entries, and a verify that changes anything."""
    for number in range(5):
        await cache.put(key(number), entry())
    paths = [path_of(root, key(number)) for number in range(7)]
    paths[1].write_bytes(entry(99).data)
    paths[2].unlink()
    paths[3].write_bytes(b"")
    plant(paths[5], entry().data, at=clock.now)
    plant(paths[6], b"no picture", at=clock.now)
    stray = paths[0].parent / "stray.txt"
    plant(stray, b"hello", at=clock.now)
    wrong = sorted(
        [
            ("damaged", paths[1]),
            ("missing", paths[2]),
            ("damaged", paths[3]),
            ("unknown", paths[5]),
            ("damaged", paths[6]),
            ("foreign", stray),
        ]
    )
    before = files_below(root)
    assert sorted(await verified(cache)) == wrong
    assert files_below(root) == before
    assert sorted(await verified(cache, repair=True)) == wrong
    assert files_below(root) == sorted([paths[0], paths[4], paths[5]])
    assert await verified(cache) == []
    assert [row.entries for row in (await cache.by_preset()).values()] == [3]


async def stock_and_empty(cache: DiskCache, root: Path, *parts: str) -> None:
    """Have three entries indexed, and the folder of all files, or parts of it, removed."""
    for number in range(3):
        await cache.put(key(number), entry())
    await cache.make_indexed()
    for folder in [root / part for part in parts] or [root]:
        await trio.to_thread.run_sync(shutil.rmtree, folder)


@pytest.mark.parametrize("parts", [(), ("plc",), ("plc/aa",)], ids=["all", "method", "shard"])
async def test_verify_finds_what_was_removed_with_its_folder(
    cache: DiskCache, root: Path, parts: tuple[str, ...]
) -> None:
    """Catches a verification that looks only where there are files."""
    await stock_and_empty(cache, root, *parts)
    missing = [("missing", path_of(root, key(number))) for number in range(3)]
    assert await verified(cache) == sorted(missing)
    assert await verified(cache, repair=True) == sorted(missing)
    assert await verified(cache) == []
    assert cache.statistics() == Totals(0, 0)


async def test_a_cleanup_counts_nothing_of_a_folder_that_was_removed(
    cache: DiskCache, root: Path
) -> None:
    """Catches figures of a cache that somebody emptied as the manual says, for good."""
    await stock_and_empty(cache, root)
    assert await cache.cleanup() == 0
    assert cache.statistics() == Totals(0, 0)


async def test_a_start_or_a_write_after_the_folder_was_removed_has_the_index_made_anew(
    cache: DiskCache, make: MakeCache, root: Path
) -> None:
    """Catches a folder that is made again before anybody saw that it was gone."""
    await stock_and_empty(cache, root)
    restarted = make()
    await restarted.check()
    await restarted.make_indexed()
    assert restarted.statistics() == Totals(0, 0)
    await stock_and_empty(cache, root)
    await cache.put(key(9), entry(100))
    await cache.make_indexed()
    assert cache.statistics() == Totals(1, 100)
    assert await cache.get(key(9)) == entry(100)


async def test_verify_passes_over_what_goes_meanwhile(
    cache: DiskCache, make: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a verify that fails beside a server which evicts."""
    await cache.put(key(1), entry())
    await cache.put(key(2), entry())
    other = make()
    below = Rows.below

    def evicted_just_now(rows: Rows, folder: str) -> list[IndexEntry]:
        found = below(rows, folder)
        other._folder.purge([Selection(cid=blob_cid(1))])
        return found

    monkeypatch.setattr(Rows, "below", evicted_just_now)
    assert await verified(cache) == []


# The index, lost and found.


async def test_a_file_that_the_index_does_not_know_is_served_and_known_from_then_on(
    cache: DiskCache, root: Path, clock: Clock
) -> None:
    """Catches an index that is believed where it is not complete."""
    plant(path_of(root, key()), entry().data, at=clock.now)
    assert await cache.get(key()) == entry()
    assert [row.entries for row in (await cache.by_preset()).values()] == [1]
    path_of(root, key()).write_bytes(entry(99).data)
    assert await cache.get(key()) is None, "from then on it is held to what it was"


async def test_an_index_that_is_lost_is_made_anew_from_the_files(
    make: MakeCache, root: Path, clock: Clock
) -> None:
    """Catches a cache that is empty, or grows without a limit, once its index is gone."""
    before = make()
    for number in range(10):
        await before.put(key(number), entry(1000))
        read_at(path_of(root, key(number)), clock.now + number)
        clock.advance(100)
    await before.aclose()
    for file in root.parent.glob("*index*"):
        file.unlink()
    plant(path_of(root, key(3)).parent / ".0123456789abcdef-0.tmp", b"half", at=clock.now)
    after = make(max_bytes=5000)
    await indexed(after, 10)
    assert after.statistics() == Totals(10, 10_000)
    assert len(files_below(root)) == 10, "what an older release left half written goes"
    await after.cleanup()
    kept = [number for number in range(10) if exists(path_of(root, key(number)))]
    assert kept == [5, 6, 7, 8, 9]


async def test_an_index_that_is_damaged_while_it_is_used_costs_one_failure(
    make: MakeCache, root: Path
) -> None:
    """Catches a cache that stays unusable until an operator removes a file by hand."""
    cache = make()
    await cache.put(key(1), entry())
    await cache.aclose()
    (root.parent / "index-1.sqlite3").write_bytes(b"damage" * 5000)
    with pytest.raises(OSError, match="index: "):
        await cache.get(key(1))
    assert await cache.get(key(1)) == entry()
    await indexed(cache, 1)
    assert cache.statistics() == Totals(1, 100)


async def test_a_purge_finds_what_the_index_does_not_know_yet(
    cache: DiskCache, root: Path, clock: Clock
) -> None:
    """Catches a blocked picture that nginx serves while the index is made anew."""
    by_owner, by_cid = path_of(root, key(1)), path_of(root, key(2))
    for path in (by_owner, by_cid):
        plant(path, entry().data, at=clock.now)
    assert await cache.purge(Selection(did=owner(1))) == 1
    assert not exists(by_owner)
    assert await cache.purge(Selection(cid=blob_cid(2))) == 1
    assert not exists(by_cid)


async def test_a_purge_takes_what_the_index_comes_to_know_meanwhile(
    cache: DiskCache, make: MakeCache, root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a purge that reads an index which is being made anew, and then believes that it had
    every file: a blocked picture that nginx serves for good.
    """
    plant(path_of(root, key()), entry().data, at=clock.now)
    other = make()._folder
    read_index = CacheFolder._purge_known

    def completed_just_after(folder: CacheFolder, selections: list[Selection]) -> int:
        removed = read_index(folder, selections)
        doubt = other.begin_indexing()
        for shard in other.shards():
            other.index_shard(shard)
        other.set_indexed(doubt)
        return removed

    monkeypatch.setattr(CacheFolder, "_purge_known", completed_just_after)
    assert await cache.purge(Selection(cid=blob_cid())) == 1
    assert not exists(path_of(root, key()))


async def test_an_index_that_is_lost_while_it_is_made_is_made_from_the_beginning(
    make: MakeCache, root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches one that counts as complete and has the second half of the files: nothing of the
    first is evicted, asked for at its PDS again, or found by a block of its CID.
    """
    for number in range(3):
        plant(path_of(root, key(number)), entry().data, at=clock.now)
    cache = make()
    index_shard = CacheFolder.index_shard
    lost: list[Path] = []

    def lose_it_once(folder: CacheFolder, shard: Path) -> int:
        added = index_shard(folder, shard)
        if not lost:
            lost.extend(root.parent.glob("index-1.sqlite3*"))
            for file in lost:
                file.unlink()
        return added

    monkeypatch.setattr(CacheFolder, "index_shard", lose_it_once)
    await cache.make_indexed()
    await cache.make_indexed()
    assert cache.statistics() == Totals(3, 300)
    assert cache._folder.is_indexed()


@pytest.mark.parametrize(
    ("boot", "removed"),
    [
        pytest.param("after a loss of power", 1, id="machine"),
        pytest.param("", 0, id="process"),
    ],
)
async def test_what_outlived_a_loss_of_power_without_its_row_is_purged(
    make: MakeCache, root: Path, monkeypatch: pytest.MonkeyPatch, boot: str, removed: int
) -> None:
    """Catches an index that is believed after its last commits were lost with the machine: nginx
    serves the file, and a block by CID, an eviction or a revalidation never finds it. And one that
    is doubted, and made anew for minutes, when only the process was killed.
    """
    monkeypatch.setattr("proxy.cache.files.boot_of_machine", lambda: boot or "first")
    before = make()
    await before.check()
    await before.make_indexed()
    await before.put(key(), entry())
    with before._folder._index.writing() as rows:  # as if its commit had been lost
        rows.remove(File(entry_folder(key()), path_of(root, key()).name))
        rows.set_boot("first")
    end(before)
    after = make()
    assert await after.purge(Selection(cid=blob_cid())) == removed
    assert exists(path_of(root, key())) == (not removed)


async def test_a_machine_that_was_shut_down_does_not_have_its_index_made_anew(
    make: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches minutes of reading a large cache at every start of the machine."""
    before = make()
    await before.check()
    await before.make_indexed()
    await before.aclose()
    monkeypatch.setattr("proxy.cache.files.boot_of_machine", lambda: "another")
    after = make()
    await after.check()
    assert after._folder.is_indexed()


# Processes that end in the middle, and others beside them.


@pytest.mark.parametrize("place", ["before the file", "after the file"])
async def test_a_write_that_was_killed_is_finished_or_forgotten_by_the_next(
    make: MakeCache, root: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Catches files that no limit counts, entries without a file, and half files that stay."""
    killed = make()
    await killed.put(key(1), entry())
    place_it = CacheFolder._place

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    def die_there(folder: CacheFolder, temporary: Path, file: File) -> None:
        if place == "after the file":
            place_it(folder, temporary, file)
        die()

    with monkeypatch.context() as dying:
        dying.setattr(CacheFolder, "_place", die_there)
        dying.setattr(CacheFolder, "_settle_arrival", die)
        dying.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        with pytest.raises(KeyboardInterrupt):
            killed._folder.put(key(2), entry(200))
    assert files_below(root.parent / "writing") != [] or place == "after the file"
    end(killed)
    after = make()
    await after.check()
    assert files_below(root.parent / "writing") == []
    known = (await after.by_preset()).values()
    if place == "after the file":
        assert await after.get(key(2)) == entry(200)
        assert [row.bytes for row in known] == [300]
    else:
        assert await after.get(key(2)) is None
        assert [row.bytes for row in known] == [100]
    assert await verified(after) == []


@pytest.mark.parametrize("is_verified_first", [False, True])
async def test_a_removal_that_was_killed_is_finished_by_the_next(
    make: MakeCache, root: Path, monkeypatch: pytest.MonkeyPatch, is_verified_first: bool
) -> None:
    """Catches a purged picture that stays because its process ended between index and file.

    And a verification that tells it as a fault.
    """
    killed = make()
    await killed.put(key(1), entry())

    def die(folder: CacheFolder, file: File) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(CacheFolder, "_unlink", die)
        with pytest.raises(KeyboardInterrupt):
            killed._folder.purge([Selection(did=owner(1))])
    assert exists(path_of(root, key(1)))
    end(killed)
    after = make()
    if is_verified_first:
        assert await verified(after) == []
    else:
        await after.check()
    assert files_below(root) == []
    assert await verified(after) == []


async def test_what_another_process_is_writing_is_left_to_it(
    make: MakeCache, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a start that takes a neighbour's half file for something left behind."""
    writing, starting = make(), make()
    await starting.check()
    checked = False
    write = CacheFolder._write

    def check_meanwhile(folder: CacheFolder, data: bytes, now: float) -> Path:
        nonlocal checked
        temporary = write(folder, data, now)
        if folder is writing._folder:
            starting._folder.check()
            checked = True
        return temporary

    monkeypatch.setattr(CacheFolder, "_write", check_meanwhile)
    await writing.put(key(), entry())
    assert checked
    assert await starting.get(key()) == entry()


async def test_a_process_that_enters_while_another_starts_keeps_what_it_writes(
    make: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a start that asks who lives first, and takes a newcomer's file for left behind."""
    starting, entering = make(), make()
    written: list[Path] = []
    living = Liveness.living

    def enter_then(presence: Liveness) -> frozenset[str]:
        found = living(presence)
        if presence is starting._folder._liveness and not written:
            entering._folder._enter()
            written.append(entering._folder._write(b"half", 0))
        return found

    monkeypatch.setattr(Liveness, "living", enter_then)
    await starting.check()
    assert exists(*written)


async def test_a_process_whose_mark_was_deleted_leaves_a_new_one(
    make: MakeCache, root: Path
) -> None:
    """Catches one that neighbours, and its own cleanup, take for dead from then on."""
    cache, neighbour = make(), make()
    await cache.check()
    shutil.rmtree(root.parent / "processes")
    writing = cache._folder._write(b"half", 0)
    cache._folder.cleanup()
    assert exists(writing)
    await neighbour.check()
    assert exists(writing)


@pytest.mark.parametrize("selection", [Selection(owner()), Selection(cid=blob_cid())])
async def test_a_purge_in_one_process_ends_a_write_under_way_in_another(
    make: MakeCache, root: Path, monkeypatch: pytest.MonkeyPatch, selection: Selection
) -> None:
    """Catches a late write that brings a blocked picture back after the call has answered."""
    writing, purging = make(), make()
    begin = Rows.begin_arrival
    committed = CacheFolder._place
    placed: list[File] = []

    def purge_between(rows: Rows, record: IndexEntry) -> None:
        begin(rows, record)
        # At the end of this transaction: the arrival is committed, the file not there yet.
        after_commit.append(lambda: purging._folder.purge([selection]))

    after_commit: list[Callable[[], object]] = []
    write_it = Index.writing

    @contextmanager
    def writing_then(index: Index) -> Iterator[Rows]:
        with write_it(index) as rows:
            yield rows
        while after_commit:
            after_commit.pop()()

    def place(folder: CacheFolder, temporary: Path, file: File) -> None:
        placed.append(file)
        committed(folder, temporary, file)

    monkeypatch.setattr(Rows, "begin_arrival", purge_between)
    monkeypatch.setattr(Index, "writing", writing_then)
    monkeypatch.setattr(CacheFolder, "_place", place)
    await writing.put(key(), entry())
    assert placed == []
    assert files_below(root) == []
    assert await verified(writing) == []


async def test_what_may_not_be_kept_does_not_appear(make: MakeCache, root: Path) -> None:
    """Catches a block that another process set while this one was writing."""
    cache = make(may_keep=lambda wanted: wanted.blob.did != owner(1))
    await cache.put(key(1), entry())
    await cache.put(key(2), entry())
    assert files_below(root) == [path_of(root, key(2))]
    assert files_below(root.parent / "writing") == []
    assert cache.statistics() == Totals(1, 100)


# Writing.


async def test_entries_written_together_are_each_refused_by_themselves(
    make: MakeCache, root: Path
) -> None:
    """Catches one blocked or oversized picture that takes the others with it."""
    cache = make(max_bytes=1000, may_keep=lambda wanted: wanted.blob.did != owner(1))
    await cache.put_all({key(1): entry(), key(2): entry(), key(3): entry(1001), key(4): entry()})
    assert set(files_below(root)) == {path_of(root, key(2)), path_of(root, key(4))}
    assert files_below(root.parent / "writing") == []
    assert cache.statistics() == Totals(2, 200)
    assert await verified(cache) == []


async def test_the_limit_holds_for_entries_written_together(make: MakeCache, root: Path) -> None:
    """Catches a group that together has more than the cache may hold."""
    cache = make(max_bytes=250)
    await cache.put_all({key(number): entry(100) for number in range(5)})
    assert cache.statistics() == Totals(2, 200)
    assert len(files_below(root)) == 2
    assert await cache.get(key(4)) is not None


async def test_entries_written_together_take_two_transactions(
    make: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a commit for each result of a burst."""
    cache = make()
    await cache.check()
    transactions = 0
    write_it = Index.writing

    @contextmanager
    def counted(index: Index) -> Iterator[Rows]:
        nonlocal transactions
        transactions += 1
        with write_it(index) as rows:
            yield rows

    monkeypatch.setattr(Index, "writing", counted)
    await cache.put_all({key(number): entry() for number in range(8)})
    assert transactions == 2
    assert cache.statistics() == Totals(8, 800)


@pytest.mark.parametrize("fsync", [True, False])
async def test_files_are_synced_before_they_appear_unless_that_is_turned_off(
    root: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    """Catches a file in its place that a loss of power leaves cut off."""
    synced: list[int] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        assert files_below(root) == []
        synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    cache = DiskCache(root.parent, max_bytes=1000, fsync=fsync)
    await cache.put_all({key(1): entry(100), key(2): entry(200)})
    assert synced == ([100, 200] if fsync else [])
    assert len(files_below(root)) == 2
    await cache.aclose()


async def test_a_write_that_fails_in_the_middle_leaves_what_was_there(
    cache: DiskCache, root: Path
) -> None:
    """Catches half a picture under the name of a whole one, and rubbish on a full disk."""
    await cache.put(key(1), entry(100))
    with full_disk(after=4096), pytest.raises(OSError, match="too large"):
        await cache.put(key(1), entry(100_000))
    with full_disk(after=4096), pytest.raises(OSError, match="too large"):
        await cache.put(key(2), entry(100_000))
    assert files_below(root) == [path_of(root, key(1))]
    assert await cache.get(key(1)) == entry(100)
    assert await cache.get(key(2)) is None
    assert cache.statistics() == Totals(1, 100)
    await cache.put(key(2), entry(100_000))
    assert await cache.get(key(2)) == entry(100_000)


@pytest.mark.parametrize("call", ["replace", "utime", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES])
async def test_a_disk_that_fails_at_any_step_leaves_what_was_there(
    cache: DiskCache, root: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Catches a temporary file that stays, and an error that is swallowed."""
    await cache.put(key(1), entry(100))
    with monkeypatch.context() as broken:
        broken.setattr(os, call, failing(code))
        with pytest.raises(OSError, match=os.strerror(code)):
            await cache.put(key(2), entry(100))
    assert files_below(root) == [path_of(root, key(1))]
    assert cache.statistics() == Totals(1, 100)
    await cache.put(key(2), entry(100))
    assert await cache.get(key(2)) == entry(100)


async def test_writers_of_one_key_do_not_share_a_temporary_file(
    make: MakeCache, root: Path
) -> None:
    """Catches the seed's fixed temporary name: two writers made one file of two halves."""
    entries = [entry(50_000 + number, fill=bytes([number])) for number in range(20)]
    caches = [make(), make()]
    async with trio.open_nursery() as nursery:
        for number, each in enumerate(entries):
            nursery.start_soon(caches[number % 2].put, key(), each)
    assert await caches[0].get(key()) in entries
    assert files_below(root) == [path_of(root, key())]


async def test_a_put_that_is_cancelled_leaves_all_or_nothing(cache: DiskCache, root: Path) -> None:
    """Catches a thread that is abandoned with the file half written."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await cache.put(key(), entry())
    assert files_below(root) in ([], [path_of(root, key())])
    assert await cache.get(key()) in (None, entry())


# Purging.


@pytest.fixture
async def stocked(cache: DiskCache) -> DiskCache:
    """Two owners, two blobs, two presets, two formats: sixteen entries."""
    for each in stock():
        await cache.put(each, entry(100, each.format or Format.JPEG))
    return cache


def stock() -> list[ImageKey]:
    return [
        key(preset=preset, did=owner(who), cid=blob_cid(what), format_=format_)
        for preset in ("avatar", "banner")
        for who in (1, 2)
        for what in (1, 2)
        for format_ in (None, Format.WEBP)
    ]


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        (Selection(did=owner(1)), 8),
        (Selection(cid=blob_cid(1)), 8),
        (Selection(did=owner(1), cid=blob_cid(1)), 4),
        (Selection(did=owner(3)), 0),
        (Selection(cid=blob_cid(3)), 0),
        (Selection(did=owner(1), cid=blob_cid(3)), 0),
    ],
)
async def test_a_purge_takes_every_preset_and_format_of_what_is_selected(
    stocked: DiskCache, selection: Selection, count: int
) -> None:
    """Catches a format or preset of a blocked blob that is left, and a neighbour that goes."""
    assert await stocked.purge(selection) == count
    for each in stock():
        assert (await stocked.get(each) is None) is selection.covers_blob(each.blob)
    assert stocked.statistics().entries == 16 - count
    assert await stocked.purge(selection) == 0


@pytest.mark.parametrize(
    "selections",
    [
        [Selection(did=owner(1)), Selection(did=owner(2), cid=blob_cid(1))],
        [Selection(cid=blob_cid(1)), Selection(did=owner(1), cid=blob_cid(2))],
        [Selection(did=owner(1)), Selection(did=owner(1), cid=blob_cid(1)), Selection(owner(9))],
        [],
    ],
)
async def test_a_purge_of_several_is_that_of_each(
    stocked: DiskCache, selections: list[Selection]
) -> None:
    """Catches a pair whose owner, or whose blob, goes as a whole; and none that means all."""
    due = [each for each in stock() if any(one.covers_blob(each.blob) for one in selections)]
    assert await stocked.purge(*selections) == len(due)
    for each in stock():
        assert (await stocked.get(each) is None) is (each in due)


async def test_a_purge_leaves_no_empty_folders_behind(cache: DiskCache, root: Path) -> None:
    """Catches inodes that run out over years of owners that come and go."""
    await cache.put(key(), entry())
    await cache.purge(Selection(did=owner()))
    assert not (path_of(root, key()).parent.parent).exists()


async def test_a_purge_that_cannot_remove_a_file_says_so_and_can_be_tried_again(
    stocked: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches "removed" told of a file that nginx still serves."""
    unlink = CacheFolder._unlink

    def broken_at_one(folder: CacheFolder, file: File) -> None:
        if owner(1).removeprefix("did:plc:") in file.folder:
            raise OSError(errno.EIO, "Input/output error")
        unlink(folder, file)

    with monkeypatch.context() as broken:
        broken.setattr(CacheFolder, "_unlink", broken_at_one)
        with pytest.raises(OSError, match="Input/output error"):
            await stocked.purge(Selection(cid=blob_cid(1)))
    left = [path for path in files_below(stocked.images) if blob_cid(1) in path.name]
    assert len(left) == 4
    await stocked.purge(Selection(cid=blob_cid(1)))
    assert not any(exists(path) for path in left)
    assert await verified(stocked) == []


# A folder that is missing, in the way, or read-only.


async def test_a_missing_folder_is_made_at_start_and_made_again_in_the_middle(
    cache: DiskCache, root: Path
) -> None:
    """Catches a cache that is lost for good when somebody empties /var/cache."""
    assert await cache.cleanup() == 0
    assert await cache.purge(Selection(did=owner())) == 0
    assert await verified(cache, repair=True) == []
    await cache.check()
    assert files_below(root) == []
    assert exists(root)
    await cache.put(key(), entry())
    shutil.rmtree(root)
    assert await cache.get(key()) is None
    await cache.put(key(), entry(200))
    assert await cache.get(key()) == entry(200)


async def test_a_file_in_the_way_fails_the_check_and_each_write_and_is_left_alone(
    cache: DiskCache, root: Path
) -> None:
    """Catches a start that goes well with a cache which keeps nothing, and a file removed."""
    plant(root, b"precious", at=time.time())
    with pytest.raises(OSError, match=IN_THE_WAY):
        await cache.check()
    with pytest.raises(OSError, match=IN_THE_WAY):
        await cache.put(key(), entry())
    assert await cache.get(key()) is None
    assert await cache.purge(Selection(did=owner())) == 0
    assert await cache.cleanup() == 0
    assert content(root) == b"precious"


async def test_a_file_in_the_way_of_one_owner_leaves_the_others(
    cache: DiskCache, root: Path
) -> None:
    """Catches one bad name that makes the whole cache unusable."""
    plant(path_of(root, key(1)).parent.parent, b"x", at=time.time())
    with pytest.raises(OSError, match=IN_THE_WAY):
        await cache.put(key(1), entry())
    assert await cache.get(key(1)) is None
    await cache.put(key(2), entry())
    assert await cache.get(key(2)) == entry()


async def test_the_check_tells_a_full_disk_and_leaves_nothing(cache: DiskCache, root: Path) -> None:
    """Catches a check that only looks whether the folder exists."""
    await cache.check()
    with full_disk(after=0), pytest.raises(OSError, match="too large"):
        await cache.check()
    assert files_below(root) == []
    await cache.check()


async def test_the_check_tells_a_read_only_disk(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a cache that is called usable and keeps nothing."""
    monkeypatch.setattr(os, "mkdir", failing(errno.EROFS))
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        await cache.check()


async def test_on_a_full_disk_the_least_recently_used_is_given_up_and_forgotten(
    cache: DiskCache, root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches room made by what is asked for most, and figures that count what is gone."""
    monkeypatch.setattr("proxy.cache.files.ROOM", 150)
    for number in range(4):
        await cache.put(key(number), entry(100))
        read_at(path_of(root, key(number)), clock() - (number + 1) % 4)
    assert await cache.make_room()
    assert [each for each in range(4) if path_of(root, key(each)).exists()] == [0, 3]
    assert cache.statistics() == Totals(2, 200)
    assert await verified(cache) == []


async def test_what_was_given_up_before_a_file_that_cannot_be_removed_is_forgotten(
    cache: DiskCache, root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches figures that count what is gone, because the next file failed before it was noted."""
    for number in range(3):
        await cache.put(key(number), entry(100))
        read_at(path_of(root, key(number)), clock() + number)
    unlink, removed = CacheFolder._unlink, list[File]()

    def broken_at_the_second(folder: CacheFolder, file: File) -> None:
        removed.append(file)
        if len(removed) == 2:
            raise OSError(errno.EIO, "Input/output error")
        unlink(folder, file)

    with monkeypatch.context() as broken:
        broken.setattr(CacheFolder, "_unlink", broken_at_the_second)
        with pytest.raises(OSError, match="Input/output error"):
            await cache.make_room()
    await cache.cleanup()
    assert cache.statistics() == Totals(2, 200)
    assert await verified(cache) == []


async def test_what_is_given_up_as_the_index_catches_up_is_recorded_by_the_next_chance(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a thread that crosses off what another one has removed since it looked."""
    folder, writing, is_full = cache._folder, Index.writing, False

    @contextmanager
    def full_from_the_first_commit_on(index: Index) -> Iterator[Rows]:
        nonlocal is_full
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        with writing(index) as rows:
            yield rows
        is_full = True
        assert folder.give_up() == 1  # as another thread does

    await cache.put(key(), entry(100))
    folder._unrecorded.add(File(entry_folder(key()), entry_name(key(), Format.JPEG)))
    with monkeypatch.context() as raced:
        raced.setattr(Index, "writing", full_from_the_first_commit_on)
        with pytest.raises(OSError, match="No space left"):
            await trio.to_thread.run_sync(folder.cleanup)
    await cache.cleanup()
    assert cache.statistics() == Totals(0, 0)
    assert await verified(cache) == []


def test_entries_on_another_disk_are_not_given_up(cache: DiskCache, root: Path) -> None:
    """Catches a whole cache that is thrown away, and no room made where it is wanted."""
    folder = cache._folder
    folder.put(key(), entry())
    elsewhere = Path("/dev/shm")  # noqa: S108
    if not elsewhere.exists() or elsewhere.stat().st_dev == root.stat().st_dev:
        skip_unless_required("needs a second file system")
    with tempfile.TemporaryDirectory(dir=elsewhere) as other:
        root.symlink_to(shutil.move(root, other))
        assert folder.give_up() == 0
        found = folder.get(key())
        assert found is not None
        assert found[0] == entry()


async def test_work_that_finds_no_room_fails_once_there_is_nothing_more_to_give_up(
    cache: DiskCache,
) -> None:
    """Catches a loop without an end, and a failure of another kind that costs entries."""
    attempts: list[int] = []

    def work(code: int) -> None:
        attempts.append(code)
        raise OSError(code, os.strerror(code))

    for code, expected in ((errno.EACCES, 1), (errno.ENOSPC, 2)):
        await cache.put(key(1), entry())
        attempts.clear()
        with pytest.raises(OSError, match=os.strerror(code)):
            await cache.with_room(partial(work, code))
        assert len(attempts) == expected
        assert (await cache.get(key(1)) is None) == (code == errno.ENOSPC)


async def test_many_at_once_find_what_they_put(cache: DiskCache) -> None:
    """Catches threads that trip over each other's folders."""

    async def put_and_get(number: int) -> None:
        wanted = key(number % 10, preset=["avatar", "banner"][number % 2])
        await cache.put(wanted, entry(1000))
        assert await cache.get(wanted) == Entry(entry(1000).data, Format.JPEG)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(put_and_get, number)
    assert sum(row.entries for row in (await cache.by_preset()).values()) == 10


CHORES = ("cleanup", "is_indexed", "free", "by_preset", "due_for_check", "known_shards")
CHANGES = ("put", "purge", "blobs", "check")


async def verify_all(cache: DiskCache) -> None:
    async with aclosing(cache.verify(repair=False)) as parts:
        async for _ in parts:
            pass


async def begin_all(cache: DiskCache) -> None:
    """Begin each kind of work on the cache but reading, until cancelled or done; it may fail."""

    async def begin(work: Callable[..., Awaitable[object]], *arguments: object) -> None:
        with suppress(OSError):
            await work(*arguments)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin, verify_all, cache)
        for chore in (cache.cleanup, cache.make_indexed, cache.by_preset):
            nursery.start_soon(begin, chore)
        nursery.start_soon(begin, cache.due_for_check, 0.0, 1)
        nursery.start_soon(begin, cache.put, key(2), entry())
        nursery.start_soon(begin, cache.purge, Selection(did=owner(3)))
        nursery.start_soon(begin, cache.blobs, [Selection(did=owner(3))])
        nursery.start_soon(begin, cache.check)


@pytest.mark.parametrize("hanging", [(*CHORES,), (*CHORES, *CHANGES)], ids=["chores", "everything"])
async def test_a_hit_waits_for_no_thread_of_other_work(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch, hanging: tuple[str, ...]
) -> None:
    """Catches threads shared by all: four slow chores, and every hit waits for the disk."""
    await cache.put(key(1), entry())
    go_on = threading.Event()

    def hang(*_arguments: object, **_keys: object) -> Any:
        go_on.wait(60)
        raise OSError(errno.EIO, "it hung")

    for name in hanging:
        monkeypatch.setattr(CacheFolder, name, hang)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(begin_all, cache)
        await wait_all_tasks_blocked()
        try:
            with trio.fail_after(20):
                assert await cache.get(key(1)) == entry()
                assert await cache.get(key(9)) is None
                if "put" not in hanging:
                    await cache.put(key(4), entry())
                    assert await cache.purge(Selection(did=owner(4))) == 1
        finally:
            go_on.set()


async def test_a_hit_and_a_miss_are_told_while_somebody_writes_the_index(cache: DiskCache) -> None:
    """Catches a hit that takes the write lock, which a chore may hold for 64 files at a time."""
    await cache.put(key(1), entry())
    await cache.get(key(1))  # opens the connection, which looks whether the tables are there
    found: list[Entry | None] = []
    done = trio.Event()

    async def look() -> None:
        found.append(await cache.get(key(1)))
        found.append(await cache.get(key(9)))
        done.set()

    async with trio.open_nursery() as nursery:
        # Released first where the test fails: a thread that waits for it cannot be cancelled.
        with cache._folder._index.writing(), trio.fail_after(30):
            nursery.start_soon(look)
            await done.wait()
    assert found == [entry(), None]


@pytest.mark.parametrize("did", [None, owner(1)], ids=["blob", "pair"])
@pytest.mark.parametrize("selected", spellings(blob_cid(1)))
async def test_a_purge_takes_every_cid_of_the_same_bytes(
    selected: Cid, did: Did | None, cache: DiskCache
) -> None:
    """Catches a purged picture that stays under another CID, for nginx to serve."""
    keys = [key(did=owner(1), cid=cid) for cid in spellings(blob_cid(1))]
    for each in (*keys, key(2)):
        await cache.put(each, entry())
    assert await cache.blobs([Selection(did, selected)]) == {each.blob for each in keys}
    assert await cache.purge(Selection(did, selected)) == len(keys)
    assert [await cache.get(each) for each in keys] == [None] * len(keys)
    assert await cache.get(key(2)) is not None


async def test_a_purge_by_one_cid_ends_a_write_of_another_that_is_under_way(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a picture that appears under another CID after its purge."""
    raw, _, version_0 = spellings(blob_cid(1))
    begin = Rows.begin_arrival

    def begin_and_purge(rows: Rows, record: IndexEntry) -> None:
        begin(rows, record)
        rows.refuse_arrivals(Selection(cid=raw))

    monkeypatch.setattr(Rows, "begin_arrival", begin_and_purge)
    await cache.put(key(did=owner(1), cid=version_0), entry())
    assert await cache.get(key(did=owner(1), cid=version_0)) is None


async def test_what_an_earlier_release_left_under_other_cids_of_blocked_blobs_is_removed(
    make: MakeCache, root: Path
) -> None:
    """Catches a blocked picture that nginx goes on serving under its CIDv0."""
    raw, dag_pb, version_0 = spellings(blob_cid(1))
    record = Cid(encode_cid(b"\x01\x71\x12\x20" + cid_digest(raw)))
    is_blocked = {owner(1)}
    cache = make(may_keep=lambda wanted: wanted.blob.did not in is_blocked)
    is_blocked.clear()
    blobs = [BlobKey(owner(each), cid) for each in (1, 2) for cid in (dag_pb, version_0, record)]
    keys = [key()._replace(blob=blob) for blob in blobs]
    for each in keys:
        await cache.put(each, entry())
    is_blocked.add(owner(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.keep_indexed)
        await until(lambda: cache.statistics().entries <= 2)
        nursery.cancel_scope.cancel()
    left = {path.name.partition("@")[0] for path in files_below(root)}
    assert left == {dag_pb, version_0}
    assert [await cache.get(each) is not None for each in keys[3:5]] == [True, True]

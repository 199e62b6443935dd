"""A clock that was ahead and was set back: what was stored meanwhile counts as due."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.cache.disk import DiskCache
from proxy.cache.files import TOUCH_AFTER
from proxy.model.identifiers import Did
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection
from proxy.moderation.feeds.label_enforcer import LAST_RETRY
from proxy.moderation.feeds.labels import Label, LabelledRecord
from proxy.moderation.revalidate import Availability, Revalidator
from proxy.shared.ages import TOLERANCE, horizon
from tests.cache import entry, key
from tests.cache.test_disk import Clock, path_of
from tests.fakes.parts import FakeResolver
from tests.moderation import feed_store_in
from tests.moderation.fakes import FakeDecisions

DAY = 86400.0
YEAR = 365 * DAY
TTL = 30 * DAY
PDS = "https://pds.example"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(tmp_path: Path, clock: Clock) -> Iterator[DiskCache]:
    cache = DiskCache(tmp_path, max_bytes=10**9, ttl_seconds=TTL, clock=clock)
    yield cache
    cache._folder.close()


def lose_index(folder: Path) -> None:
    for path in folder.glob("index-1.sqlite3*"):
        path.unlink()


async def put_ahead(cache: DiskCache, clock: Clock, number: int) -> ImageKey:
    """An entry that was written while the clock was a year ahead."""
    clock.advance(YEAR)
    await cache.put(key(number), entry())
    clock.advance(-YEAR)
    return key(number)


async def test_an_entry_from_the_future_has_expired(cache: DiskCache, clock: Clock) -> None:
    """Catches a picture that is served for a year more than its time."""
    await cache.put(key(0), entry())
    ahead = await put_ahead(cache, clock, 1)
    assert await cache.get(ahead) is None
    assert await cache.get(key(0)) == entry()
    assert await cache.cleanup() == 1
    assert cache.statistics().entries == 1
    clock.advance(TTL)
    assert await cache.cleanup() == 1


async def test_a_clock_that_is_a_little_ahead_makes_nothing_due(
    cache: DiskCache, clock: Clock
) -> None:
    """Catches a cache that is emptied by each small step of a clock."""
    clock.advance(TOLERANCE)
    await cache.put(key(0), entry())
    clock.advance(-TOLERANCE)
    assert await cache.get(key(0)) == entry()
    assert await cache.cleanup() == 0
    clock.advance(TTL + TOLERANCE)
    assert await cache.get(key(0)) is None


async def test_an_index_that_is_made_anew_knows_it_from_the_files(
    cache: DiskCache, clock: Clock, tmp_path: Path
) -> None:
    """Catches: the time of a file from the future is believed where the index was lost."""
    await cache.put(key(0), entry())
    await put_ahead(cache, clock, 1)
    cache._folder.close()
    lose_index(tmp_path)
    await cache.make_indexed()
    assert await cache.cleanup() == 1
    assert await cache.get(key(0)) == entry()


async def test_what_was_used_in_the_future_is_evicted_in_its_turn(
    tmp_path: Path, clock: Clock
) -> None:
    """Catches an entry that stays for a year because it seems to be the one used last."""
    size = len(entry().data)
    cache = DiskCache(tmp_path, max_bytes=3 * size, clock=clock)
    ahead = await put_ahead(cache, clock, 0)
    for number in range(1, 6):
        clock.advance(10)
        await cache.put(key(number), entry())
        os.utime(path_of(tmp_path / "images", key(number)), (clock.now, clock.now))
    assert await cache.get(ahead) is None
    assert await cache.get(key(5)) == entry()
    await cache.aclose()


async def test_an_access_time_from_the_future_is_no_use_and_is_put_right_by_one(
    tmp_path: Path, clock: Clock
) -> None:
    """Catches an entry that is passed over for ever, and a use that is never noted again."""
    size = len(entry().data)
    cache = DiskCache(tmp_path, max_bytes=2 * size, clock=clock)
    paths = [path_of(tmp_path / "images", key(number)) for number in range(2)]
    for number, path in enumerate(paths):
        await cache.put(key(number), entry())
        os.utime(path, (clock.now + YEAR, clock.now))
        clock.advance(10)
    assert await cache.get(key(1)) == entry()
    assert paths[1].stat().st_atime == clock.now
    clock.advance(2 * TOUCH_AFTER)
    await cache.put(key(2), entry())
    assert [path.exists() for path in paths] == [False, True]
    await cache.aclose()


async def test_a_clock_that_goes_a_year_ahead_and_back_leaves_everything_due(
    cache: DiskCache, clock: Clock
) -> None:
    """Catches: what was cached or confirmed while the clock was ahead is asked for in a year."""
    resolver, decisions = FakeResolver(), FakeDecisions(lambda each: cache.purge(each))
    gone: set[BlobKey] = set()
    asked: list[BlobKey] = []
    findings: list[Availability] = []

    async def exists(pds: str, blob: BlobKey) -> bool:
        asked.append(blob)
        return blob not in gone

    revalidator = Revalidator(
        age=7 * DAY,
        unconfirmed_age=30 * DAY,
        times=cache,
        resolver=resolver,
        exists=exists,
        timeout=30,
        decisions=decisions,
        on_checked=findings.append,
        wall_clock=clock,
    )
    for number in range(3):
        await cache.put(key(number), entry())
        resolver.pds[key(number).blob.did] = PDS
    clock.advance(YEAR)
    await cache.mark_checked(key(0).blob)
    await cache.put(key(1), entry())
    clock.advance(-YEAR)
    gone.add(key(1).blob)

    await revalidator.sweep()
    assert sorted(findings) == [Availability.ABSENT, Availability.PRESENT]
    assert set(asked) == {key(0).blob, key(1).blob}
    assert not await cache.blobs([Selection(key(1).blob.did, key(1).blob.cid)])
    await revalidator.sweep()
    assert len(asked) == 2, "what was confirmed now is due in its time"
    clock.advance(7 * DAY)
    await revalidator.sweep()
    assert set(asked[2:]) == {key(0).blob, key(2).blob}


async def test_an_entry_that_was_confirmed_lately_by_another_preset_is_not_unconfirmed(
    cache: DiskCache, clock: Clock
) -> None:
    """Catches a blob that goes by its oldest entry."""
    blob = key(0).blob
    await cache.put(key(0), entry())
    clock.advance(20 * DAY)
    other = ImageKey("banner", blob, None, "f")
    await cache.put(other, entry())
    assert await cache.last_checked(blob) == pytest.approx(clock.now)
    assert await cache.last_checked(BlobKey(Did("did:web:a.example"), blob.cid)) is None


def test_a_label_that_was_postponed_while_the_clock_was_ahead_is_due(tmp_path: Path) -> None:
    """Catches: a takedown waits for a year because its record was asked for at a wrong time."""
    now = Clock()()
    label = Label("did:web:l.example", "at://x/y/z", "", "!takedown", False, now, None, b"", b"")
    record = LabelledRecord(key(0).blob.did, "y", "z", None)
    with closing(feed_store_in(tmp_path)) as store:
        store.put(label, record, now + YEAR)
        latest = horizon(now) + LAST_RETRY
        ((kept, _),) = store.due(now, latest, 10, ())
        store.postpone(kept, now + LAST_RETRY)
        assert store.due(now, latest, 10, ()) == []

"""The memory tier: bounded in bytes, because a process that grows is killed with all it does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.memory import OVERHEAD, MemoryCache
from proxy.model.formats import OUTPUTS, Format
from proxy.model.selection import Selection
from tests.cache import blob_cid, entry, key, owner

SIZE = 1000
COST = SIZE + OVERHEAD


NOW = 100.0


def memory(entries: int, *, ttl_seconds: float = 0) -> MemoryCache:
    """Room for just so many entries of ``SIZE``."""
    return MemoryCache(entries * COST, ttl_seconds=ttl_seconds)


def kept(cache: MemoryCache, numbers: range, now: float = NOW) -> list[int]:
    return [number for number in numbers if cache.get(key(number), now) is not None]


def test_what_was_put_is_got_and_nothing_else() -> None:
    """Catches a key without one of its parts: one picture served as another."""
    cache = memory(100)
    keys = [
        key(preset=preset, did=owner(who), cid=blob_cid(what), format_=format_)
        for preset in ("avatar", "banner")
        for who in (1, 2)
        for what in (1, 2)
        for format_ in (None, *OUTPUTS)
    ]
    for number, each in enumerate(keys):
        cache.put(each, entry(100 + number, Format.PNG), NOW)
    assert [cache.get(each, NOW) for each in keys] == [
        entry(100 + number, Format.PNG) for number in range(len(keys))
    ]
    assert cache.get(key(3), NOW) is None


def test_entries_are_kept_up_to_the_last_byte_of_the_limit() -> None:
    """Catches a bound that is off by one entry, or does not count what an entry costs."""
    cache = memory(10)
    for number in range(10):
        cache.put(key(number), entry(SIZE), NOW)
    assert len(cache) == 10
    cache.put(key(10), entry(1), NOW)
    assert kept(cache, range(11)) == list(range(1, 11))


def test_the_least_recently_used_goes_first() -> None:
    """Catches first in, first out."""
    cache = memory(4)
    for number in range(4):
        cache.put(key(number), entry(SIZE), NOW)
    cache.get(key(0), NOW)
    cache.put(key(4), entry(SIZE), NOW)
    cache.put(key(5), entry(SIZE), NOW)
    assert kept(cache, range(6)) == [0, 3, 4, 5]


def test_an_entry_that_is_put_again_counts_once_and_as_used() -> None:
    """Catches room that is given away with every replacement, until nothing fits."""
    cache = memory(4)
    for number in range(4):
        cache.put(key(number), entry(SIZE), NOW)
    for _ in range(100):
        cache.put(key(0), entry(SIZE, fill=b"\x01"), NOW)
    assert len(cache) == 4
    assert cache.get(key(0), NOW) == entry(SIZE, fill=b"\x01")
    cache.put(key(4), entry(SIZE), NOW)
    assert kept(cache, range(5)) == [0, 2, 3, 4]


def test_an_entry_too_large_to_share_the_room_is_not_kept() -> None:
    """Catches one large result that drives out everything hot."""
    cache = memory(8)
    for number in range(3):
        cache.put(key(number), entry(SIZE), NOW)
    cache.put(key(3), entry(2 * COST - OVERHEAD), NOW)
    cache.put(key(4), entry(2 * COST - OVERHEAD + 1), NOW)
    assert kept(cache, range(5)) == [0, 1, 2, 3]


@pytest.mark.parametrize("max_bytes", [0, 1, OVERHEAD])
def test_without_room_nothing_is_kept_and_nothing_fails(max_bytes: int) -> None:
    """Catches ``cache.memory_mb = 0`` taken for "without a limit"."""
    cache = MemoryCache(max_bytes)
    cache.put(key(), entry(3), NOW)
    assert len(cache) == 0
    assert cache.get(key(), NOW) is None
    assert cache.purge(Selection(did=owner())) == 0


def test_an_entry_expires_by_its_age_not_by_its_use() -> None:
    """Catches a hot picture that outlives every TTL, and room that expired entries keep."""
    now = NOW
    cache = memory(4, ttl_seconds=60)
    cache.put(key(0), entry(SIZE), now)
    now += 59.5
    assert cache.get(key(0), now) is not None
    now += 0.5
    assert cache.get(key(0), now) is None
    assert len(cache) == 0
    cache.put(key(0), entry(SIZE), now)
    assert cache.get(key(0), now) is not None
    for number in range(1, 4):
        cache.put(key(number), entry(SIZE), now)
    assert kept(cache, range(4), now) == [0, 1, 2, 3]


def test_without_a_ttl_nothing_expires() -> None:
    """Catches a TTL of 0 taken for "at once"."""
    now = NOW
    cache = memory(4)
    cache.put(key(), entry(), now)
    now += 10.0**9
    assert cache.get(key(), now) == entry()


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        (Selection(did=owner(1)), 8),
        (Selection(cid=blob_cid(1)), 8),
        (Selection(did=owner(1), cid=blob_cid(1)), 4),
        (Selection(did=owner(3)), 0),
        (Selection(did=owner(1), cid=blob_cid(3)), 0),
    ],
)
def test_a_purge_takes_every_preset_and_format_of_what_is_selected(
    selection: Selection, count: int
) -> None:
    """Catches a blocked picture that stays in memory, and a neighbour that goes."""
    cache = memory(16)
    keys = [
        key(preset=preset, did=owner(who), cid=blob_cid(what), format_=format_)
        for preset in ("avatar", "banner")
        for who in (1, 2)
        for what in (1, 2)
        for format_ in (None, Format.WEBP)
    ]
    for each in keys:
        cache.put(each, entry(SIZE), NOW)
    assert cache.purge(selection) == count
    assert [cache.get(each, NOW) is None for each in keys] == [
        selection.covers_blob(each.blob) for each in keys
    ]
    assert cache.purge(selection) == 0
    for number in range(count):
        cache.put(key(100 + number), entry(SIZE), NOW)
    assert len(cache) == 16, "what was purged still takes room"


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(3, 3 * SIZE)), max_size=60))
def test_no_order_of_puts_goes_over_the_limit(puts: list[tuple[int, int]]) -> None:
    """Catches a count of bytes that drifts from what is kept."""
    cache = memory(6)
    sizes: dict[int, int] = {}
    for number, size in puts:
        cache.put(key(number), entry(size), NOW)
        if (size + OVERHEAD) * 4 <= 6 * COST:
            sizes[number] = size
        held = [number for number in sizes if cache.get(key(number), NOW) is not None]
        assert sum(sizes[number] + OVERHEAD for number in held) <= 6 * COST
        assert len(cache) == len(held)

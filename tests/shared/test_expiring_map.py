"""The expiring map: bounded by cost, and what it forgets is all that forgetting costs."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.cache.memory import MemoryCache
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey
from proxy.model.selection import Everything, Selection, Selections
from proxy.shared.expiring_map import ExpiringMap
from proxy.shared.tag_index import TagIndex
from tests.cache import blob_cid, entry, key, owner

CAPACITY = 12


class Naive:
    """The same map, written to be understood: a list, the least recently used first."""

    def __init__(self) -> None:
        self.entries: list[tuple[BlobKey, tuple[int, int], float]] = []

    def get(self, blob: BlobKey, now: float) -> tuple[int, int] | None:
        for found in [each for each in self.entries if each[0] == blob]:
            self.entries.remove(found)
            if found[2] > now:
                self.entries.append(found)
                return found[1]
        return None

    def put(self, blob: BlobKey, value: tuple[int, int], expires: float) -> None:
        self.remove(blob)
        if value[1] <= CAPACITY:
            self.entries.append((blob, value, expires))
        while self.cost > CAPACITY:
            del self.entries[0]

    def remove(self, blob: BlobKey) -> None:
        self.entries = [each for each in self.entries if each[0] != blob]

    def remove_tagged(self, tags: frozenset[Hashable] | None) -> int:
        before = len(self.entries)
        if tags is None:
            self.entries = []
        else:
            self.entries = [each for each in self.entries if not tags & set(each[0].tags)]
        return before - len(self.entries)

    @property
    def cost(self) -> int:
        return sum(value[1] for _, value, _ in self.entries)


def real() -> ExpiringMap[BlobKey, tuple[int, int]]:
    return ExpiringMap(
        CAPACITY, cost=lambda _, value: value[1], tags=lambda blob: (blob.did, blob.cid)
    )


blobs = st.builds(
    BlobKey, st.sampled_from([Did(f"did:{n}") for n in range(3)]), st.sampled_from("xyz").map(Cid)
)
tags = st.one_of(
    st.sampled_from([Did(f"did:{n}") for n in range(3)]), st.sampled_from("xyz"), blobs
)
steps = st.one_of(
    st.tuples(st.just("get"), blobs, st.integers(0, 10)),
    st.tuples(st.just("put"), blobs, st.integers(1, CAPACITY + 2), st.integers(0, 10)),
    st.tuples(st.just("remove"), blobs),
    st.tuples(st.just("remove_tagged"), st.none() | st.frozensets(tags, max_size=20)),
)


@given(st.lists(steps, max_size=60))
@settings(deadline=None, derandomize=True)
def test_the_map_does_what_a_naive_one_does(steps: list[tuple[object, ...]]) -> None:
    """Catches any order of steps after which a bound, an expiry, a use or a tag is wrong."""
    map_, naive = real(), Naive()
    for number, (name, *arguments) in enumerate(steps):
        if name == "put":
            blob, cost, expires = arguments
            arguments = [blob, (number, cost), expires]
        assert getattr(map_, str(name))(*arguments) == getattr(naive, str(name))(*arguments)
        assert len(map_) == len(naive.entries)
        assert map_.cost == naive.cost
        index = map_._index
        assert index is not None
        assert set(index._keys) == {
            tag for blob, _, _ in naive.entries for tag in (blob.did, blob.cid)
        }


def test_what_costs_more_than_the_capacity_drives_nothing_out() -> None:
    """Catches one huge value that empties a map for nothing."""
    map_ = real()
    map_.put(BlobKey(owner(1), blob_cid(1)), (1, 1))
    map_.put(BlobKey(owner(2), blob_cid(2)), (2, CAPACITY + 1))
    assert len(map_) == map_.cost == 1


class Counted(str):
    """A string that counts how often any of its kind is looked at."""

    looks = 0

    def __hash__(self) -> int:
        Counted.looks += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return super().__eq__(other)


class Pair(NamedTuple):
    """A key of counted parts."""

    did: str
    cid: str


def looks_of(map_: ExpiringMap[Pair, int], tags: frozenset[Hashable]) -> int:
    Counted.looks = 0
    map_.remove_tagged(tags)
    return Counted.looks


@pytest.mark.parametrize("kept", [100, 10_000])
def test_forgetting_looks_at_what_it_removes_however_much_is_kept(kept: int) -> None:
    """Catches a scan: 78 ms for each decision with 200,000 failures, which strangers can make."""
    map_: ExpiringMap[Pair, int] = ExpiringMap(kept, tags=lambda pair: (pair.did, pair.cid))
    pairs = [Pair(Counted(f"did:{n}"), Counted(f"cid:{n}")) for n in range(kept)]
    for pair in pairs:
        map_.put(pair, 1)
    assert looks_of(map_, frozenset(("did:5",))) < 20
    assert looks_of(map_, frozenset(("cid:6",))) < 20
    assert looks_of(map_, frozenset((pairs[7],))) < 20
    assert looks_of(map_, frozenset(("did:none",))) < 20
    assert len(map_) == kept - 3


def test_many_tags_cost_no_more_than_a_scan_of_what_is_kept() -> None:
    """Catches a bulk purge of 100,000 that is slower than before, for a map of ten entries."""
    map_: ExpiringMap[Pair, int] = ExpiringMap(10, tags=lambda pair: (pair.did, pair.cid))
    for n in range(10):
        map_.put(Pair(f"did:{n}", f"cid:{n}"), 1)
    tags = frozenset(Counted(f"did:{n}") for n in range(5, 10_000))
    assert looks_of(map_, tags) < 100
    assert len(map_) == 5


def test_an_index_does_not_keep_the_room_of_what_is_gone() -> None:
    """Catches a table of 10,000 places for one key: a stranger makes one for each owner."""
    index: TagIndex[Pair] = TagIndex(lambda pair: (pair.did,))
    pairs = [Pair("did:1", f"cid:{n}") for n in range(10_000)]
    for pair in pairs:
        index.add(pair)
    index.discard(pairs[1:])
    assert sys.getsizeof(index._keys["did:1"]) < 2000
    assert list(index.find(frozenset(("did:1",)), pairs[:1])) == pairs[:1]


def test_a_map_without_tags_says_so() -> None:
    """Catches a purge that quietly removes nothing."""
    with pytest.raises(ValueError, match="without tags"):
        ExpiringMap[str, int](10).remove_tagged(frozenset(("a",)))


@pytest.mark.parametrize(
    ("covering", "tags"),
    [
        (Selection(did=owner(1)), {owner(1)}),
        (Selection(cid=blob_cid(1)), {blob_cid(1)}),
        (Selection(owner(1), blob_cid(1)), {BlobKey(owner(1), blob_cid(1))}),
        (
            Selections([Selection(did=owner(1)), Selection(cid=blob_cid(2))]),
            {owner(1), blob_cid(2)},
        ),
        (Selections([]), set()),
    ],
)
def test_the_tags_of_a_selection_are_those_of_what_it_covers(
    covering: Selection | Selections, tags: set[Hashable]
) -> None:
    """Catches a purge of a pair that takes all of the owner, or a pair that is not found."""
    assert covering.tags == tags
    for who in range(3):
        for what in range(3):
            blob = BlobKey(owner(who), blob_cid(what))
            assert covering.covers_blob(blob) is bool(tags & set(blob.tags))
    assert Everything().tags is None


def test_the_memory_tier_counts_what_its_entries_cost() -> None:
    """Catches a tier that is bounded by the number of its entries."""
    cache = MemoryCache(10**6)
    cache.put(key(1), entry(1000), 0)
    small = cache._entries.cost
    cache.put(key(2), entry(5000), 0)
    assert cache._entries.cost == 2 * small + 4000

"""The set of blocks in memory: exact, whatever is added and taken out, and small."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model.keys import BlobKey
from proxy.moderation import block_set as blockset
from proxy.moderation.block_set import DIGEST, BlockSet
from tests.cache import blob_cid, owner
from tests.moderation import ALL

DIDS = st.sampled_from(["", owner(1), owner(2), owner(3)])
CIDS = st.sampled_from(["", blob_cid(1), blob_cid(2)])
STEPS = st.lists(st.tuples(st.booleans(), DIDS, CIDS), max_size=40)


@given(STEPS)
def test_it_holds_what_a_plain_set_would(steps: list[tuple[bool, str, str]]) -> None:
    """Catches a removal that takes a neighbour, a pair kept twice, and a count that drifts."""
    compact, plain = BlockSet(), set[tuple[str, str]]()
    for adds, did, cid in steps:
        if adds:
            compact.add(did, cid)
            plain.add((did, cid))
        else:
            compact.discard(did, cid)
            plain.discard((did, cid))
    assert len(compact) == len(plain)
    for blob in ALL:
        asked = {(blob.did, ""), ("", blob.cid), (blob.did, blob.cid)}
        assert compact.covers(blob) == bool(asked & plain)


def test_pairs_that_share_bucket_and_filter_are_told_apart() -> None:
    """Catches trust in the filter, or in a part of a digest."""
    found = BlockSet()
    for number in range(3000):
        found.add(owner(number), "")
    # Three thousand in one bucket and one bit are as many as a set of fifty million has.
    found._buckets = [b"".join(found._buckets)] * blockset.BUCKETS
    found._filter = bytearray(b"\xff" * blockset.FILTER_BYTES)
    for number in range(3000):
        assert found.covers(BlobKey(owner(number), blob_cid(1)))
        assert not found.covers(BlobKey(owner(3000 + number), blob_cid(1)))


def test_a_match_across_two_digests_does_not_count() -> None:
    """Catches a search for bytes that does not ask where a digest begins."""
    first, second = bytes(range(DIGEST)), bytes(range(100, 100 + DIGEST))
    bucket = first + second
    across = bucket[3 : 3 + DIGEST]
    assert blockset._position(bucket, across) is None
    assert blockset._position(bucket + across, across) == 2 * DIGEST
    assert blockset._position(bucket, second) == DIGEST


@pytest.mark.slow
def test_a_block_costs_some_thirty_bytes() -> None:
    """Catches strings in a set: a million of them take 200 MB in every process."""
    count = 50_000
    tracemalloc.start()
    try:
        found = BlockSet()
        for number in range(count):
            found.add(f"did:plc:{number:024}", "")
        used, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == count
    # The filter and the heads of the buckets are the same for a million.
    fixed = blockset.FILTER_BYTES + blockset.BUCKETS * 64
    assert (used - fixed) / count < 32

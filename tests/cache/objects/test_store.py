"""One node and its store: what is believed, what failures cost, what purges remove."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from proxy.cache.interface import Entry
from proxy.cache.object_envelope import pack
from proxy.cache.object_keys import MARKS, OWNERS, mark_path, result_path, source_path
from proxy.cache.object_store import (
    MARK_SECONDS,
    ObjectStore,
    Operation,
    Outcome,
    Source,
    StoreUnavailable,
)
from proxy.egress.circuit import FAILURES_TO_OPEN, OPEN_SECONDS
from proxy.model.formats import Format
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection, Selections
from tests.cache import blob_cid, entry, key, owner
from tests.cache.objects.fakes import FakeObjects
from tests.fakes.sites import cid_of

NOW = 1_000_000_000.0
DAY = 86400.0


class Node:
    """A store in memory, and one node that uses it.

    Attributes:
        counted: requests by operation and outcome.
        refused: blobs that may not be used.
    """

    def __init__(self, objects: FakeObjects) -> None:
        self.objects = objects
        self.counted: Counter[tuple[Operation, Outcome]] = Counter()
        self.refused: set[BlobKey] = set()
        self.now = NOW
        self.store = ObjectStore(
            objects,
            timeout=1,
            ttl_seconds=30 * DAY,
            max_source_bytes=1000,
            may_use=lambda blob: blob not in self.refused,
            on_request=self._count,
            clock=lambda: self.now,
        )

    def _count(self, operation: Operation, outcome: Outcome) -> None:
        self.counted[operation, outcome] += 1


@pytest.fixture
def objects() -> Iterator[FakeObjects]:
    made = FakeObjects()
    yield made
    made.released.set()


@pytest.fixture
async def node(objects: FakeObjects, mock_clock: MockClock) -> Node:
    return Node(objects)


async def filled(node: Node) -> list[ImageKey]:
    """Results of two owners and two blobs, with two presets each, and a source each."""
    keys = [
        key(did=owner(number), cid=blob_cid(blob), preset=preset)
        for number in (1, 2)
        for blob in (1, 2)
        for preset in ("avatar", "banner")
    ]
    for each in keys:
        await node.store.put(each, entry())
        await node.store.put_source(each.blob, Source(b"x", NOW))
    return keys


async def test_a_result_comes_back_with_its_age(node: Node) -> None:
    """Catches a second life of a whole TTL on each node that takes it over."""
    await node.store.put(key(), entry())
    node.now += DAY
    found = await node.store.get(key())
    assert found == Entry(entry().data, Format.JPEG, NOW)
    assert node.counted["get", "hit"] == 1


@pytest.mark.parametrize("where", ["header", "data", "short", "other", "huge", "no picture"])
async def test_what_is_not_what_was_written_is_neither_served_nor_kept(
    node: Node, where: str
) -> None:
    """Catches wrong bytes under a right URL, and an object that stands in the way for ever."""
    path = result_path(key())
    await node.store.put(key(), entry())
    content = node.objects.kept[path]
    node.objects.kept[path] = {
        "header": b"\x00" + content[1:],
        "data": content[:-1] + b"\x01",
        "short": content[:40],
        "other": pack(result_path(key(2)), entry().data, NOW),
        "huge": bytes(65 * 1024**2),
        "no picture": pack(path, b"<html>", NOW),
    }[where]
    assert await node.store.get(key()) is None
    assert node.counted["get", "damaged"] == 1
    await node.store.put(key(), entry())
    assert await node.store.get(key()) is not None


async def test_another_format_than_the_one_asked_for_is_not_served(node: Node) -> None:
    """Catches a PNG under a URL that ends in @webp."""
    asked = key(format_=Format.WEBP)
    path = result_path(asked)
    node.objects.kept[path] = pack(path, entry(format_=Format.PNG).data, NOW)
    assert await node.store.get(asked) is None
    assert node.counted["get", "damaged"] == 1


async def test_what_is_too_old_is_not_served_and_makes_room_for_what_is_new(node: Node) -> None:
    """Catches a TTL that the store does not have, and a create-only write that it blocks."""
    await node.store.put(key(), entry())
    node.now += 30 * DAY
    assert await node.store.get(key()) is None
    assert node.counted["get", "expired"] == 1
    await node.store.put(key(), entry())
    assert node.counted["put", "ok"] == 2


async def test_a_source_is_what_its_cid_names_or_is_not_used(node: Node) -> None:
    """Catches a preset made from other bytes than those of the CID."""
    blob = BlobKey(owner(), cid_of(b"bytes"))
    await node.store.put_source(blob, Source(b"bytes", NOW))
    assert await node.store.source(blob) == Source(b"bytes", NOW)
    path = source_path(blob)
    for wrong in (b"other", b"x" * 1001):
        node.objects.kept[path] = pack(path, wrong, NOW)
        assert await node.store.source(blob) is None
    assert node.counted["get", "damaged"] == 2


async def test_the_first_write_stays(node: Node) -> None:
    """Catches a second upload of every picture that two nodes make."""
    await node.store.put(key(), entry())
    await node.store.put(key(), entry(fill=b"\x01"))
    found = await node.store.get(key())
    assert found is not None
    assert found.data == entry().data
    assert node.counted["put", "exists"] == 1


async def test_a_refused_blob_is_neither_asked_for_nor_written(node: Node) -> None:
    """Catches a store that is read before the blocks, or written after them."""
    await node.store.put(key(), entry())
    node.refused.add(key().blob)
    node.objects.asked.clear()
    assert await node.store.get(key()) is None
    await node.store.put(key(preset="banner"), entry())
    assert node.objects.asked == []


async def test_what_is_refused_while_it_is_written_is_removed_again(
    node: Node, nursery: trio.Nursery
) -> None:
    """Catches an object that outlives the block that came while it was on its way."""
    node.objects.released.clear()
    nursery.start_soon(node.store.put, key(), entry())
    await trio.to_thread.run_sync(node.objects.entered.wait)
    node.refused.add(key().blob)
    node.objects.released.set()
    await until_quiet(nursery)
    assert result_path(key()) not in node.objects.kept


async def test_what_is_refused_while_it_is_read_is_not_given_out(
    node: Node, nursery: trio.Nursery
) -> None:
    """Catches a purged picture that comes back by an answer that was under way."""
    await node.store.put(key(), entry())
    node.objects.entered.clear()
    node.objects.released.clear()
    found: list[Entry | None] = []

    async def ask() -> None:
        found.append(await node.store.get(key()))

    nursery.start_soon(ask)
    await trio.to_thread.run_sync(node.objects.entered.wait)
    node.refused.add(key().blob)
    node.objects.released.set()
    await until_quiet(nursery)
    assert found == [None]


async def until_quiet(nursery: trio.Nursery) -> None:
    """Wait until the tasks of the test have ended."""
    while nursery.child_tasks:
        await trio.lowlevel.checkpoint()


async def test_a_slow_store_costs_one_time_out_and_no_more(
    node: Node, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Catches a miss that waits for as long as the store does."""
    node.objects.released.clear()
    found: list[tuple[Entry | None, float]] = []

    async def ask() -> None:
        found.append((await node.store.get(key()), trio.current_time()))

    began = trio.current_time()
    nursery.start_soon(ask)
    await trio.to_thread.run_sync(node.objects.entered.wait)
    mock_clock.jump(1)
    await until_quiet(nursery)
    assert found == [(None, began + 1)]
    assert node.counted == {("get", "timeout"): 1}


async def test_a_dead_store_is_left_alone_until_it_is_tried_again(
    node: Node, mock_clock: MockClock
) -> None:
    """Catches a request, and its delay, for each miss while the store is down."""
    node.objects.is_dead = True
    for _ in range(FAILURES_TO_OPEN):
        assert not node.store.is_resting
        assert await node.store.get(key()) is None
    assert node.store.is_resting
    for _ in range(3):
        assert await node.store.get(key()) is None
    with pytest.raises(StoreUnavailable):
        await node.store.put(key(), entry())
    assert len(node.objects.asked) == FAILURES_TO_OPEN
    assert node.counted == {
        ("get", "failed"): FAILURES_TO_OPEN,
        ("get", "skipped"): 3,
        ("put", "skipped"): 1,
    }
    node.objects.is_dead = False
    mock_clock.jump(OPEN_SECONDS)
    assert not node.store.is_resting
    await node.store.put(key(), entry())
    assert await node.store.get(key()) is not None


@pytest.mark.parametrize(
    "selection",
    [
        Selection(owner(1)),
        Selection(cid=blob_cid(1)),
        Selection(owner(1), blob_cid(1)),
    ],
    ids=["owner", "blob", "pair"],
)
async def test_a_purge_removes_all_of_a_selection_and_nothing_else(
    node: Node, selection: Selection
) -> None:
    """Catches an object or a mark that stays, and one of others that goes."""
    keys = await filled(node)
    gone = {each for each in keys if selection.covers_blob(each.blob)}
    blobs = {each.blob for each in gone}
    assert await node.store.purge(selection) == len(gone) + len(blobs)  # with their sources
    left = [each for each in keys if each not in gone]
    assert set(node.objects.kept) == {
        path
        for each in left
        for path in (result_path(each), source_path(each.blob), mark_path(each.blob))
    }


async def test_a_purge_of_everything_by_blobs_leaves_nothing(node: Node) -> None:
    """Catches objects that no mark leads to."""
    await filled(node)
    await node.store.purge(*(Selection(cid=blob_cid(number)) for number in (1, 2, 3)))
    assert node.objects.kept == {}


async def test_a_purge_lists_no_more_than_it_has_to(node: Node) -> None:
    """Catches a listing of the bucket: with 100 million objects it takes 100,000 requests."""
    await filled(node)
    for selection, lists in (
        (Selection(owner(9)), 1),
        (Selection(cid=blob_cid(9)), 1),
        (Selection(owner(1), blob_cid(1)), 2),  # and once more, to see that nothing is left
        (Selection(owner(1)), 2),
        (Selection(cid=blob_cid(2)), 3),  # the marks, then the one owner that is left
    ):
        node.objects.asked.clear()
        await node.store.purge(selection)
        assert node.objects.asked.count("list") == lists, selection


async def test_an_owner_with_thousands_of_objects_is_purged_whole(node: Node) -> None:
    """Catches a purge of the first page."""
    for number in range(2500):
        each = key(did=owner(1), cid=blob_cid(number))
        node.objects.kept[result_path(each)] = node.objects.kept[mark_path(each.blob)] = b""
    assert await node.store.purge(Selection(owner(1))) == 2500
    assert node.objects.kept == {}


async def test_a_purge_that_did_not_reach_the_store_says_so_and_goes_on_later(node: Node) -> None:
    """Catches a purge that counts as done, and leaves what it did not reach."""
    await filled(node)
    node.objects.is_dead = True
    with pytest.raises(StoreUnavailable):
        await node.store.purge(Selection(owner(1)), Selection(owner(2)))
    node.objects.is_dead = False
    await node.store.purge(Selection(owner(1)), Selection(owner(2)))
    assert node.objects.kept == {}


async def test_a_store_that_removes_nothing_fails_a_purge(node: Node) -> None:
    """Catches a purge that believes the store, or goes on for ever."""
    await filled(node)
    node.objects.deletes = False
    with pytest.raises(StoreUnavailable):
        await node.store.purge(Selection(owner(1)))


async def test_results_go_before_the_marks_that_lead_to_them(node: Node) -> None:
    """Catches a purge that fails in between, after which no other finds the results."""
    await node.store.put(key(), entry())
    seen: list[set[str]] = []
    delete = node.objects.delete

    def note(paths: list[str]) -> None:
        delete(paths)
        seen.append({path[: len(OWNERS)] for path in node.objects.kept})

    node.objects.delete = note  # type: ignore[assignment, method-assign]
    await node.store.purge(Selection(cid=key().blob.cid))
    assert seen == [{MARKS + "/"}, set()]


async def test_a_mark_is_written_again_after_a_purge_and_each_day(
    node: Node, mock_clock: MockClock
) -> None:
    """Catches a node that remembers a mark which is gone: no purge finds its next results."""
    blob = key().blob
    await node.store.put(key(), entry())
    await node.store.put(key(preset="banner"), entry())
    assert node.objects.asked.count("put") == 3  # one mark for both
    for forget in (
        partial(node.store.forget, Selections([Selection(blob.did)])),
        partial(mock_clock.jump, MARK_SECONDS),
    ):
        del node.objects.kept[mark_path(blob)]
        forget()
        await node.store.put(key(), entry())
        assert mark_path(blob) in node.objects.kept


async def test_a_probe_leaves_nothing(node: Node) -> None:
    """Catches a check that fills the bucket."""
    await node.store.probe()
    assert node.objects.asked == ["put", "get", "delete"]
    assert node.objects.kept == {}


async def test_a_probe_tells_what_does_not_work(node: Node) -> None:
    """Catches a check that passes a store which cannot be written, or gives other bytes."""
    node.objects.is_dead = True
    with pytest.raises(StoreUnavailable):
        await node.store.probe()
    node.objects.is_dead = False
    node.objects.get = lambda path, max_bytes: b"other"  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await node.store.probe()

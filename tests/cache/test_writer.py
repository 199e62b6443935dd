"""The cache-writer: no response waits for it, no crash ends it, no purge is undone by it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.cache import writer
from proxy.cache.interface import Cache, Entry
from proxy.cache.writer import GATHERING_SECONDS, RETRY_PAUSE, CacheWriter
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Covering, Selection, Selections
from proxy.shared.supervision import RESTART_PAUSE, supervise
from tests.cache import blob_cid, entry, key, owner


class FakeCache:
    """Keeps entries in memory, fails and hangs on demand."""

    def __init__(self) -> None:
        self.kept: dict[ImageKey, Entry] = {}
        self.tries: list[tuple[ImageKey, float]] = []
        self.together: list[list[ImageKey]] = []
        self.failures: list[Exception] = []
        self.open = trio.Event()
        self.open.set()

    def at_once(self, key: ImageKey) -> Entry | None:
        """See ``Cache.at_once``."""
        return None

    def forget(self, covering: Covering) -> None:
        """See ``Cache.forget``."""

    async def get(self, key: ImageKey) -> Entry | None:
        await trio.lowlevel.checkpoint()
        return self.kept.get(key)

    async def put(self, key: ImageKey, entry: Entry) -> None:
        self.tries.append((key, trio.current_time()))
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.kept[key] = entry

    async def put_all(self, entries: Mapping[ImageKey, Entry]) -> None:
        if self.failures:  # what fails together fails by itself too
            raise self.failures[0]
        self.together.append(list(entries))
        for each, made in entries.items():
            await self.put(each, made)

    async def purge(self, *selections: Selection) -> int:
        await trio.lowlevel.checkpoint()
        selected = [key for key in self.kept if Selections(selections).covers_blob(key.blob)]
        for each in selected:
            del self.kept[each]
        return len(selected)

    async def cleanup(self) -> int:
        return 0

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()

    def hang(self) -> None:
        """Let no put end until ``go_on``."""
        self.open = trio.Event()

    def go_on(self) -> None:
        self.open.set()


class Rig:
    """A writer over a fake cache, and what it told."""

    def __init__(
        self,
        queue_size: int = 10,
        refuses: Callable[[BlobKey], bool] = lambda blob: False,
        on_written: Callable[[], None] = lambda: None,
    ) -> None:
        self.cache = FakeCache()
        self.written = 0
        self.errors: list[Exception] = []
        self.dropped = 0

        def note_written() -> None:
            self.written += 1
            on_written()

        def note_dropped() -> None:
            self.dropped += 1

        cache: Cache = self.cache
        self.writer = CacheWriter(
            cache,
            queue_size=queue_size,
            refuses=refuses,
            on_written=note_written,
            on_error=self.errors.append,
            on_dropped=note_dropped,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The writer runs; at the end it is closed, and has to return by itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervise, self.writer.run)
            yield
            self.cache.go_on()
            self.writer.close()


async def test_an_entry_is_visible_as_pending_until_it_is_written() -> None:
    """Catches a gap in which a result is neither pending nor in the cache: work done twice."""
    rig = Rig()
    rig.cache.hang()
    rig.writer.offer(key(1), entry())
    assert rig.writer.pending(key(1)) == entry()
    assert rig.writer.pending(key(2)) is None
    async with rig.running():
        await wait_all_tasks_blocked()
        assert rig.cache.kept == {}
        assert rig.writer.pending(key(1)) == entry()
        rig.cache.go_on()
        await wait_all_tasks_blocked()
        assert rig.writer.pending(key(1)) is None
        assert rig.cache.kept == {key(1): entry()}
    assert (rig.written, rig.errors, rig.dropped) == (1, [], 0)


async def test_a_full_channel_drops_the_write_and_counts_it() -> None:
    """Catches a response that waits for a slow disk, and memory that grows with it."""
    rig = Rig(queue_size=3)
    rig.cache.hang()
    async with rig.running():
        rig.writer.offer(key(0), entry())
        await wait_all_tasks_blocked()  # taken off the channel, and hanging
        for number in range(1, 6):
            rig.writer.offer(key(number), entry())
        assert rig.dropped == 2
        assert rig.writer.pending(key(3)) == entry()
        assert rig.writer.pending(key(4)) is None, "what was dropped is not pending for ever"
    assert list(rig.cache.kept) == [key(number) for number in range(4)]
    assert rig.written == 4


async def test_results_that_wait_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a bound by number: 256 results of 10 MB, and room that is never given back."""
    monkeypatch.setattr(writer, "MAX_BYTES", 1000)
    rig = Rig()
    rig.cache.hang()
    async with rig.running():
        rig.writer.offer(key(0), entry(2000))
        rig.writer.offer(key(1), entry(100))
        assert rig.dropped == 1, "one larger than the bound waits alone"
        rig.writer.discard(Selection(key(0).blob.did))
        for number in range(2, 5):
            rig.writer.offer(key(number), entry(400))
        assert rig.dropped == 2
    assert list(rig.cache.kept) == [key(2), key(3)]
    rig = Rig()
    for number in range(2):
        rig.writer.offer(key(number), entry(500))
    rig.writer.offer(key(2), entry(100))
    assert rig.dropped == 1


async def test_one_key_offered_twice_is_written_once() -> None:
    """Catches a channel that fills with one hot picture."""
    rig = Rig(queue_size=1)
    for _ in range(5):
        rig.writer.offer(key(), entry())
    async with rig.running():
        await wait_all_tasks_blocked()
    assert [tried for tried, _at in rig.cache.tries] == [key()]
    assert rig.dropped == 0


async def test_a_failed_write_is_tried_once_more_after_a_pause(
    autojump_clock: MockClock,
) -> None:
    """Catches a write that is given up at once, and one that is repeated without a breath."""
    rig = Rig()
    rig.cache.failures = [OSError("disk full")]
    rig.writer.offer(key(), entry())
    async with rig.running():
        await wait_all_tasks_blocked()
        assert len(rig.cache.tries) == 1
        assert rig.writer.pending(key()) == entry(), "it is still to be had meanwhile"
    (_key, first), (_key, second) = rig.cache.tries
    assert second - first == pytest.approx(RETRY_PAUSE)
    assert rig.cache.kept == {key(): entry()}
    assert (len(rig.errors), rig.written) == (1, 1)


@pytest.mark.parametrize(
    "error", [OSError("disk full"), ValueError("a defect"), RuntimeError("another"), KeyError()]
)
async def test_a_second_failure_gives_the_write_up_and_goes_on_with_the_next(
    autojump_clock: MockClock, error: Exception
) -> None:
    """Catches a writer that any exception ends, and one that repeats a bad write for ever."""
    rig = Rig()
    rig.cache.failures = [error, error]
    rig.writer.offer(key(1), entry())
    rig.writer.offer(key(2), entry())
    async with rig.running():
        pass
    assert rig.cache.kept == {key(2): entry()}
    assert [tried for tried, _at in rig.cache.tries] == [key(1), key(1), key(2)]
    assert rig.errors == [error, error]
    assert rig.writer.pending(key(1)) is None


async def test_a_crashed_writer_starts_again_after_a_pause(autojump_clock: MockClock) -> None:
    """Catches a writer whose end nobody notices: a cache that keeps nothing from then on."""

    def crash_once() -> None:
        if rig.written == 1:
            raise RuntimeError("a defect around the write")

    rig = Rig(on_written=crash_once)
    for number in range(3):
        rig.writer.offer(key(number), entry())
    async with rig.running():
        await wait_all_tasks_blocked()
        assert rig.writer.pending(key(0)) is None, "what crashed is not pending for ever"
    assert list(rig.cache.kept) == [key(0), key(1), key(2)]
    assert rig.cache.tries[-1][1] - rig.cache.tries[0][1] == pytest.approx(RESTART_PAUSE)


async def test_what_waits_is_written_together() -> None:
    """Catches a transaction for each result, and what was offered meanwhile left behind."""
    rig = Rig()
    rig.cache.hang()
    async with rig.running():
        rig.writer.offer(key(0), entry())
        await wait_all_tasks_blocked()
        for number in range(1, 5):
            rig.writer.offer(key(number), entry())
        rig.writer.discard(Selection(did=owner(2)))
        rig.cache.go_on()
    assert rig.cache.together == [[key(1), key(3), key(4)]]
    assert list(rig.cache.kept) == [key(0), key(1), key(3), key(4)]
    assert rig.written == 4
    assert all(rig.writer.pending(key(number)) is None for number in range(5))


async def test_a_stream_of_results_is_written_in_few_transactions(
    autojump_clock: MockClock,
) -> None:
    """Catches a transaction for each result of a busy service, and a single one that waits."""
    rig = Rig()
    async with rig.running():
        for number in range(10):
            rig.writer.offer(key(number), entry())
            await trio.sleep(GATHERING_SECONDS / 4)
        await trio.sleep(2 * GATHERING_SECONDS)
        assert len(rig.cache.kept) == 10
        assert rig.cache.tries[0] == (key(0), 0)
        assert len(rig.cache.together) <= 3
        alone = trio.current_time()
        rig.writer.offer(key(10), entry())
        await trio.sleep(GATHERING_SECONDS / 4)
        assert rig.cache.tries[-1] == (key(10), alone)


async def test_a_purge_waits_for_writes_begun_together_and_takes_them_too() -> None:
    """Catches a group of writes that puts a purged picture back."""
    rig = Rig()
    rig.cache.hang()
    for number in range(3):
        rig.writer.offer(key(number), entry())
    removed: list[int] = []

    async def purge() -> None:
        removed.append(await rig.writer.purge(Selection(did=owner(1))))

    async with rig.running(), trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        nursery.start_soon(purge)
        await wait_all_tasks_blocked()
        assert removed == [], "it answers while the writes are still under way"
        rig.cache.go_on()
        await wait_all_tasks_blocked()
        assert removed == [1]
    assert list(rig.cache.kept) == [key(0), key(2)]


async def test_a_purge_waits_for_a_write_begun_and_takes_it_too() -> None:
    """Catches a blocked picture that a write under way brings back after its purge."""
    rig = Rig()
    rig.cache.hang()
    rig.writer.offer(key(1), entry())
    removed: list[int] = []

    async def purge() -> None:
        removed.append(await rig.writer.purge(Selection(did=owner(1))))

    async with rig.running(), trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        nursery.start_soon(purge)
        await wait_all_tasks_blocked()
        assert removed == [], "it answers while the write is still under way"
        rig.cache.go_on()
        await wait_all_tasks_blocked()
        assert removed == [1]
        assert rig.cache.kept == {}


@pytest.mark.parametrize(
    "selection", [Selection(did=owner(2)), Selection(cid=blob_cid(2)), Selection(owner(2))]
)
async def test_a_purge_discards_what_still_waits(selection: Selection) -> None:
    """Catches a purge of the disk alone: what was queued is written after it."""
    rig = Rig()
    for number in (1, 2, 3):
        rig.writer.offer(key(number), entry())
    assert await rig.writer.purge(selection) == 0
    assert rig.writer.pending(key(2)) is None
    async with rig.running():
        pass
    assert list(rig.cache.kept) == [key(1), key(3)]
    assert rig.written == 2


async def test_a_purge_during_the_pause_discards_the_second_try(
    autojump_clock: MockClock,
) -> None:
    """Catches a retry that writes what was purged a second ago."""
    rig = Rig()
    rig.cache.failures = [OSError("disk full")]
    rig.writer.offer(key(), entry())
    async with rig.running():
        await wait_all_tasks_blocked()
        await rig.writer.purge(Selection(did=owner()))
    assert rig.cache.kept == {}
    assert len(rig.cache.tries) == 1


async def test_what_was_purged_can_be_offered_again() -> None:
    """Catches a key that a purge leaves barred, and one that is then written twice."""
    rig = Rig()
    rig.writer.offer(key(), entry(100))
    await rig.writer.purge(Selection(did=owner()))
    rig.writer.offer(key(), entry(200))
    async with rig.running():
        pass
    assert rig.cache.kept == {key(): entry(200)}
    assert len(rig.cache.tries) == 1


async def test_closing_drains_what_was_given_and_takes_no_more() -> None:
    """Catches writes that a shutdown abandons, and a shutdown that never ends."""
    rig = Rig()
    for number in range(5):
        rig.writer.offer(key(number), entry())
    rig.writer.close()
    rig.writer.offer(key(5), entry())
    assert rig.dropped == 1
    assert rig.writer.pending(key(5)) is None
    await rig.writer.run()
    assert list(rig.cache.kept) == [key(number) for number in range(5)]
    rig.writer.close()


async def test_closing_drains_over_failures_and_crashes_too(autojump_clock: MockClock) -> None:
    """Catches a drain that the first bad write ends."""

    def crash_once() -> None:
        if rig.written == 1:
            raise RuntimeError("a defect around the write")

    rig = Rig(on_written=crash_once)
    rig.cache.failures = [OSError("disk full")] * 2
    for number in range(4):
        rig.writer.offer(key(number), entry())
    rig.writer.close()
    await supervise(rig.writer.run)
    assert list(rig.cache.kept) == [key(1), key(2), key(3)]


async def test_what_may_not_be_written_is_not_and_is_no_error() -> None:
    """Catches a blocked picture that reaches the disk because it was queued before."""
    blocked: set[BlobKey] = set()
    rig = Rig(refuses=lambda blob: blob in blocked)
    rig.writer.offer(key(1), entry())
    rig.writer.offer(key(2), entry())
    blocked.add(key(1).blob)  # after it was offered
    async with rig.running():
        pass
    assert rig.cache.kept == {key(2): entry()}
    assert (rig.written, rig.errors, rig.dropped) == (1, [], 0)
    assert rig.writer.pending(key(1)) is None


async def test_what_may_no_longer_be_written_is_not_tried_a_second_time(
    autojump_clock: MockClock,
) -> None:
    """Catches a block that is only looked at before the first try."""
    blocked: set[BlobKey] = set()
    rig = Rig(refuses=lambda blob: blob in blocked)
    rig.cache.failures = [OSError("disk full")]
    rig.writer.offer(key(), entry())
    async with rig.running():
        await wait_all_tasks_blocked()
        blocked.add(key().blob)
    assert len(rig.cache.tries) == 1
    assert rig.cache.kept == {}


async def test_settled_waits_until_half_of_the_channel_is_free() -> None:
    """Catches a bulk load whose writes are dropped, and one that waits for nothing."""
    rig = Rig(queue_size=4)
    with trio.fail_after(30):
        await rig.writer.settled()
    for number in range(4):
        rig.writer.offer(key(number), entry())
    waited: list[Any] = []

    async def wait() -> None:
        await rig.writer.settled()
        waited.append(len(rig.cache.kept))

    rig.cache.hang()
    async with rig.running(), trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert waited == []
        rig.cache.go_on()
    assert waited
    assert rig.dropped == 0


async def test_the_end_of_a_purged_write_leaves_the_next_write_of_its_key_alone(
    autojump_clock: MockClock,
) -> None:
    """Catches a write that settles another one: the result made after a purge is never kept."""
    rig = Rig()
    rig.cache.hang()
    settled: list[str] = []
    async with rig.running():
        rig.writer.offer(key(), entry(fill=b"1"), lambda: settled.append("first"))
        await wait_all_tasks_blocked()  # it has begun
        rig.writer.discard(Selection(did=key().blob.did))
        rig.writer.offer(key(), entry(fill=b"2"), lambda: settled.append("second"))
        assert settled == ["first"]
        rig.cache.go_on()
        rig.cache.hang()
        await trio.sleep(2 * GATHERING_SECONDS)  # the first has ended, and the second has begun
        assert rig.writer.pending(key()) == entry(fill=b"2")
        assert settled == ["first"]
        rig.cache.go_on()
        await wait_all_tasks_blocked()
        assert settled == ["first", "second"]
    assert rig.cache.kept == {key(): entry(fill=b"2")}


async def test_cancelling_the_writer_ends_it() -> None:
    """Catches a supervisor that takes a cancellation for a crash and starts again."""
    rig = Rig()
    rig.cache.hang()
    rig.writer.offer(key(), entry())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.writer.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert rig.cache.kept == {}
    assert rig.writer.pending(key()) is None

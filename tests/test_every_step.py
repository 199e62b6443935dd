"""Requests that are cancelled, purged or blocked at every step of theirs in turn.

Everything of a service is real here but the network, the pictures and the threads: what runs in a
thread is a step of the event loop, which lasts as long as a test says.
"""

from __future__ import annotations

import errno
import fcntl
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
import trio
import trio.testing

from proxy.cache import object_store
from proxy.cache.disk import DiskCache
from proxy.cache.interface import Entry
from proxy.cache.memory import MemoryCache
from proxy.cache.object_keys import result_path, source_path
from proxy.cache.object_store import ObjectStore, Source
from proxy.cache.object_writer import ObjectWriter
from proxy.cache.writer import CacheWriter
from proxy.config import Config
from proxy.coordination import build_locks
from proxy.coordination.build_locks import BuildLocks
from proxy.egress.conduct import Conduct
from proxy.egress.endpoint import Origin
from proxy.egress.fetch_channel import ChannelStatistics, FetchChannel
from proxy.egress.guarded_get import Response
from proxy.errors import BlobBlocked
from proxy.imaging.recipes import Outcome, Rendered
from proxy.imaging.workers.admission_gate import GateStatistics
from proxy.imaging.workers.batch import Batch
from proxy.imaging.workers.pool import ProcessingPool
from proxy.model.formats import Format
from proxy.model.identifiers import Did
from proxy.model.keys import BlobKey, ImageKey, image_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from proxy.moderation.gate import Gate
from proxy.observability.metrics import Metrics
from proxy.observability.spans import NoSpans
from proxy.service import FetchedBlob, MadeImage, Service, SharedTier
from proxy.shared.current import Current
from proxy.shared.single_flight import SingleFlight
from proxy.shared.supervision import supervise
from tests.cache import blob_cid, owner
from tests.cache.objects.fakes import FakeObjects
from tests.fakes.steps import at_step
from tests.fakes.world import tiny_png

T = TypeVar("T")

NAMES = ("avatar", "avatar", "banner", "blob")
"""What is asked for at once."""

LONG = 60.0
"""Seconds of the test's clock after which everything has come to rest."""

EVERY = 5
"""How many steps apart: a second or two for each test would be long for what a few show."""


class Pace:
    """How long the stages take: a step of the event loop, or if they are ``slow``, a second, in
    which all else comes to rest between two of its steps."""

    def __init__(self) -> None:
        self.slow = ""
        self.stages: dict[trio.CapacityLimiter | None, str] = {}

    async def take(self, stage: str) -> None:
        if stage != self.slow:
            await trio.lowlevel.checkpoint()
            return
        for _ in range(2 * EVERY):
            await trio.sleep(0.1)

    async def run_sync(
        self,
        work: Callable[..., T],
        *arguments: object,
        abandon_on_cancel: bool = False,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        """Stands for ``trio.to_thread.run_sync``."""
        stage = self.stages.get(limiter, "")
        borrower = object()
        await trio.lowlevel.checkpoint_if_cancelled()
        if limiter is not None:
            await limiter.acquire_on_behalf_of(borrower)
        try:
            with trio.CancelScope(shield=not abandon_on_cancel):
                await self.take(stage)
                result = work(*arguments)
                await self.take(stage)
            return result
        finally:
            if limiter is not None:
                limiter.release_on_behalf_of(borrower)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    pace = Pace()
    monkeypatch.setattr(trio.to_thread, "run_sync", pace.run_sync)
    # Each fetch brings other bytes, so that it can be told from which one a result is.
    monkeypatch.setattr(object_store, "cid_digest", lambda cid: b"")
    sha256 = SimpleNamespace(sha256=lambda data: SimpleNamespace(digest=lambda: b""))
    monkeypatch.setattr(object_store, "hashlib", sha256)
    return pace


def picture(fetch: int) -> bytes:
    return tiny_png() + b"#%d#" % fetch


def fetch_of(data: bytes) -> int:
    found = re.search(rb"#(\d+)#", data)
    assert found is not None
    return int(found[1])


class Decided:
    """The blocks, and whether a purge is unfinished."""

    def __init__(self) -> None:
        self.blocked: set[Did] = set()
        self.is_purging = False

    def check(self, blob: BlobKey) -> None:
        """See ``Blocked``."""
        if self.is_blocked(blob):
            raise BlobBlocked

    def is_blocked(self, blob: BlobKey) -> bool:
        """See ``Blocked``."""
        return blob.did in self.blocked


class Renderers:
    """Make a result of its source in some steps."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.made = 0

    async def run_job(
        self, batch: Batch, tell: Callable[[Outcome], object], jobs: trio.CapacityLimiter
    ) -> Outcome:
        """See ``ImageWorkers.run_job``."""
        jobs.acquire_nowait()
        try:
            await trio.lowlevel.checkpoint()
            outcomes: list[Outcome] = []
            job = batch.begin()
            with trio.CancelScope(shield=True):
                for _ in job.orders:
                    if outcomes:
                        tell(outcomes[-1])
                    self.made += 1
                    await self._pace.take("transform")
                    outcomes.append(Rendered(job.source, Format.PNG))
            return outcomes[-1]
        finally:
            jobs.release()


class Bench:
    """A service, the parts of it, and what is asked for: another blob in each ``turn``."""

    def __init__(self, folder: Path, nursery: trio.Nursery, pace: Pace) -> None:
        config = Config.model_validate(
            {"cache": {"path": folder}, "process": {"isolation": "thread", "threads": 1}}
        )
        self._pace = pace
        self.fetches = 0
        self.turn(0)
        self.disk = DiskCache(folder, max_bytes=1 << 20, fsync=False)
        self.decided = Decided()
        gate = Gate(self.decided, None)
        self.objects = FakeObjects()
        self.store = ObjectStore(
            self.objects,
            timeout=10,
            may_use=lambda blob: not (self.decided.is_purging or gate.refuses(blob)),
        )
        self.object_writer = ObjectWriter(self.store, queue_size=16)
        self.writer = CacheWriter(
            self.disk, queue_size=16, refuses=gate.refuses, hand_on=self.object_writer.offer
        )
        self.memory = MemoryCache(1 << 20)
        self.channel = FetchChannel(queue_size=4, consumers=2, per_host=2, conduct=Conduct())
        self.pool = ProcessingPool(config)
        self.renderers = Renderers(pace)
        self.pool._renderers = cast("Any", self.renderers)
        self.locks = BuildLocks(folder / "flights.lock", timeout=30)
        pace.stages |= {
            self.disk._hits: "disk reads",
            self.disk._changes: "disk writes",
            self.store._reads: "store reads",
            self.store._writes: "store writes",
        }
        self.images: SingleFlight[ImageKey, MadeImage] = SingleFlight(
            nursery, attrgetter("blob.tags")
        )
        self.blobs: SingleFlight[BlobKey, FetchedBlob] = SingleFlight(nursery, attrgetter("tags"))
        unused = cast("Any", None)
        self.service = Service(
            config,
            Current(config.preset_table),
            blocks=unused,
            gate=gate,
            moderator=unused,
            cache=self.disk,
            memory=self.memory,
            writer=self.writer,
            cache_health=unused,
            resolver=self,
            fetcher=self,
            processor=self.pool,
            build_locks=self.locks,
            shared=SharedTier(self.store, self.object_writer, True),
            actors=unused,
            posters=cast("Any", SimpleNamespace(forget=lambda covering: None)),
            known_hosts=unused,
            metrics=Metrics(),
            spans=NoSpans(),
            image_flights=self.images,
            blob_flights=self.blobs,
        )

    def turn(self, number: int) -> None:
        """Ask for another blob from now on."""
        self.blob = BlobKey(owner(number), blob_cid(number))
        self.keys = {
            name: image_key(DEFAULT_PRESETS, name, *self.blob) for name in ("avatar", "banner")
        }

    async def resolve(self, did: str, *, max_age: float | None = None) -> str:
        """See ``Resolver.resolve``."""
        await trio.lowlevel.checkpoint()
        return "https://pds.example"

    async def fetch(self, pds: str, blob: BlobKey) -> bytes:
        """See ``Fetcher.fetch``."""

        async def work(received: Callable[[int], object]) -> Response:
            self.fetches += 1
            body = picture(self.fetches)
            await self._pace.take("fetch")
            return Response(200, {}, body, b"")

        origin = Origin("https", "pds.example", 443)
        return (await self.channel.submit(origin, work, timeout=30)).body

    async def get(self, name: str, got: list[int | None]) -> None:
        """Ask for a result or the blob; from which fetch it is, None: it is blocked."""
        try:
            if name == "blob":
                data = (await self.service.get_blob(self.blob)).data
            else:
                data = (await self.service.get(self.keys[name], DEFAULT_PRESETS[name])).data
        except BlobBlocked:
            got.append(None)
        else:
            got.append(fetch_of(data))

    async def keep(self, where: str) -> None:
        """Keep results, and the blob, of no fetch."""
        for key in self.keys.values():
            if where == "disk":
                await self.disk.put(key, Entry(picture(0), Format.PNG))
            elif where == "store":
                await self.store.put(key, Entry(picture(0), Format.PNG))
                await self.store.put_source(self.blob, Source(picture(0), time.time()))

    def kept(self) -> list[tuple[str, int]]:
        """What is kept of the blob: where, and from which fetch."""
        found = []
        for key in self.keys.values():
            held = self.memory.get(key, trio.current_time()), self.writer.pending(key)
            found += [("memory", fetch_of(entry.data)) for entry in held if entry is not None]
        files = [path for path in self.disk.images.rglob("*.png") if self.blob.cid in path.name]
        found += [("disk", fetch_of(path.read_bytes())) for path in files]
        paths = [source_path(self.blob), *map(result_path, self.keys.values())]
        objects = (self.objects.kept[path] for path in paths if path in self.objects.kept)
        return found + [("store", fetch_of(data)) for data in objects]

    def check_at_rest(self) -> None:
        """Check that nothing is held, waited for or under way."""
        assert len(self.images) == len(self.blobs) == len(self.service._under_way) == 0
        assert not self.locks._held
        assert self.channel.statistics() == ChannelStatistics(0, 0)
        assert self.pool.gate.statistics() == GateStatistics(0, 0, 0, 0)
        assert self.pool.limiter.borrowed_tokens == len(self.pool._batches) == 0
        assert len(self.writer._pending) == self.writer._waiting.value == self.writer._bytes == 0
        assert len(self.object_writer._writes) == self.object_writer._bytes == 0


@asynccontextmanager
async def bench_at(folder: Path, pace: Pace) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        bench = Bench(folder, nursery, pace)
        try:
            await bench.disk.check()
            await nursery.start(bench.pool.run)
            nursery.start_soon(bench.channel.run)
            nursery.start_soon(supervise, bench.writer.run)
            nursery.start_soon(supervise, bench.object_writer.run)
            await trio.testing.wait_all_tasks_blocked()
            yield bench
        finally:
            nursery.cancel_scope.cancel()
            bench.locks.close()
            await bench.disk.aclose()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("leaving", [1, 4], ids=["one", "all"])
async def test_a_request_that_is_cancelled_anywhere_leaves_nothing_and_takes_nothing_with_it(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    pace: Pace,
    leaving: int,
    after: bool,
) -> None:
    """Catches a lock, a place, a waiter or a write that a cancellation leaves behind for ever."""
    async with bench_at(tmp_path / "cache", pace) as bench:
        for step in count(1, EVERY):
            bench.turn(step)
            got: list[int | None] = []
            async with trio.open_nursery() as requests, trio.open_nursery() as gone:
                with at_step(gone.cancel_scope.cancel, step, after=after) as cancelled:
                    for place, name in enumerate(NAMES):
                        nursery = gone if place < leaving else requests
                        nursery.start_soon(bench.get, name, got)
                    with trio.CancelScope(shield=True):
                        await trio.sleep(LONG)
            assert len(got) >= len(NAMES) - leaving
            bench.check_at_rest()
            for name in bench.keys:
                await bench.get(name, got)
            await trio.sleep(LONG)
            bench.check_at_rest()
            places = [where for where, _ in bench.kept()]
            assert places.count("disk") == len(bench.keys)
            assert places.count("store") == len(bench.keys) + 1
            if not cancelled.has_come:
                break
    assert step > 30


@pytest.mark.parametrize("is_block", [False, True], ids=["purge", "block"])
@pytest.mark.parametrize(
    ("slow", "kept"),
    [
        ("", ""),
        ("fetch", ""),
        ("transform", ""),
        ("disk writes", ""),
        ("store writes", ""),
        ("disk reads", "disk"),
        ("store reads", "store"),
    ],
    ids=lambda each: each or "nothing",
)
async def test_nothing_from_before_a_decision_is_kept_or_served_after_it(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    pace: Pace,
    slow: str,
    kept: str,
    is_block: bool,
) -> None:
    """Catches work that a purge or a block meets anywhere, and that brings back what went by it."""
    async with bench_at(tmp_path / "cache", pace) as bench:
        for step in count(1, EVERY):
            bench.turn(step)
            await bench.keep(kept)
            pace.slow = slow
            story = Story(bench, is_block)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(story.carry_out, nursery)
                await trio.testing.wait_all_tasks_blocked()
                with at_step(story.decide, step, after=bool(step % 2)) as decided:
                    for name in NAMES:
                        nursery.start_soon(bench.get, name, story.got)
                    await trio.sleep(LONG)
                if not decided.has_come:
                    nursery.cancel_scope.cancel()
            if not decided.has_come:
                break
            await trio.sleep(LONG)
            story.check()
            bench.check_at_rest()
            assert len(story.got) == len(story.late) == len(NAMES)
            pace.slow = ""
    assert step > 30


class Story:
    """A decision about a blob, carried out as ``Moderator`` does.

    Attributes:
        got: what requests before it got.
        late: what those after its answer got.
    """

    def __init__(self, bench: Bench, is_block: bool) -> None:
        self._bench = bench
        self._is_block = is_block
        self._in_force = trio.Event()
        self._before = 0
        self.got: list[int | None] = []
        self.late: list[int | None] = []

    def decide(self) -> None:
        """Put it in force."""
        bench = self._bench
        self._before = bench.fetches
        bench.decided.is_purging = True
        if self._is_block:
            bench.decided.blocked.add(bench.blob.did)
        bench.service.forget(Selection(did=bench.blob.did))
        self._in_force.set()

    async def carry_out(self, nursery: trio.Nursery) -> None:
        bench = self._bench
        meant = Selection(did=bench.blob.did)
        await self._in_force.wait()
        await self._begun()
        await bench.store.purge(meant)
        await bench.writer.purge(meant)
        bench.decided.is_purging = False
        bench.service.forget(meant)
        await self._begun()
        # It is answered now.
        self.check()
        for name in NAMES:
            nursery.start_soon(bench.get, name, self.late)

    async def _begun(self) -> None:
        await self._bench.writer.begun()
        await self._bench.object_writer.begun()

    def check(self) -> None:
        """Check that nothing is there from before, and of what is blocked nothing at all."""
        kept = self._bench.kept()
        assert [each for each in kept if self._is_block or each[1] <= self._before] == []
        if self._is_block:
            assert set(self.late) <= {None}
        else:
            assert all(each is not None and each > self._before for each in self.late)


class RecordLocks:
    """Stands for the kernel's, with two processes of one descriptor each."""

    LOCK_EX, LOCK_NB, LOCK_UN = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN

    def __init__(self) -> None:
        self.held: dict[int, int] = {}

    def lockf(self, descriptor: int, operation: int, _length: int, byte: int) -> None:
        """See fcntl(2)."""
        if operation == fcntl.LOCK_UN:
            assert self.held.pop(byte) == descriptor
        elif self.held.setdefault(byte, descriptor) != descriptor:
            raise BlockingIOError(errno.EAGAIN, "locked")


@pytest.mark.parametrize("slow", ["", "transform", "disk writes"])
@pytest.mark.parametrize("leaving", [1, 2], ids=["one", "all of a process"])
async def test_two_processes_make_a_result_once_whoever_gives_up(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    pace: Pace,
    leaving: int,
    slow: str,
) -> None:
    """Catches a lock that outlasts who gave up, and one that is let go before the file is there."""
    locks = RecordLocks()
    monkeypatch.setattr(build_locks, "fcntl", locks)
    folder = tmp_path / "cache"
    async with bench_at(folder, pace) as mine, bench_at(folder, pace) as theirs:
        pace.slow = slow
        for step in count(1, EVERY):
            got: list[int | None] = []
            for bench in (mine, theirs):
                bench.turn(step)
                bench.renderers.made = 0
            async with trio.open_nursery() as requests, trio.open_nursery() as gone:
                with at_step(gone.cancel_scope.cancel, step, after=bool(step % 2)) as cancelled:
                    for place, bench in enumerate((mine, mine, theirs, theirs)):
                        nursery = gone if place < leaving else requests
                        nursery.start_soon(bench.get, "avatar", got)
                    with trio.CancelScope(shield=True):
                        await trio.sleep(LONG)
            made = mine.renderers.made + theirs.renderers.made
            assert made == 1, step
            assert len(got) >= 4 - leaving
            assert len(set(got)) == 1
            assert locks.held == {}
            mine.check_at_rest()
            theirs.check_at_rest()
            if not cancelled.has_come:
                break
    assert step > 30

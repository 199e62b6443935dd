"""The processing pool: never more at once than it may, and nothing left of who goes away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from proxy.config import Config
from proxy.errors import Busy, UndecodableImage
from proxy.formats import Format
from proxy.presets import DEFAULT_PRESETS, Preset
from proxy.process import pool as pool_module
from proxy.process.pipeline import Rendered
from proxy.process.pool import (
    PoolStatistics,
    Processed,
    ProcessingPool,
    cpus_of_this_process,
)
from tests.fakes.world import tiny_jpeg

PRESET = DEFAULT_PRESETS["avatar_thumbnail"]
IDLE = PoolStatistics(0, 0)


def config(threads: int = 2, queue_wait: float = 60) -> Config:
    # "thread": what runs in the threads is replaced here.
    return Config.model_validate(
        {"process": {"threads": threads, "queue_wait": queue_wait, "isolation": "thread"}}
    )


class FakeRender:
    """Takes the place of the pipeline, in its threads: waits for ``finish``, once for each."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.error: Exception | None = None
        self.running = 0
        self.most_running = 0
        self.sources: list[bytes] = []

    def __call__(
        self, source: bytes, preset: Preset, output: Format | None, *, max_pixels: int
    ) -> Rendered:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.sources.append(source)
        # So that no failing test leaves a thread behind.
        self._permits.acquire(timeout=30)
        with self._lock:
            self.running -= 1
        if self.error is not None:
            raise self.error
        return Rendered(b"made of " + source, Format.JPEG)

    def finish(self, count: int = 1) -> None:
        self._permits.release(count)


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRender]:
    fake = FakeRender()
    monkeypatch.setattr(pool_module, "render", fake)
    yield fake
    fake.finish(1000)


class Transforms:
    """Concurrent transforms, and what became of each."""

    def __init__(self, nursery: trio.Nursery, pool: ProcessingPool) -> None:
        self._nursery = nursery
        self._pool = pool
        self._progress = trio.Event()
        self.started: list[bytes] = []
        self.results: list[Processed] = []
        self.errors: list[Exception] = []
        self.cancelled = 0

    def ask(self, source: bytes) -> trio.CancelScope:
        scope = trio.CancelScope()
        self._nursery.start_soon(self._ask, source, scope)
        return scope

    async def _ask(self, source: bytes, scope: trio.CancelScope) -> None:
        def on_start() -> None:
            self.started.append(source)
            self._progress.set()

        try:
            with scope:
                result = await self._pool.process(source, PRESET, None, on_start=on_start)
                self.results.append(result)
            self.cancelled += scope.cancelled_caught
        except Exception as error:
            self.errors.append(error)
        self._progress.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what threads bring about."""
        with trio.fail_after(30):
            while not condition():
                self._progress = trio.Event()
                await self._progress.wait()
        await trio.testing.wait_all_tasks_blocked()


async def test_a_pool_without_a_limiter_of_its_own_takes_every_cpu(
    nursery: trio.Nursery, render: FakeRender
) -> None:
    pool = ProcessingPool(config(threads=2))
    transforms = Transforms(nursery, pool)
    for number in range(6):
        transforms.ask(b"%d" % number)
    await transforms.until(lambda: len(transforms.started) == 2)
    assert pool.statistics() == PoolStatistics(running=2, waiting=4)
    for finished in range(1, 7):
        render.finish()
        await transforms.until(lambda finished=finished: len(transforms.results) == finished)  # type: ignore[misc]
    assert render.most_running <= 2
    assert pool.statistics() == IDLE
    assert sorted(result.data for result in transforms.results) == [
        b"made of %d" % number for number in range(6)
    ]


async def test_transforms_are_served_last_in_first_out(
    nursery: trio.Nursery, render: FakeRender
) -> None:
    transforms = Transforms(nursery, ProcessingPool(config(threads=1)))
    sources = [b"%d" % number for number in range(5)]
    for source in sources:
        transforms.ask(source)
        await trio.testing.wait_all_tasks_blocked()
    render.finish(5)
    await transforms.until(lambda: len(transforms.results) == 5)
    assert render.sources == transforms.started == sources


async def test_a_default_of_no_threads_means_none(render: FakeRender) -> None:
    render.finish()
    assert (await ProcessingPool(config(threads=0)).process(b"x", PRESET, None)).data
    assert cpus_of_this_process() >= 1


async def test_who_leaves_while_waiting_leaves_a_token_taken_or_is_served_all_the_same(
    nursery: trio.Nursery, render: FakeRender
) -> None:
    pool = ProcessingPool(config(threads=1))
    transforms = Transforms(nursery, pool)
    transforms.ask(b"running")
    await transforms.until(lambda: transforms.started == [b"running"])
    scopes = [transforms.ask(b"left %d" % number) for number in range(5)]
    transforms.ask(b"stays")
    await trio.testing.wait_all_tasks_blocked()
    for scope in scopes:
        scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert pool.statistics() == PoolStatistics(running=1, waiting=1)
    assert transforms.cancelled == 5
    render.finish(2)
    await transforms.until(lambda: len(transforms.results) == 2)
    assert render.sources == transforms.started == [b"running", b"stays"]
    assert pool.statistics() == IDLE


async def test_a_cancelled_transform_gives_its_cpu_away_while_it_still_runs(
    nursery: trio.Nursery, render: FakeRender
) -> None:
    pool = ProcessingPool(config(threads=1))
    transforms = Transforms(nursery, pool)
    scope = transforms.ask(b"running")
    await transforms.until(lambda: transforms.started == [b"running"])
    scope.cancel()
    transforms.ask(b"next")
    await trio.testing.wait_all_tasks_blocked()
    assert pool.statistics() == PoolStatistics(running=1, waiting=1)
    assert transforms.started == [b"running"]
    render.finish()
    # Finished, it is not thrown away either: its result is good for the cache.
    await transforms.until(lambda: len(transforms.results) == 1)
    assert transforms.results[0].data == b"made of running"
    render.finish()
    await transforms.until(lambda: len(transforms.results) == 2)
    assert render.most_running == 1


async def test_a_wait_for_a_turn_has_no_end(nursery: trio.Nursery, render: FakeRender) -> None:
    # No wait at all, so that no test has to sleep: only a free thread is a turn.
    pool = ProcessingPool(config(threads=1, queue_wait=0))
    transforms = Transforms(nursery, pool)
    transforms.ask(b"running")
    await transforms.until(lambda: transforms.started == [b"running"])
    transforms.ask(b"too many")
    await transforms.until(lambda: len(transforms.errors) == 1)
    assert type(transforms.errors[0]) is Busy
    assert pool.statistics() == PoolStatistics(running=1, waiting=0)
    render.finish()
    # However long the one that has its turn takes, it is never too late for it.
    await transforms.until(lambda: len(transforms.results) == 1)
    render.finish()
    transforms.ask(b"later")
    await transforms.until(lambda: len(transforms.results) == 2)
    assert transforms.started == [b"running", b"later"]


@pytest.mark.parametrize("error", [UndecodableImage("cut"), ZeroDivisionError()])
async def test_a_failure_keeps_its_thread(
    nursery: trio.Nursery, render: FakeRender, error: Exception
) -> None:
    pool = ProcessingPool(config(threads=1))
    transforms = Transforms(nursery, pool)
    render.error = error
    transforms.ask(b"broken")
    render.finish()
    await transforms.until(lambda: len(transforms.errors) == 1)
    assert transforms.errors == [error]
    assert pool.statistics() == IDLE
    render.error = None
    transforms.ask(b"whole")
    render.finish()
    await transforms.until(lambda: len(transforms.results) == 1)


async def test_a_transform_says_that_it_began_before_it_has_a_turn_or_not_at_all(
    nursery: trio.Nursery, render: FakeRender
) -> None:
    transforms = Transforms(nursery, ProcessingPool(config(threads=1)))
    transforms.ask(b"first")
    transforms.ask(b"second")
    await transforms.until(lambda: transforms.started != [])
    assert len(transforms.started) == 1
    render.finish(2)
    await transforms.until(lambda: len(transforms.results) == 2)
    assert sorted(transforms.started) == [b"first", b"second"]
    for result in transforms.results:
        assert result.queue_seconds >= 0
        assert result.process_seconds >= 0


async def test_the_pool_runs_another_pipeline_than_the_rest(nursery: trio.Nursery) -> None:
    pool = ProcessingPool(config())
    made = await pool.process(tiny_jpeg(), PRESET, Format.WEBP)
    assert made.format is Format.WEBP
    assert made.data[8:12] == b"WEBP"

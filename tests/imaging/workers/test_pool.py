"""The processing pool: never more at once than it may, and nothing left of who goes away."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest
import trio
import trio.testing

from proxy.config import Config
from proxy.errors import Busy, UndecodableImage
from proxy.imaging import pipeline
from proxy.imaging.memory_estimate import Estimate
from proxy.imaging.recipes import Outcome, Recipe, Rendered
from proxy.imaging.workers.admission_gate import AdmissionGate, GateLimits, Reservation
from proxy.imaging.workers.batch import Batch, Call
from proxy.imaging.workers.fair_shares import UNKNOWN
from proxy.imaging.workers.ipc import MOST_RECIPES
from proxy.imaging.workers.pool import (
    PoolStatistics,
    Processed,
    ProcessingPool,
)
from proxy.model.formats import Format
from proxy.model.presets import DEFAULT_PRESETS, Preset
from proxy.shared.machine import cpus_of_this_process
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
        self.recipes: list[Sequence[Recipe]] = []

    def __call__(
        self, source: bytes, recipes: Sequence[Recipe], *, max_pixels: int
    ) -> Iterator[Outcome]:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.sources.append(source)
            self.recipes.append(recipes)
        for _ in recipes:
            # So that no failing test leaves a thread behind.
            self._permits.acquire(timeout=30)
            yield self.error or Rendered(b"made of " + source, Format.JPEG)
        with self._lock:
            self.running -= 1

    def finish(self, count: int = 1) -> None:
        self._permits.release(count)


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRender]:
    fake = FakeRender()
    monkeypatch.setattr(pipeline, "render_each", fake)
    yield fake
    fake.finish(1000)


Start = Callable[[Config], Awaitable[ProcessingPool]]


@pytest.fixture
def start(nursery: trio.Nursery) -> Start:
    """Opens pools that run until the test ends."""

    async def start(config: Config) -> ProcessingPool:
        pool = ProcessingPool(config)
        await nursery.start(pool.run)
        return pool

    return start


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

    def ask(self, source: bytes, preset: Preset = PRESET) -> trio.CancelScope:
        scope = trio.CancelScope()
        self._nursery.start_soon(self._ask, source, preset, scope)
        return scope

    async def _ask(self, source: bytes, preset: Preset, scope: trio.CancelScope) -> None:
        def on_start() -> None:
            self.started.append(source)
            self._progress.set()

        try:
            with scope:
                result = await self._pool.process(source, preset, None, on_start=on_start)
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


async def test_no_more_transforms_run_than_the_pool_has_threads(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: a pool without a limiter of its own takes every CPU."""
    pool = await start(config(threads=2))
    transforms = Transforms(nursery, pool)
    for number in range(6):
        transforms.ask(b"%d" % number)
    await transforms.until(lambda: len(transforms.started) == 2)
    assert pool.statistics() == PoolStatistics(running=2, waiting=4)
    # They wait at the gate, where their order is decided, and not for a token.
    assert pool.limiter.total_tokens == 2
    assert pool.limiter.statistics().tasks_waiting == 0
    assert pool.gate.statistics().admitted == 2
    for finished in range(1, 7):
        render.finish()
        await transforms.until(lambda finished=finished: len(transforms.results) == finished)  # type: ignore[misc]
    assert render.most_running <= 2
    assert pool.statistics() == IDLE
    assert sorted(result.data for result in transforms.results) == [
        b"made of %d" % number for number in range(6)
    ]


async def test_transforms_are_served_in_their_order(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: transforms are served last in first out."""
    transforms = Transforms(nursery, await start(config(threads=1)))
    sources = [b"%d" % number for number in range(5)]
    for source in sources:
        transforms.ask(source)
        await trio.testing.wait_all_tasks_blocked()
    render.finish(5)
    await transforms.until(lambda: len(transforms.results) == 5)
    assert render.sources == transforms.started == sources


async def test_without_a_number_the_pool_has_at_least_one_thread(
    render: FakeRender, start: Start
) -> None:
    """Catches: a default of 0 threads that is taken as it is."""
    render.finish()
    assert (await (await start(config(threads=0))).process(b"x", PRESET, None)).data
    assert cpus_of_this_process() >= 1


async def test_a_cancelled_wait_frees_its_place_and_is_not_served(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: a cancelled wait keeps its place, or its transform runs."""
    pool = await start(config(threads=1))
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


async def test_a_cancelled_transform_keeps_its_place_while_it_runs(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: a cancelled transform gives its CPU away while it still runs."""
    pool = await start(config(threads=1))
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


async def test_a_wait_for_a_place_ends_as_busy(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: a wait for a place has no end."""
    # No wait at all, so that no test has to sleep: only a free token is taken.
    pool = await start(config(threads=1, queue_wait=0))
    transforms = Transforms(nursery, pool)
    transforms.ask(b"running")
    await transforms.until(lambda: transforms.started == [b"running"])
    transforms.ask(b"too many")
    await transforms.until(lambda: len(transforms.errors) == 1)
    assert type(transforms.errors[0]) is Busy
    assert pool.statistics() == PoolStatistics(running=1, waiting=0)
    render.finish()
    # A transform that has begun may take longer than the wait that is allowed.
    await transforms.until(lambda: len(transforms.results) == 1)
    render.finish()
    transforms.ask(b"later")
    await transforms.until(lambda: len(transforms.results) == 2)
    assert transforms.started == [b"running", b"later"]


@pytest.mark.parametrize("error", [UndecodableImage("cut"), ZeroDivisionError()])
async def test_a_failure_frees_its_thread(
    nursery: trio.Nursery, render: FakeRender, error: Exception, start: Start
) -> None:
    """Catches: a failure keeps its thread."""
    pool = await start(config(threads=1))
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


async def test_a_transform_says_that_it_began_once_it_has_a_place(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: a transform says that it began before it has a place, or never."""
    transforms = Transforms(nursery, await start(config(threads=1)))
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


async def test_the_pool_runs_the_one_pipeline(nursery: trio.Nursery, start: Start) -> None:
    """Catches: the pool runs another pipeline than the rest."""
    pool = await start(config())
    made = await pool.process(tiny_jpeg(), PRESET, Format.WEBP)
    assert made.format is Format.WEBP
    assert made.data[8:12] == b"WEBP"


# Calls for one source


PRESETS = [DEFAULT_PRESETS[name] for name in ("avatar", "banner", "content_preview")]
BLOB = b"a blob that several presets are asked of"


async def test_presets_that_are_asked_for_together_share_a_place(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: presets that are asked for together take a place each."""
    pool = await start(config(threads=2))
    transforms = Transforms(nursery, pool)
    for preset in PRESETS:
        transforms.ask(BLOB, preset)
    await transforms.until(lambda: len(transforms.started) == 3)
    assert pool.statistics() == PoolStatistics(running=1, waiting=0)
    # Each is answered when it is done, not when all are.
    for finished in range(1, 4):
        render.finish()
        await transforms.until(lambda finished=finished: len(transforms.results) == finished)  # type: ignore[misc]
    assert render.sources == [BLOB]
    assert sorted(presets_of(render.recipes[0])) == sorted(widths(PRESETS))
    assert pool.statistics() == IDLE
    for result in transforms.results:
        assert result.queue_seconds >= 0
        assert result.process_seconds >= 0


def presets_of(recipes: Sequence[Recipe]) -> list[int]:
    return widths([recipe.preset for recipe in recipes])


def widths(presets: Sequence[Preset]) -> list[int]:
    return [preset.width for preset in presets]


async def test_a_preset_that_comes_while_another_waits_joins_it(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: a preset that comes while another waits waits behind it."""
    pool = await start(config(threads=1))
    transforms = Transforms(nursery, pool)
    transforms.ask(b"running")
    await transforms.until(lambda: transforms.started == [b"running"])
    for source, preset in ((BLOB, PRESETS[0]), (b"other", PRESET), (BLOB, PRESETS[1])):
        transforms.ask(source, preset)
        await trio.testing.wait_all_tasks_blocked()
    assert pool.statistics() == PoolStatistics(running=1, waiting=3)
    render.finish()
    await transforms.until(lambda: len(transforms.started) == 3)
    # From here on it is too late to join.
    transforms.ask(BLOB, PRESETS[2])
    render.finish(4)
    await transforms.until(lambda: len(transforms.results) == 5)
    assert render.sources == [b"running", BLOB, b"other", BLOB]
    assert [presets_of(recipes) for recipes in render.recipes[1::2]] == [
        widths(PRESETS[:2]),
        widths(PRESETS[2:]),
    ]


async def test_a_caller_that_leaves_a_waiting_job_takes_its_own_preset_out(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: a caller that leaves a waiting job cancels the others, or its preset is rendered."""
    pool = await start(config(threads=1))
    transforms = Transforms(nursery, pool)
    transforms.ask(b"running")
    await transforms.until(lambda: transforms.started == [b"running"])
    scopes = []
    for preset in PRESETS:
        scopes.append(transforms.ask(BLOB, preset))
        await trio.testing.wait_all_tasks_blocked()
    abandoned = [transforms.ask(b"nobody's", preset) for preset in PRESETS]
    await trio.testing.wait_all_tasks_blocked()
    for scope in (scopes[0], *abandoned):
        scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert transforms.cancelled == 4
    assert pool.statistics() == PoolStatistics(running=1, waiting=2)
    render.finish(3)
    await transforms.until(lambda: len(transforms.results) == 3)
    assert render.sources == [b"running", BLOB]
    assert presets_of(render.recipes[1]) == widths(PRESETS[1:])
    assert pool.statistics() == IDLE
    assert pool.gate.statistics().admitted == 0


async def test_a_caller_that_leaves_a_running_job_does_not_stop_it(
    nursery: trio.Nursery, render: FakeRender, start: Start
) -> None:
    """Catches: a caller that leaves stops the job for the others."""
    transforms = Transforms(nursery, await start(config(threads=1)))
    scopes = [transforms.ask(BLOB, preset) for preset in PRESETS]
    await transforms.until(lambda: len(transforms.started) == 3)
    for scope in scopes:
        scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    render.finish(3)
    await transforms.until(lambda: len(transforms.results) == 3)
    assert transforms.cancelled == 0


async def test_each_caller_of_a_job_has_a_patience_of_its_own(
    nursery: trio.Nursery, render: FakeRender, start: Start, mock_clock: trio.testing.MockClock
) -> None:
    """Catches: a caller that joins has the deadline of the first."""
    transforms = Transforms(nursery, await start(config(threads=1, queue_wait=5)))
    transforms.ask(b"running")
    await transforms.until(lambda: transforms.started == [b"running"])
    transforms.ask(BLOB, PRESETS[0])
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(3)
    transforms.ask(BLOB, PRESETS[1])
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(3)
    await transforms.until(lambda: len(transforms.errors) == 1)
    assert type(transforms.errors[0]) is Busy
    render.finish(2)
    await transforms.until(lambda: len(transforms.results) == 2)
    assert presets_of(render.recipes[1]) == widths(PRESETS[1:2])


async def test_a_failure_to_get_a_place_reaches_every_caller(
    nursery: trio.Nursery, render: FakeRender
) -> None:
    """Catches: a failure to get a place reaches one of the callers."""
    pool = ProcessingPool(config(threads=1))
    async with trio.open_nursery() as running:
        await running.start(pool.run)
        transforms = Transforms(nursery, pool)
        transforms.ask(b"running")
        await transforms.until(lambda: transforms.started == [b"running"])
        for preset in PRESETS:
            transforms.ask(BLOB, preset)
        await trio.testing.wait_all_tasks_blocked()
        render.finish()
        running.cancel_scope.cancel()
    await transforms.until(lambda: len(transforms.errors) == 3)
    # A copy each: one instance would collect the tracebacks of all.
    assert [type(error) for error in transforms.errors] == [Busy] * 3
    assert len({id(error) for error in transforms.errors}) == 3
    assert len(transforms.results) == 1
    with pytest.raises(Busy):
        await pool.process(BLOB, PRESET, None)


async def test_a_stop_in_threads_ends_a_job_after_the_result_at_hand(
    nursery: trio.Nursery, render: FakeRender
) -> None:
    """Catches a stop that makes the other results too: nobody will take them."""
    pool = ProcessingPool(config(threads=1))
    transforms = Transforms(nursery, pool)
    async with trio.open_nursery() as running:
        await running.start(pool.run)
        for preset in PRESETS:
            transforms.ask(BLOB, preset)
        await transforms.until(lambda: len(transforms.started) == 3)
        running.cancel_scope.cancel()
        render.finish()
    await transforms.until(lambda: len(transforms.errors) == 2)
    assert len(transforms.results) == 1
    assert [type(error) for error in transforms.errors] == [Busy] * 2
    assert pool.statistics() == IDLE


def call(source: bytes, memory: int, kept: int = 10, pixels: int = 1) -> Call:
    recipe = Recipe(preset=PRESET, output=None)
    return Call(source, UNKNOWN, recipe, Estimate(pixels, memory, kept, 1, 1.0), lambda: None)


async def test_a_job_grows_within_the_budget_and_its_estimate() -> None:
    """Catches: a job grows beyond the budget or beyond what it was estimated for."""
    gate = AdmissionGate(GateLimits(100, 100, 0, 1000))
    batch = Batch(call(BLOB, 60), gate, 5)
    assert not batch.take(call(BLOB, 95))
    assert not batch.take(call(b"another", 10))
    # After a picture that was larger than its header said.
    assert not batch.take(call(BLOB, 10, pixels=2))
    assert batch.take(call(BLOB, 80))
    assert batch.reservation.amount == 90
    for _ in range(MOST_RECIPES - 2):
        assert batch.take(call(BLOB, 10))
    assert not batch.take(call(BLOB, 10))
    assert len(batch.begin().orders) == MOST_RECIPES


async def test_a_job_that_was_admitted_grows_within_the_budget_until_it_begins() -> None:
    """Catches: a job that was admitted grows into the room of others."""
    gate = AdmissionGate(GateLimits(100, 100, 0, 1000))
    batch = Batch(call(BLOB, 40), gate, 5)
    async with gate.hold(batch.reservation), gate.hold(Reservation(45, b"")):
        assert batch.take(call(BLOB, 40))
        assert gate.statistics().admitted_bytes == 95
        assert not batch.take(call(BLOB, 50))
        assert gate.statistics().admitted_bytes == 95
        # A job that has begun may not be joined, however much memory is free.
        batch.begin()
        assert not batch.take(call(BLOB, 1))
    assert gate.statistics().admitted_bytes == 0

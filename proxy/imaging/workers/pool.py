"""The processing pool: threads that one capacity limiter owns, each driving a sandboxed worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

import trio

from proxy.config import Config
from proxy.errors import Busy, ImageTooLarge, ResultTooLarge, UndecodableImage
from proxy.imaging import memory_estimate as memory
from proxy.imaging.memory_estimate import Estimate
from proxy.imaging.pipeline import Outcome, Recipe
from proxy.imaging.workers.admission import Admission
from proxy.imaging.workers.batch import Batch, Call, Interrupted, Job
from proxy.imaging.workers.client import (
    BUSY_SECONDS,
    HELD,
    TIME_LIMIT,
    DeathReason,
    ImageWorker,
    ImageWorkers,
)
from proxy.imaging.workers.ipc import MOST_RECIPES
from proxy.imaging.workers.sandbox import Limits
from proxy.imaging.workers.threads import RenderThreads
from proxy.model.formats import Format
from proxy.model.presets import Preset


@dataclass(frozen=True, slots=True)
class Processed:
    """A result and what it took.

    Attributes:
        data, format: the encoded picture.
        queue_seconds: waiting for a turn, and for the results that the turn was shared with.
        process_seconds: decoding, unless such a result had done it, resampling and encoding.
    """

    data: bytes
    format: Format
    queue_seconds: float
    process_seconds: float


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Jobs that run, and transforms that wait for a turn."""

    running: int
    waiting: int


class Processor(Protocol):
    """Transforms pictures."""

    async def process(
        self,
        source: bytes,
        preset: Preset,
        output: Format | None,
        *,
        on_start: Callable[[], None] = ...,
    ) -> Processed:
        """Transform ``source`` by ``preset``.

        Cancellation while waiting leaves nothing behind; once ``on_start`` was called the
        transform runs to its end and its result is returned.

        Raises:
            UnsupportedImage, ImageTooLarge, UndecodableImage: from the picture.
            Busy: no turn within ``process.queue_wait``.
        """
        ...


def cpus_of_this_process() -> int:
    """CPUs that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ProcessingPool:
    """Runs the pipeline at most ``process.threads`` times at once, each driven from a thread.

    Calls for the same source, the same object, that come together or while one of them waits for
    its turn share that turn: the source is decoded once for them, and nothing else of it shows.

    Args:
        config: with ``process.isolation``: in worker processes, or in those threads themselves.
        on_death: is told why a worker died.
    """

    def __init__(
        self, config: Config, *, on_death: Callable[[DeathReason], None] = lambda reason: None
    ) -> None:
        settings = config.process
        self._threads = settings.threads or cpus_of_this_process()
        self._limiter = trio.CapacityLimiter(self._threads)
        self._queue_wait = settings.queue_wait
        self._max_pixels = settings.max_pixels
        budget = memory.budget(config)
        self._admission = Admission(budget, memory.waiting_room(config))
        self._turns: ImageWorkers | RenderThreads = RenderThreads(self._threads)
        if settings.isolation == "sandbox":
            # Time enough to be replaced between two jobs.
            cpu = int(BUSY_SECONDS + (MOST_RECIPES + 1) * TIME_LIMIT)
            self._turns = ImageWorkers(self._threads, Limits(budget + HELD, cpu), on_death)
        self._nursery: trio.Nursery | None = None
        self._waiting: set[Batch] = set()

    def statistics(self) -> PoolStatistics:
        """A snapshot, for metrics and tests."""
        running = int(self._limiter.statistics().borrowed_tokens)
        return PoolStatistics(running, sum(len(batch) for batch in self._waiting))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep workers and jobs running, for as long as ``process`` is to be called.

        Cancellation lets jobs that have begun end, and leaves no process behind; calls that wait
        for a turn get ``Busy``.
        """
        async with trio.open_nursery() as nursery:
            if isinstance(self._turns, ImageWorkers):
                await nursery.start(self._turns.run)
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def process(
        self,
        source: bytes,
        preset: Preset,
        output: Format | None,
        *,
        on_start: Callable[[], None] = lambda: None,
    ) -> Processed:
        """See ``Processor.process``."""
        came = trio.current_time()
        estimate = partial(memory.estimate, source, preset, output, max_pixels=self._max_pixels)
        found = estimate()
        ask = partial(self._ask, source, Recipe(preset=preset, output=output), on_start, came)
        try:
            return await ask(found)
        except ResultTooLarge:
            raise
        except ImageTooLarge:
            # The decoder may have found more than the header said: once more, with room for it.
            unlimited = estimate(trusting=False)
            if found.memory >= unlimited.memory:
                raise
            return await ask(unlimited)

    async def _ask(
        self,
        source: bytes,
        recipe: Recipe,
        on_start: Callable[[], None],
        came: float,
        estimate: Estimate,
    ) -> Processed:
        while True:
            call = Call(source, recipe, estimate, on_start)
            with call.patience:
                outcome = await call.outcome(self._batch_for(call))
                if isinstance(outcome, Interrupted):
                    continue
                if isinstance(outcome, Exception):
                    raise outcome
                queued, took = call.began - came, call.ended - call.began
                return Processed(outcome.data, outcome.format, queued, took)
            raise Busy(f"no turn in the processing pool within {self._queue_wait:g} s")

    def _batch_for(self, call: Call) -> Batch:
        """One that has taken it."""
        for batch in self._waiting:
            if batch.take(call):
                return batch
        if self._nursery is None:
            raise RuntimeError("nothing runs the processing pool")
        batch = Batch(call, self._admission, self._queue_wait)
        try:
            # It goes to work at the next step of Trio's loop: until then calls can join it.
            self._nursery.start_soon(self._drive, batch)
        except RuntimeError as error:  # the nursery has closed
            raise Busy("the processing pool has ended") from error
        self._waiting.add(batch)
        return batch

    async def _drive(self, batch: Batch) -> None:
        """A batch's job, from its wait for a turn to its last answer."""
        error: Exception | None = None
        try:
            with batch.scope:
                await self._work(batch)
        except UndecodableImage as death:
            # The worker died over one recipe. The others are not to pay for it.
            batch.answer(death)
            error = Interrupted()
        except Exception as failure:
            # Kept for the calls, who tell our errors from defects; the pool lives on.
            error = failure
        finally:
            self._waiting.discard(batch)
            if len(batch):
                batch.fail(error or Busy("the processing pool has ended"))

    async def _work(self, batch: Batch) -> None:
        # A free turn is taken without a wait, also where no wait is allowed.
        free = self._admission.statistics().admitted < self._threads
        if not free or not self._admission.has_room(batch.claim.amount):
            batch.wait()
        async with self._admission.room(batch.claim), self._turns.one() as turn:
            # Who has it has a thread too: there are as many.
            self._waiting.discard(batch)
            job = batch.begin()
            if not job.orders:
                return
            with trio.CancelScope(shield=True):
                last = await trio.to_thread.run_sync(
                    _each, turn, job, batch.answer, limiter=self._limiter
                )
        # Only now: who asks again at once finds the turn free.
        batch.answer(last)


def _each(
    turn: ImageWorker | RenderThreads, job: Job, answer: Callable[[Outcome], None]
) -> Outcome:
    """Give outcomes away as soon as they are there, and return the last. Runs in a thread."""
    outcomes = turn.run(job)
    for outcome in islice(outcomes, len(job.orders) - 1):
        trio.from_thread.run_sync(answer, outcome)
        del outcome  # an error holds what its frames held, pixels too
    (last,) = outcomes
    return last

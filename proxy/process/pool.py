"""The processing pool: threads that one capacity limiter owns, each driving a sandboxed worker."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from proxy.config import Config
from proxy.errors import Busy, ImageTooLarge, ResultTooLarge
from proxy.formats import Format
from proxy.presets import Preset
from proxy.process import memory
from proxy.process.admission import Admission
from proxy.process.memory import Estimate
from proxy.process.pipeline import Rendered, render
from proxy.process.sandbox import Limits
from proxy.process.wire import Recipe
from proxy.process.workers import BUSY_SECONDS, HELD, TIME_LIMIT, DeathReason, Workers


@dataclass(frozen=True, slots=True)
class Processed:
    """A result and what it took.

    Attributes:
        data, format: the encoded picture.
        queue_seconds: waiting for a turn.
        process_seconds: decoding, resampling and encoding.
    """

    data: bytes
    format: Format
    queue_seconds: float
    process_seconds: float


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Transforms that run, and that wait for a turn."""

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
        self._workers: Workers | None = None
        if settings.isolation == "sandbox":
            # Time enough to be replaced between two jobs.
            cpu = int(BUSY_SECONDS + 2 * TIME_LIMIT)
            self._workers = Workers(self._threads, Limits(budget + HELD, cpu), on_death)

    def statistics(self) -> PoolStatistics:
        """A snapshot, for metrics and tests."""
        limiter = self._limiter.statistics()
        waiting = limiter.tasks_waiting + self._admission.statistics().waiting
        if self._workers is not None:
            waiting += self._workers.waiting
        return PoolStatistics(int(limiter.borrowed_tokens), waiting)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running, for as long as ``process`` is to be called.

        Cancellation lets transforms that have begun end, and leaves no process behind.
        """
        if self._workers is None:
            task_status.started()
        else:
            await self._workers.run(task_status)

    async def process(
        self,
        source: bytes,
        preset: Preset,
        output: Format | None,
        *,
        on_start: Callable[[], None] = lambda: None,
    ) -> Processed:
        """See ``Processor.process``."""
        estimate = partial(memory.estimate, source, preset, output, max_pixels=self._max_pixels)
        found = estimate()
        recipe = Recipe(preset=preset, output=output)
        job = _Job(source, recipe, on_start, trio.current_time())
        try:
            return await self._admit(job, found)
        except ResultTooLarge:
            raise
        except ImageTooLarge:
            # The decoder may have found more than the header said: once more, with room for it.
            unlimited = estimate(trusting=False)
            if found.memory >= unlimited.memory:
                raise
            return await self._admit(job, unlimited)

    async def _admit(self, job: _Job, estimate: Estimate) -> Processed:
        # A free turn is taken without a wait, also where no wait is allowed.
        free = self._admission.statistics().admitted < self._threads
        free = free and self._admission.has_room(estimate.memory)
        with trio.move_on_after(math.inf if free else self._queue_wait) as patience:
            # A thread cannot be stopped half-way: Trio cancels the wait for a turn alone, and
            # returns the result of a transform that has begun.
            async with self._admission.room(estimate.memory, job.source):
                return await self._run(job, estimate, patience)
        raise Busy(f"no turn in the processing pool within {self._queue_wait:g} s")

    async def _run(self, job: _Job, estimate: Estimate, patience: trio.CancelScope) -> Processed:
        started = job.began

        def start() -> None:
            nonlocal started
            patience.deadline = math.inf
            started = trio.current_time()
            job.on_start()

        if self._workers is None:

            def work() -> Rendered:
                # The first thing in the thread: only now is it certain that a turn was had.
                trio.from_thread.run_sync(start)
                pixels = estimate.pixels
                return render(job.source, job.recipe.preset, job.recipe.output, max_pixels=pixels)

            rendered = await trio.to_thread.run_sync(work, limiter=self._limiter)
        else:
            async with self._workers.one() as worker:
                # Who has a worker has a turn: there are as many threads.
                start()
                with trio.CancelScope(shield=True):
                    rendered = await trio.to_thread.run_sync(
                        worker.run, job.source, job.recipe, estimate, limiter=self._limiter
                    )
        ended = trio.current_time()
        return Processed(rendered.data, rendered.format, started - job.began, ended - started)


@dataclass(frozen=True, slots=True)
class _Job:
    """A call of ``process``, and when it came."""

    source: bytes
    recipe: Recipe
    on_start: Callable[[], None]
    began: float

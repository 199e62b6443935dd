"""The processing pool: jobs pass the admission gate, and hold a token of one limiter.

The gate counts jobs, and bytes, estimated from the headers of the pictures. Each job runs in a
sandboxed worker process, or in a thread.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from mmap import PROT_READ, mmap
from typing import Protocol

import trio

from proxy.config import Config
from proxy.errors import Busy, ImageProxyError, ImageTooLarge, ResultTooCostly, ResultTooLarge
from proxy.imaging import memory_estimate as memory
from proxy.imaging.memory_estimate import Estimate
from proxy.imaging.recipes import Outcome, Recipe, Rendered
from proxy.imaging.workers.admission_gate import AdmissionGate, GateLimits, Reservation
from proxy.imaging.workers.batch import Batch, Call, Interrupted, Job
from proxy.imaging.workers.client import BUSY_SECONDS, HELD, DeathReason, ImageWorkers, longest
from proxy.imaging.workers.fair_shares import UNKNOWN, Publisher
from proxy.imaging.workers.ipc import MOST_RECIPES
from proxy.imaging.workers.sandbox import Limits
from proxy.imaging.workers.shared_source import VideoSource
from proxy.model.formats import Format
from proxy.model.presets import Preset
from proxy.shared.machine import cpus_of_this_process, memory_of_this_process


@dataclass(frozen=True, slots=True)
class Processed:
    """A result, and the time it took.

    Attributes:
        data, format: the encoded picture.
        queue_seconds: the wait until the job began, and for earlier results of the same job.
        process_seconds: the time for resampling and encoding, and for decoding unless an earlier
            result of the job did it.
    """

    data: bytes
    format: Format
    queue_seconds: float
    process_seconds: float


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """How busy the pool is.

    Attributes:
        running: jobs that have a token of the limiter.
        waiting: transforms whose job has not begun.
    """

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
        publisher: Publisher = ...,
        on_start: Callable[[], None] = ...,
    ) -> Processed:
        """Transform ``source`` by ``preset``.

        Where jobs have to wait, each publisher gets a fair share.

        Cancellation while waiting leaves nothing behind. Once ``on_start`` was called,
        cancellation is ignored: the transform runs to its end and its result is returned.

        Raises:
            UnsupportedImage, ImageTooLarge, UndecodableImage: because of the picture.
            Busy: the job did not begin within ``process.queue_wait``, or the pool has ended.
        """
        ...


class PosterMaker(Protocol):
    """Makes posters of videos."""

    async def poster(
        self,
        video: VideoSource,
        preset: Preset,
        output: Format,
        *,
        publisher: Publisher = ...,
        on_start: Callable[[], None] = ...,
    ) -> Processed:
        """Transform the first frame of ``video`` that is not black by ``preset``.

        Cancellation leaves nothing behind. While the video is decoded, it waits for the end.

        Raises:
            UnsupportedImage, ImageTooLarge, UndecodableImage, ResultTooCostly: because of the
                video.
            Busy: it did not begin within ``process.queue_wait``.
        """
        ...


class RenderThreads:
    """Replaces ``ImageWorkers`` if there are no processes: jobs run in the threads of the pool.

    A thread cannot be killed, and has no time limit: a stopped job ends after its current recipe.
    """

    def __init__(self) -> None:
        # The codecs: where workers have them, this process goes without.
        from proxy.imaging.pipeline import render_each

        self._render_each = render_each

    async def run_video(
        self, video: VideoSource, job: Job, limits: Limits, jobs: trio.CapacityLimiter
    ) -> Outcome:
        """See ``ImageWorkers.run_video``. Nothing but the pool bounds it."""
        return await trio.to_thread.run_sync(_poster_in_thread, video, job, limiter=jobs)

    async def run_job(
        self, batch: Batch, tell: Callable[[Outcome], object], jobs: trio.CapacityLimiter
    ) -> Outcome:
        """See ``ImageWorkers.run_job``."""
        return await trio.to_thread.run_sync(self._run_in_thread, batch, tell, limiter=jobs)

    def _run_in_thread(self, batch: Batch, tell: Callable[[Outcome], object]) -> Outcome:
        job = trio.from_thread.run(self._begin, batch)
        recipes = [recipe for recipe, _ in job.orders]
        outcomes = self._render_each(job.source, recipes, max_pixels=job.pixels)
        for outcome in islice(outcomes, len(recipes) - 1):
            trio.from_thread.run_sync(tell, outcome)
            del outcome  # an error keeps its frames alive, and with them pixels
            # On a stop, the remaining results are not needed.
            trio.from_thread.check_cancelled()
        (last,) = outcomes
        return last

    async def _begin(self, batch: Batch) -> Job:
        await trio.lowlevel.checkpoint_if_cancelled()
        return batch.begin()


def _poster_in_thread(video: VideoSource, job: Job) -> Outcome:
    from proxy.imaging.poster import render_posters

    descriptor = video.to_read()
    try:
        with mmap(descriptor, video.room, prot=PROT_READ) as source:
            recipes = [recipe for recipe, _ in job.orders]
            (outcome,) = render_posters(source, recipes, max_pixels=job.pixels)
            return outcome
    finally:
        os.close(descriptor)


class ProcessingPool:
    """Runs at most ``process.threads`` jobs at the same time, within a shared memory budget.

    Calls for the same source (the same object) share a job if they arrive together, or while one
    of them waits. The source is decoded once for all of them; each gets its own result or error.

    Args:
        config: ``process.isolation`` selects worker processes, or the threads of the pool.
        on_death: called with the reason when a worker died.
        on_defect: called for each result that a defect of ours prevented.
        on_decoders: called with the versions of what decodes, by name, whenever a worker starts.

    Attributes:
        gate: what a job passes before it begins.
        limiter: has a token for each job; the gate admits no more.
    """

    def __init__(
        self,
        config: Config,
        *,
        on_death: Callable[[DeathReason], None] = lambda reason: None,
        on_defect: Callable[[], None] = lambda: None,
        on_decoders: Callable[[Mapping[str, str]], None] = lambda found: None,
    ) -> None:
        settings = config.process
        threads = settings.threads or cpus_of_this_process()
        budget = memory.budget_within(config, threads, memory_of_this_process())
        self.gate = AdmissionGate(
            GateLimits(threads, budget, memory.RESERVE, memory.waiting_room(config))
        )
        self.limiter = trio.CapacityLimiter(threads)
        self._queue_wait = settings.queue_wait
        self._max_pixels = settings.max_pixels
        self._max_source = config.fetch.max_source_bytes
        self._animation = config.animation
        self._renderers: ImageWorkers | RenderThreads
        if settings.isolation == "sandbox":
            # Enough CPU time that a worker is replaced before it reaches this limit.
            most = longest(memory.most_seconds(config))
            cpu = int(BUSY_SECONDS + (MOST_RECIPES + 1) * most)
            self._renderers = ImageWorkers(
                threads, Limits(budget + HELD, cpu), self._max_source, on_death, on_decoders
            )
        else:
            self._renderers = RenderThreads()
            from proxy.imaging.decoders import decoders

            on_decoders(decoders(sys.modules.get))
        self._on_defect = on_defect
        self._nursery: trio.Nursery | None = None
        self._batches: set[Batch] = set()

    def statistics(self) -> PoolStatistics:
        """Return the current numbers, for metrics and tests."""
        waiting = sum(len(batch) for batch in self._batches if not batch.has_begun)
        return PoolStatistics(int(self.limiter.borrowed_tokens), waiting)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the workers and the jobs; ``process`` works only while this runs.

        Cancellation kills the workers, so that no job delays a stop, and no process is left behind;
        every call without a result gets ``Busy``. Without workers, cancellation waits until each
        job has made its current result.
        """
        async with trio.open_nursery() as nursery:
            if isinstance(self._renderers, ImageWorkers):
                await nursery.start(self._renderers.run, name="image_workers")
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def process(
        self,
        source: bytes,
        preset: Preset,
        output: Format | None,
        *,
        publisher: Publisher = UNKNOWN,
        on_start: Callable[[], None] = lambda: None,
    ) -> Processed:
        """See ``Processor.process``."""
        came = trio.current_time()
        if len(source) > self._max_source:
            raise ImageTooLarge(f"a source of {len(source)} bytes")
        estimate = partial(
            memory.estimate,
            source,
            preset,
            output,
            max_pixels=self._max_pixels,
            animation=self._animation,
        )
        found = estimate()
        recipe = Recipe(preset=preset, output=output, animation=self._animation)
        ask = partial(self._ask, source, publisher, recipe, on_start, came)
        try:
            return await ask(found)
        except ResultTooLarge:
            raise
        except ImageTooLarge:
            # The decoder may have found more than the header declares: retry with enough room.
            unlimited = estimate(trusting=False)
            if found.memory >= unlimited.memory:
                raise
            return await ask(unlimited)

    async def poster(
        self,
        video: VideoSource,
        preset: Preset,
        output: Format,
        *,
        publisher: Publisher = UNKNOWN,
        on_start: Callable[[], None] = lambda: None,
    ) -> Processed:
        """See ``PosterMaker.poster``."""
        came = trio.current_time()
        recipe = Recipe(preset=preset, output=output)
        amount = min(memory.POSTER_MEMORY, self.gate.limits.most)
        estimate = Estimate(
            self._max_pixels, amount, 0, memory.POSTER_RESULT, memory.POSTER_SECONDS
        )
        job = Job(b"", ((recipe, estimate),))
        limits = Limits(amount, int(memory.POSTER_SECONDS) + 1)
        with trio.CancelScope() as patience:

            def limit_wait() -> None:
                patience.deadline = trio.current_time() + self._queue_wait

            async with self.gate.hold(Reservation(amount, b"", publisher), on_wait=limit_wait):
                patience.deadline = math.inf
                on_start()
                began = trio.current_time()
                try:
                    outcome = await self._renderers.run_video(video, job, limits, self.limiter)
                except Exception as error:
                    if not isinstance(error, ImageProxyError):
                        self._on_defect()
                    raise
            if isinstance(outcome, Exception):
                if not isinstance(outcome, ImageProxyError):
                    self._on_defect()
                raise outcome
            took = trio.current_time() - began
            return Processed(outcome.data, outcome.format, began - came, took)
        raise Busy(f"the transform did not begin within {self._queue_wait:g} s")

    async def _ask(
        self,
        source: bytes,
        publisher: Publisher,
        recipe: Recipe,
        on_start: Callable[[], None],
        came: float,
        estimate: Estimate,
    ) -> Processed:
        while True:
            call = Call(source, publisher, recipe, estimate, on_start)
            with call.patience:
                outcome = await call.outcome(self._batch_for(call))
                if isinstance(outcome, Interrupted):
                    continue
                if isinstance(outcome, Exception):
                    raise outcome
                queued, took = call.began - came, call.ended - call.began
                return Processed(outcome.data, outcome.format, queued, took)
            raise Busy(f"the transform did not begin within {self._queue_wait:g} s")

    def _batch_for(self, call: Call) -> Batch:
        """Add ``call`` to a batch, new or waiting, and return the batch."""
        for batch in self._batches:
            if batch.take(call):
                return batch
        if self._nursery is None:
            raise RuntimeError("nothing runs the processing pool")
        batch = Batch(call, self.gate, self._queue_wait)
        try:
            # It starts at the next step of Trio's loop; until then calls can join it.
            self._nursery.start_soon(self._drive, batch, name="job")
        except RuntimeError as error:  # the nursery has closed
            raise Busy("the processing pool has ended") from error
        self._batches.add(batch)
        return batch

    async def _drive(self, batch: Batch) -> None:
        """Run the job of ``batch``, from the wait at the gate to the last answer."""
        error: Exception | None = None
        try:
            with batch.scope:
                await self._work(batch)
        except ResultTooCostly as death:
            # The worker died at one recipe. The others are tried again in another job.
            batch.answer(death)
            error = Interrupted()
        except Exception as failure:
            # The calls get the error, and tell expected errors from defects. The pool goes on.
            error = failure
        finally:
            self._batches.discard(batch)
            if len(batch):
                batch.fail(error or Busy("the processing pool has ended"))

    async def _work(self, batch: Batch) -> None:
        # A job that is admitted at once begins, even if no wait is allowed. The gate admits no more
        # jobs than there are tokens, so a token is free.
        async with self.gate.hold(batch.reservation, on_wait=batch.limit_wait):
            last = await self._renderers.run_job(batch, partial(self._answer, batch), self.limiter)
        # Answer after releasing the place and the token: they are free for the caller's next call.
        self._answer(batch, last)

    def _answer(self, batch: Batch, outcome: Outcome) -> None:
        if not isinstance(outcome, Rendered | ImageProxyError):
            self._on_defect()
        batch.answer(outcome)

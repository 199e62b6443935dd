"""The CPU-limited processing pool: threads that one capacity limiter owns."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from proxy.config import Config
from proxy.errors import Busy
from proxy.formats import Format
from proxy.presets import Preset
from proxy.process.pipeline import Rendered, render


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
    """Runs the pipeline in at most ``process.threads`` threads."""

    def __init__(self, config: Config) -> None:
        settings = config.process
        self._limiter = trio.CapacityLimiter(settings.threads or cpus_of_this_process())
        self._queue_wait = settings.queue_wait
        self._max_pixels = settings.max_pixels

    def statistics(self) -> PoolStatistics:
        """A snapshot, for metrics and tests."""
        limiter = self._limiter.statistics()
        return PoolStatistics(int(limiter.borrowed_tokens), limiter.tasks_waiting)

    async def process(
        self,
        source: bytes,
        preset: Preset,
        output: Format | None,
        *,
        on_start: Callable[[], None] = lambda: None,
    ) -> Processed:
        """See ``Processor.process``."""
        began = trio.current_time()
        started = began

        def start() -> None:
            nonlocal started
            patience.deadline = math.inf
            started = trio.current_time()
            on_start()

        def work() -> Rendered:
            # The first thing in the thread: only now is it certain that a turn was had.
            trio.from_thread.run_sync(start)
            return render(source, preset, output, max_pixels=self._max_pixels)

        # A free turn is taken without a wait, also where no wait is allowed.
        wait = math.inf if self._limiter.available_tokens else self._queue_wait
        with trio.move_on_after(wait) as patience:
            # A thread cannot be stopped half-way: Trio cancels the wait for a turn alone, and
            # returns the result of a transform that has begun.
            rendered = await trio.to_thread.run_sync(work, limiter=self._limiter)
        if patience.cancelled_caught:
            raise Busy(f"no turn in the processing pool within {self._queue_wait:g} s")
        return Processed(
            rendered.data, rendered.format, started - began, trio.current_time() - started
        )

"""What ``workers`` offers, without processes: jobs run in the threads that would drive them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import trio

from proxy.imaging.pipeline import Outcome, render_each
from proxy.imaging.workers.batch import Job


class RenderThreads:
    """Turns for as many threads as there may be.

    Args:
        count: of threads.
    """

    def __init__(self, count: int) -> None:
        self._turns = trio.Semaphore(count, max_value=count)

    @asynccontextmanager
    async def one(self) -> AsyncIterator[RenderThreads]:
        """Wait for a turn, and have it for the time of the block."""
        async with self._turns:
            yield self

    def run(self, job: Job) -> Iterator[Outcome]:
        """Transform a picture: an outcome for each recipe, in their order."""
        recipes = [recipe for recipe, _ in job.orders]
        return render_each(job.source, recipes, max_pixels=job.pixels)

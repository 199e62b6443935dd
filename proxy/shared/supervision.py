"""Tasks by name; tasks that start again after a crash, or outlast a cancellation."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog
import trio

RESTART_PAUSE = 1.0
"""Seconds before a crashed task starts again."""

log = structlog.get_logger(__name__)


async def supervise(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` until it returns. A crash is logged, and ``work`` starts again after a pause."""
    while True:
        try:
            return await work()
        except Exception:
            task = trio.lowlevel.current_task().name
            log.exception("a task crashed; it starts again", task=task)
        await trio.sleep(RESTART_PAUSE)


async def run_each(works: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
    """Run each of ``works`` in a task with its name, until all have returned."""
    async with trio.open_nursery() as nursery:
        for name, work in works.items():
            nursery.start_soon(work, name=name)


class ShieldedTasks:
    """Tasks of a nursery that are shielded from a cancellation outside it. See ``outlasting``."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: list[trio.CancelScope] = []
        self._deadline = math.inf

    def start_soon(self, work: Callable[..., Awaitable[None]], *arguments: Any, name: str) -> None:
        """Start a task, as ``trio.Nursery.start_soon`` does."""
        self._nursery.start_soon(self._run, partial(work, *arguments), name=name)

    async def start(self, work: Callable[..., Awaitable[None]], *, name: str) -> None:
        """Start a task and wait until it reports its start, as ``trio.Nursery.start`` does.

        Until then cancellation ends it.
        """
        await self._nursery.start(self._start, work, name=name)

    def end_within(self, seconds: float) -> None:
        """Cancel the tasks that still run after ``seconds``."""
        self._deadline = trio.current_time() + seconds
        for scope in self._scopes:
            scope.deadline = self._deadline

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        with self._shielded():
            await work()

    async def _start(
        self, work: Callable[..., Awaitable[None]], task_status: trio.TaskStatus[None]
    ) -> None:
        with self._shielded() as scope:
            scope.shield = False
            await work(task_status=_ShieldOnceStarted(scope, task_status))

    def _shielded(self) -> trio.CancelScope:
        scope = trio.CancelScope(deadline=self._deadline, shield=True)
        self._scopes.append(scope)
        return scope


class _ShieldOnceStarted(trio.TaskStatus[None]):
    """Shields a task from the moment in which it is one of the nursery.

    One that reports its start after ``start`` was cancelled stays within ``start``, which waits for
    its end.
    """

    def __init__(self, scope: trio.CancelScope, status: trio.TaskStatus[None]) -> None:
        self._scope = scope
        self._status = status

    def started(self, value: None = None) -> None:
        self._status.started(value)
        self._scope.shield = trio.current_effective_deadline() != -math.inf


@asynccontextmanager
async def outlasting(
    grace: float, *, finish: Callable[[], None] = lambda: None
) -> AsyncIterator[ShieldedTasks]:
    """Run tasks that go on when the block is cancelled, and end after it.

    At the end of the block, in every case, ``finish`` is called. Then the tasks have ``grace``
    seconds to return by themselves; after that they are cancelled. With 0 they are cancelled at
    once.
    """
    async with trio.open_nursery() as nursery:
        tasks = ShieldedTasks(nursery)
        try:
            yield tasks
        finally:
            finish()
            tasks.end_within(grace)

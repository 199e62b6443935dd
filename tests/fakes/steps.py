"""An event, or a cancellation, at every step of a piece of work in turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio
import trio.testing


class AtStep(trio.abc.Instrument):
    """Calls ``event`` at the ``step``-th step that any task takes, before or after it is taken.

    After a step, the task waits: what it waits for is interrupted. Before one, what it waited for
    has happened already, and a cancellation meets the next wait.
    """

    def __init__(self, event: Callable[[], object], step: int, *, after: bool) -> None:
        self._event = event
        self._left = step
        self._after = after

    @property
    def has_come(self) -> bool:
        """Whether there was such a step."""
        return self._left <= 0

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._event()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self._after:
            self._count()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._after:
            self._count()


@contextmanager
def at_step(event: Callable[[], object], step: int, *, after: bool) -> Iterator[AtStep]:
    """Have ``event`` called at a step within the block; see ``AtStep``."""
    instrument = AtStep(event, step, after=after)
    trio.lowlevel.add_instrument(instrument)
    try:
        yield instrument
    finally:
        trio.lowlevel.remove_instrument(instrument)


async def cancelled_at_every_step(
    attempt: Callable[[], Awaitable[None]],
    check: Callable[[], None] = lambda: None,
    *,
    after: bool,
    every: int = 1,
    then: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
) -> int:
    """Runs ``attempt`` over and over, cancelling each one later, until one gets through.

    Args:
        check: called when everything has come to rest after each.
        every: how many steps apart; a prime for what would take too long at each.
        then: awaited after that, and not cancelled.

    Returns:
        In how many different places it was cancelled.
    """
    step = 0
    while True:
        step += every
        with trio.CancelScope() as scope, at_step(scope.cancel, step, after=after):
            await attempt()
        await trio.testing.wait_all_tasks_blocked()
        check()
        await then()
        if not scope.cancel_called:
            return (step - 1) // every

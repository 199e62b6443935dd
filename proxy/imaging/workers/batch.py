"""Batching: calls for the same source that wait together become one job, with one decode."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from proxy.errors import ImageProxyError
from proxy.imaging import memory_estimate as memory
from proxy.imaging.memory_estimate import Estimate
from proxy.imaging.pipeline import Outcome, Recipe
from proxy.imaging.workers.ipc import MOST_RECIPES
from proxy.imaging.workers.memory_gate import MemoryGate, Reservation


class Interrupted(Exception):
    """The job ended over another recipe before it came to this one: ask again."""


@dataclass(frozen=True, slots=True)
class Job:
    """A source and its recipes, at least one, each with what it may take."""

    source: bytes
    orders: tuple[tuple[Recipe, Estimate], ...]

    @property
    def pixels(self) -> int:
        """The most that the source may have: the same number for all of its recipes."""
        return self.orders[0][1].pixels

    @property
    def memory(self) -> int:
        """Bytes, at most."""
        return memory.together([estimate for _, estimate in self.orders])


@dataclass(slots=True, eq=False)
class Call:
    """One call of ``process``, from joining a batch to its outcome.

    Attributes:
        on_start: is called when the job begins.
        patience: the scope of ``outcome``; the batch sets its deadline.
        began, ended: Trio's clock around its own part of the job.
    """

    source: bytes
    recipe: Recipe
    estimate: Estimate
    on_start: Callable[[], None]
    patience: trio.CancelScope = field(default_factory=trio.CancelScope)
    began: float = math.nan
    ended: float = math.nan
    _task: trio.lowlevel.Task = field(init=False)
    _outcome: Outcome = field(init=False)

    async def outcome(self, batch: Batch) -> Outcome:
        """Wait for the outcome. Call this right after ``batch`` took the call.

        Cancellation takes the call out of the batch while its job has not begun. Afterwards it
        waits for the outcome, as ``trio.to_thread.run_sync`` does: at most ``client.TIME_LIMIT``
        for each recipe, and until the pool ends.
        """

        def abort(_: object) -> trio.lowlevel.Abort:
            left = batch.leave(self)
            return trio.lowlevel.Abort.SUCCEEDED if left else trio.lowlevel.Abort.FAILED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
        return self._outcome

    def settle(self, outcome: Outcome) -> None:
        """Wake the task that waits, once."""
        self._outcome = outcome
        trio.lowlevel.reschedule(self._task)


class Batch:
    """Calls for one source, whose job waits or runs.

    Args:
        call: the first one.
        memory_gate: where the job will ask for its memory.
        queue_wait: seconds that a call may wait where the job cannot begin at once.

    Attributes:
        reservation: the memory of the job.
        scope: is cancelled when every call left before the job began.
        has_begun: whether the job runs, or has run.
    """

    def __init__(self, call: Call, memory_gate: MemoryGate, queue_wait: float) -> None:
        self.reservation = Reservation(call.estimate.memory, call.source)
        self.scope = trio.CancelScope()
        self._calls = deque([call])
        self._memory_gate = memory_gate
        self._queue_wait = queue_wait
        self._has_deadlines = False
        self.has_begun = False
        self._last_answer = math.nan

    def __len__(self) -> int:
        """Calls without an outcome."""
        return len(self._calls)

    def take(self, call: Call) -> bool:
        """Let ``call`` join, if it is for the same source, in time, and leaves room for others."""
        if call.source is not self.reservation.source or self.has_begun or not self._calls:
            return False
        calls = [*self._calls, call]
        if len(calls) > MOST_RECIPES or call.estimate.pixels != calls[0].estimate.pixels:
            return False
        amount = _memory_of(calls)
        # A job over the budget runs alone: sharing a decode is no reason for that.
        if amount > self._memory_gate.budget:
            return False
        if not self._memory_gate.resize(self.reservation, amount):
            return False
        self._calls.append(call)
        if self._has_deadlines:
            self._set_deadline(call)
        return True

    def leave(self, call: Call) -> bool:
        """Take ``call`` out; False if the job has begun."""
        if self.has_begun:
            return False
        self._calls.remove(call)
        if self._calls:
            self._memory_gate.resize(self.reservation, _memory_of(self._calls))
        else:
            self.scope.cancel()
        return True

    def limit_wait(self) -> None:
        """The job cannot begin at once: its calls wait for ``queue_wait`` from now, no longer.

        Called again, it changes nothing.
        """
        if not self._has_deadlines:
            self._has_deadlines = True
            for call in self._calls:
                self._set_deadline(call)

    def begin(self) -> Job:
        """The job of all its calls, at least one. No other can join, and none can leave."""
        self.has_begun = True
        self._last_answer = trio.current_time()
        for call in self._calls:
            call.on_start()
        orders = tuple((call.recipe, call.estimate) for call in self._calls)
        return Job(self.reservation.source, orders)

    def answer(self, outcome: Outcome) -> None:
        """Give ``outcome`` to the first call that has none."""
        call = self._calls.popleft()
        call.began, call.ended = self._last_answer, trio.current_time()
        self._last_answer = call.ended
        call.settle(outcome)

    def fail(self, error: Exception) -> None:
        """Give ``error`` to every call without an outcome: a copy each, if it is of our family."""
        while self._calls:
            self.answer(error.fresh() if isinstance(error, ImageProxyError) else error)

    def _set_deadline(self, call: Call) -> None:
        call.patience.deadline = trio.current_time() + self._queue_wait


def _memory_of(calls: Sequence[Call]) -> int:
    return memory.together([call.estimate for call in calls])

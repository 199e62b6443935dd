"""Results of one source that are asked for together: many calls, one job."""

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
from proxy.imaging.workers.admission import Admission, Reservation
from proxy.imaging.workers.ipc import MOST_RECIPES


class Interrupted(Exception):
    """The job ended over another recipe before this one had its turn: ask again."""


@dataclass(frozen=True, slots=True)
class Job:
    """A source and what is to become of it, each recipe with what it may take."""

    source: bytes
    orders: tuple[tuple[Recipe, Estimate], ...]

    @property
    def pixels(self) -> int:
        """The most that the source may have: one figure for all of its recipes."""
        return self.orders[0][1].pixels

    @property
    def memory(self) -> int:
        """Bytes, at most."""
        return memory.together([estimate for _, estimate in self.orders])


@dataclass(slots=True, eq=False)
class Call:
    """One call of ``process``, from its joining a batch to its outcome.

    Attributes:
        on_start: is called when the job begins.
        patience: the scope of ``outcome``; its deadline is set by the batch.
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
        """Wait for it. Call this right after ``batch`` took the call.

        Cancellation takes the call out of the batch while its job has not begun. Afterwards it
        waits for the outcome, as ``trio.to_thread.run_sync`` does.
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
    """Calls for one source, whose job waits for its turn or runs.

    Args:
        call: its first one.
        admission: where the job will ask for room.
        queue_wait: seconds that a call waits for a turn that is not free.

    Attributes:
        claim: what the job asks for.
        scope: to be cancelled when nobody wants the job any more.
    """

    def __init__(self, call: Call, admission: Admission, queue_wait: float) -> None:
        self.claim = Reservation(call.estimate.memory, call.source)
        self.scope = trio.CancelScope()
        self._calls = deque([call])
        self._admission = admission
        self._queue_wait = queue_wait
        self._is_free = True
        self._begun = False
        self._last_answer = math.nan

    def __len__(self) -> int:
        """Calls without an outcome."""
        return len(self._calls)

    def take(self, call: Call) -> bool:
        """Let ``call`` join, if it is for the same source, in time, and leaves room for others."""
        if call.source is not self.claim.source or self._begun or not self._calls:
            return False
        calls = [*self._calls, call]
        if len(calls) > MOST_RECIPES or call.estimate.pixels != calls[0].estimate.pixels:
            return False
        amount = _memory_of(calls)
        # What exceeds the budget would run all the same, alone: not for a saving.
        if amount > self._admission.budget or not self._admission.resize(self.claim, amount):
            return False
        self._calls.append(call)
        if not self._is_free:
            self._hurry(call)
        return True

    def leave(self, call: Call) -> bool:
        """Take ``call`` out; False if the job has begun."""
        if self._begun:
            return False
        self._calls.remove(call)
        if self._calls:
            self._admission.resize(self.claim, _memory_of(self._calls))
        else:
            self.scope.cancel()
        return True

    def wait(self) -> None:
        """Turns are not free: from now on the patience of its calls counts."""
        self._is_free = False
        for call in self._calls:
            self._hurry(call)

    def begin(self) -> Job:
        """The job of all its calls, of which there may be none any more. No other can join."""
        self._begun = True
        self._last_answer = trio.current_time()
        for call in self._calls:
            call.on_start()
        orders = tuple((call.recipe, call.estimate) for call in self._calls)
        return Job(self.claim.source, orders)

    def answer(self, outcome: Outcome) -> None:
        """The outcome of the first call that has none."""
        call = self._calls.popleft()
        call.began, call.ended = self._last_answer, trio.current_time()
        self._last_answer = call.ended
        call.settle(outcome)

    def fail(self, error: Exception) -> None:
        """An outcome for every call that has none: a copy each, where it is of our family."""
        while self._calls:
            self.answer(error.fresh() if isinstance(error, ImageProxyError) else error)

    def _hurry(self, call: Call) -> None:
        call.patience.deadline = trio.current_time() + self._queue_wait


def _memory_of(calls: Sequence[Call]) -> int:
    return memory.together([call.estimate for call in calls])

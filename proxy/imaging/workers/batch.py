"""Batching: calls that wait for the same source become one job, which decodes it once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from proxy.errors import ImageProxyError
from proxy.imaging import memory_estimate as memory
from proxy.imaging.memory_estimate import Estimate
from proxy.imaging.recipes import Outcome, Recipe
from proxy.imaging.workers.admission_gate import AdmissionGate, Reservation
from proxy.imaging.workers.fair_shares import Publisher
from proxy.imaging.workers.ipc import MOST_RECIPES


class Interrupted(Exception):
    """The job ended at another recipe, before it came to this one: the call must be repeated."""


@dataclass(frozen=True, slots=True)
class Job:
    """A source and its recipes (at least one), each with its estimate."""

    source: bytes
    orders: tuple[tuple[Recipe, Estimate], ...]

    @property
    def pixels(self) -> int:
        """The maximum number of pixels of the source: the same for all recipes."""
        return self.orders[0][1].pixels

    @property
    def memory(self) -> int:
        """The maximum memory of the job, in bytes."""
        return memory.together([estimate for _, estimate in self.orders])


@dataclass(slots=True, eq=False)
class Call:
    """One call of ``process``, from joining a batch to its outcome.

    Attributes:
        on_start: called when the job begins.
        patience: the cancel scope around ``outcome``; the batch sets its deadline.
        began, ended: start and end of this call's part of the job, by Trio's clock.
    """

    source: bytes
    publisher: Publisher
    recipe: Recipe
    estimate: Estimate
    on_start: Callable[[], None]
    patience: trio.CancelScope = field(default_factory=trio.CancelScope)
    began: float = math.nan
    ended: float = math.nan
    _task: trio.lowlevel.Task = field(init=False)
    _outcome: Outcome = field(init=False)

    async def outcome(self, batch: Batch) -> Outcome:
        """Wait for the outcome. Call this right after ``batch`` has accepted the call.

        Cancellation before the job begins removes the call from the batch. After that, a cancelled
        call still waits for the outcome, like ``trio.to_thread.run_sync``: at most
        ``client.longest`` for each recipe, and no longer than the pool runs.
        """

        def abort(_: object) -> trio.lowlevel.Abort:
            left = batch.leave(self)
            return trio.lowlevel.Abort.SUCCEEDED if left else trio.lowlevel.Abort.FAILED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
        return self._outcome

    def settle(self, outcome: Outcome) -> None:
        """Wake the waiting task with ``outcome``. Call it once."""
        self._outcome = outcome
        trio.lowlevel.reschedule(self._task)


class Batch:
    """The calls for one source, whose job waits or runs.

    Args:
        call: the first call.
        gate: the gate from which the job will get its place and memory.
        queue_wait: seconds that a call may wait if the job cannot begin at once.

    Attributes:
        reservation: the memory of the job.
        scope: cancelled when every call has left before the job began.
        has_begun: whether the job runs, or has run.
    """

    def __init__(self, call: Call, gate: AdmissionGate, queue_wait: float) -> None:
        self.reservation = Reservation(call.estimate.memory, call.source, call.publisher)
        self.scope = trio.CancelScope()
        self._calls = deque([call])
        self._gate = gate
        self._queue_wait = queue_wait
        self._has_deadlines = False
        self.has_begun = False
        self._last_answer = math.nan

    def __len__(self) -> int:
        """The number of calls without an outcome."""
        return len(self._calls)

    def take(self, call: Call) -> bool:
        """Add ``call`` to the batch if possible; return whether it was added.

        The call must be for the same source object and be estimated at the same pixels. The job
        must not have begun, must have fewer than ``MOST_RECIPES``, and must get the memory.
        """
        if call.source is not self.reservation.source or self.has_begun or not self._calls:
            return False
        calls = [*self._calls, call]
        if len(calls) > MOST_RECIPES or call.estimate.pixels != calls[0].estimate.pixels:
            return False
        amount = _memory_of(calls)
        # The memory of a job is cut to what one may have, and sharing a decode is not worth that.
        if amount > self._gate.limits.most:
            return False
        if not self._gate.resize(self.reservation, amount):
            return False
        self._calls.append(call)
        if self._has_deadlines:
            self._set_deadline(call)
        return True

    def leave(self, call: Call) -> bool:
        """Remove ``call`` from the batch; return False if the job has begun."""
        if self.has_begun:
            return False
        self._calls.remove(call)
        if self._calls:
            self._gate.resize(self.reservation, _memory_of(self._calls))
        else:
            self.scope.cancel()
        return True

    def limit_wait(self) -> None:
        """Limit the wait of all calls to ``queue_wait`` from now: the job cannot begin at once.

        Idempotent.
        """
        if not self._has_deadlines:
            self._has_deadlines = True
            for call in self._calls:
                self._set_deadline(call)

    def begin(self) -> Job:
        """Return the job of all calls. From now on no call can join or leave."""
        self.has_begun = True
        self._last_answer = trio.current_time()
        for call in self._calls:
            call.on_start()
        orders = tuple((call.recipe, call.estimate) for call in self._calls)
        return Job(self.reservation.source, orders)

    def answer(self, outcome: Outcome) -> None:
        """Give ``outcome`` to the first call without one."""
        call = self._calls.popleft()
        call.began, call.ended = self._last_answer, trio.current_time()
        self._last_answer = call.ended
        call.settle(outcome)

    def fail(self, error: Exception) -> None:
        """Give ``error``, or a copy of it if it is ours, to every call without an outcome."""
        while self._calls:
            self.answer(error.fresh() if isinstance(error, ImageProxyError) else error)

    def _set_deadline(self, call: Call) -> None:
        call.patience.deadline = trio.current_time() + self._queue_wait


def _memory_of(calls: Sequence[Call]) -> int:
    return memory.together([call.estimate for call in calls])

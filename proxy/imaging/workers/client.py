"""The service's side of the workers: starts them, gives them jobs, replaces and ends them.

A worker is a sandboxed process. Each is owned by one task, and used by one thread at a time.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import Literal, NamedTuple

import structlog
import trio

from proxy.errors import Busy, ResultTooCostly
from proxy.imaging.memory_estimate import Estimate
from proxy.imaging.pipeline import Outcome, Recipe, Rendered
from proxy.imaging.workers.batch import Batch, Job
from proxy.imaging.workers.ipc import ANSWER, ERRORS, JOB, MAX_CAUSE, RECIPES, Head, Ready, Status
from proxy.imaging.workers.sandbox import Limits
from proxy.model import formats
from proxy.model.formats import Format

TIME_LIMIT = 30.0
"""Seconds of wall time for one recipe of a job, for a worker that sleeps or is not scheduled. What
ends the work on a costly picture is its limit of CPU time, ``Estimate.cpu``."""

SHORTEST_WAIT = 0.01
"""Seconds until the CPU time of a worker near its limit is read again."""

START_LIMIT = 30.0
"""Seconds for a worker to start. On an idle machine it takes a third of a second."""

END_LIMIT = 5.0
"""Seconds until a killed process must be gone. It takes milliseconds unless the kernel hangs."""

JOBS = 1000
"""Jobs after which a fresh worker replaces one, so that memory fragmentation does not last."""

BUSY_SECONDS = 600.0
"""Seconds of work after which a worker is replaced. Its CPU limit ends it if it works without
a job."""

HELD = 128 << 20
"""Resident bytes that a worker may keep from its jobs before it is replaced."""

RESTART_PAUSE, MAX_RESTART_PAUSE = 0.5, 30.0
"""Seconds before the next attempt if a worker does not start; doubled each time."""

# "-I" ignores the environment and the user's folder. Our ``sys.path`` is passed as arguments.
BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[4:]; from proxy.imaging.workers.main import main; "
    "main(*map(int, sys.argv[1:4]))"
)

DeathReason = Literal["crash", "hang", "protocol"]

log = structlog.get_logger(__name__)


class WorkerDied(Exception):
    """A worker died while it processed a picture."""

    def __init__(self, reason: DeathReason, cause: str) -> None:
        super().__init__(f"{reason}: {cause}")
        self.reason = reason


class WorkerDefect(Exception):
    """A defect of this program, found in a worker."""


class CannotStart(Exception):
    """No worker can be started."""


class ImageWorker:
    """A worker process, and the service's end of its socket. One thread at a time may use it.

    Attributes:
        spent: set when the worker will not be used any more.
        leaving: whether it must not get another job.
        has_job: whether it has a job.
    """

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.spent = trio.Event()
        self.leaving = False
        self.has_job = False
        self._process = process
        self._connection = connection
        self._stopped = False
        self._answered = True
        self._jobs = 0
        self._busy_seconds = 0.0
        self._memory = _MemoryFile(process.pid)
        self._fresh: _Memory | None = None

    @classmethod
    def spawn(cls, limits: Limits) -> ImageWorker:
        """Start a process, which sends ``Ready`` later.

        Raises:
            OSError: there are no more processes or descriptors.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [theirs.fileno(), limits.memory, limits.cpu]
            path = [os.path.abspath(folder) for folder in sys.path]
            try:
                process = subprocess.Popen(  # noqa: S603 (our own interpreter)
                    [sys.executable, "-I", "-c", BOOTSTRAP, *map(str, arguments), *path],
                    env={},
                    cwd="/",
                    # It shares our standard error until it is ready, to report why it cannot start.
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours)

    async def ready(self) -> Ready:
        """Wait for its first message. After a cancellation, ``end`` must still be called.

        Raises:
            TimeoutError: it took longer than ``START_LIMIT``.
            OSError: the worker ended.
            ValueError: it sent another message.
        """
        with trio.move_on_after(START_LIMIT):
            head = Head.unpack(await self._receive_on_loop(ANSWER.size))
            if head.status is not Status.READY or head.length > MAX_CAUSE:
                raise ValueError(f"sent {head.status.name} of {head.length} bytes")
            return Ready.model_validate_json(await self._receive_on_loop(head.length))
        raise TimeoutError(f"not ready within {START_LIMIT:g} s")

    def fault(self) -> DeathReason | None:
        """Return the fault of a worker without a job, or None. Does not block.

        "crash": it ended. "protocol": it sent data although it had no job.
        """
        self._connection.settimeout(0)
        try:
            said = self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            said = b""
        return "protocol" if said else "crash"

    def is_worn(self) -> bool:
        """Whether a fresh worker should replace it."""
        worn = self._jobs >= JOBS or self._busy_seconds >= BUSY_SECONDS
        return worn or not self._answered

    def run(self, job: Job) -> Iterator[Outcome]:
        """Run ``job`` in the worker: yield the outcome of each recipe, in order.

        Blocks for each recipe until the worker has used the CPU time of its estimate, at most for
        ``TIME_LIMIT`` and a moment, and ends at once on ``stop``. If an outcome is an error, it is
        an error of the picture, or ``WorkerDefect``.

        Raises:
            WorkerDied: the worker died at the recipe whose outcome was due.
            Busy: the worker was stopped.
        """
        self._jobs += 1
        self._answered = False
        self._limit_memory(job.memory)
        began = time.monotonic()
        try:
            limit = self._limit_time(job.orders[0][1])
            self._send(job, limit.end)
            for place, (recipe, estimate) in enumerate(job.orders):
                if place:
                    limit = self._limit_time(estimate)
                yield self._outcome(place, recipe, estimate, limit)
            self._answered = True
        except (OSError, ValueError) as error:
            raise self._why_it_died(error) from error
        finally:
            self._busy_seconds += time.monotonic() - began

    def stop(self) -> None:
        """Kill it during its job; the job's thread then returns at once. Does not block."""
        self._stopped = True
        self._kill()
        # Ends the wait of the thread even if the kernel needs longer to end the process.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Kill it, and wait at most ``END_LIMIT`` until it is gone. May be called twice."""
        self._kill()
        try:
            self._process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            log.error("a killed worker does not end", pid=self._process.pid)
        self._connection.close()
        self._memory.close()

    def epitaph(self, error: Exception) -> str:
        """Kill it; return how it had ended, else ``error``, for the log. Blocks up to a second."""
        with suppress(subprocess.TimeoutExpired):
            # Its end of the socket closes shortly before the process itself has ended.
            code = self._process.wait(1)
            self._kill()
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._kill()
        return f"{type(error).__name__}: {error}"

    def _kill(self) -> None:
        self.leaving = True
        self._process.kill()

    def _why_it_died(self, error: Exception) -> Exception:
        if self._stopped:
            return Busy("the processing pool has ended")
        if isinstance(error, TimeoutError):
            self._kill()
            return WorkerDied("hang", str(error))
        if isinstance(error, OSError):
            return WorkerDied("crash", self.epitaph(error))
        self._kill()
        return WorkerDied("protocol", str(error))

    def _limit_memory(self, amount: int) -> None:
        """Allow the worker ``amount`` more bytes than it holds now. It may not set this itself."""
        held = self._memory.read()
        if self._fresh is None:
            self._fresh = held
        if held.resident > self._fresh.resident + HELD:
            self._jobs = JOBS
        if held.data and sys.platform == "linux":
            with suppress(OSError, ValueError):  # over its hard limit, or it has ended
                _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_DATA)
                soft = min(held.data + amount, hard)
                resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (soft, hard))

    def _limit_time(self, estimate: Estimate) -> _TimeLimit:
        end = time.monotonic() + TIME_LIMIT
        return _TimeLimit(end, estimate.cpu, self._cpu_seconds() + estimate.cpu)

    def _cpu_seconds(self) -> float:
        """The CPU time of the process; 0 if it has ended, or if the platform does not tell."""
        if sys.platform != "linux":
            return 0.0
        try:
            # The clock of another process, as clock_getcpuclockid(3) gives it.
            return time.clock_gettime(~self._process.pid << 3 | _CPUCLOCK_SCHED)
        except OSError:
            return 0.0

    def _send(self, job: Job, end: float) -> None:
        data = _packed(tuple(recipe for recipe, _ in job.orders))
        self._connection.settimeout(_left(end))
        self._connection.sendall(JOB.pack(len(data), len(job.source), job.pixels) + data)
        self._connection.settimeout(_left(end))
        self._connection.sendall(job.source)

    def _outcome(
        self, place: int, recipe: Recipe, estimate: Estimate, limit: _TimeLimit
    ) -> Outcome:
        head, data = self._answer(limit, estimate.result)
        if head.place != place:
            raise ValueError(f"answered recipe {head.place} instead of {place}")
        if head.status is Status.DONE:
            return _checked(head.format, data, recipe)
        cause = _printable(data)
        if head.status is Status.DEFECT:
            return WorkerDefect(cause)
        if head.status not in ERRORS:
            raise ValueError(f"sent {head.status.name}")
        return ERRORS[head.status](cause)

    def _answer(self, limit: _TimeLimit, most: int) -> tuple[Head, bytes]:
        """Raises OSError if the worker ends, TimeoutError, and ValueError for an invalid answer."""
        head = Head.unpack(bytes(self._receive(ANSWER.size, limit)))
        if head.length > (most if head.status is Status.DONE else MAX_CAUSE):
            raise ValueError(f"{head.status.name} of {head.length} bytes")
        return head, bytes(self._receive(head.length, limit))

    def _receive(self, length: int, limit: _TimeLimit) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            self._connection.settimeout(self._longest_wait(limit))
            try:
                received = self._connection.recv_into(view)
            except TimeoutError:
                continue  # the limits decide whether this is the end
            if not received:
                raise ConnectionResetError("ended in an answer")
            view = view[received:]
        return data

    def _longest_wait(self, limit: _TimeLimit) -> float:
        """Return the seconds in which no limit can be reached.

        Raises:
            TimeoutError: a limit was reached.
        """
        left = _left(limit.end)
        cpu_left = limit.cpu_end - self._cpu_seconds()
        if cpu_left <= 0:
            raise TimeoutError(f"over {limit.cpu:.1f} s of CPU time")
        return min(left, max(cpu_left, SHORTEST_WAIT))

    async def _receive_on_loop(self, length: int) -> bytes:
        """Raises OSError if the worker ends."""
        self._connection.settimeout(0)
        data = bytearray()
        while len(data) < length:
            await trio.lowlevel.wait_readable(self._connection)
            received = self._connection.recv(length - len(data))
            if not received:
                raise ConnectionResetError("ended before it was ready")
            data += received
        return bytes(data)


_CPUCLOCK_SCHED = 2
"""linux/posix-timers.h"""


class _TimeLimit(NamedTuple):
    """The limits of one answer.

    Attributes:
        end: by ``time.monotonic``.
        cpu: seconds of CPU time.
        cpu_end: by the CPU time of the worker.
    """

    end: float
    cpu: float
    cpu_end: float


def _left(end: float) -> float:
    left = end - time.monotonic()
    # Checked here too: a socket that always has another byte to read never times out.
    if left <= 0:
        raise TimeoutError(f"no answer within {TIME_LIMIT:g} s")
    return left


@lru_cache(maxsize=64)
def _packed(recipes: tuple[Recipe, ...]) -> bytes:
    return RECIPES.dump_json(recipes)


def _checked(format_: Format, data: bytes, recipe: Recipe) -> Rendered:
    """Return the result; raise ValueError if the recipe does not allow it."""
    if formats.sniff(data) is not format_:
        raise ValueError(f"a result that is not {format_}")
    if recipe.output not in (None, format_) or format_ is Format.HEIC:
        raise ValueError(f"{format_} for {recipe.output}")
    return Rendered(data, format_)


def _printable(cause: bytes) -> str:
    return cause.decode("ascii", "backslashreplace").encode("unicode_escape").decode()


class _Memory(NamedTuple):
    """Bytes that a process holds: resident, and private as RLIMIT_DATA counts them."""

    resident: int
    data: int


class _MemoryFile:
    """Linux's ``statm`` file of a process. It stays open, because it is read before each job."""

    def __init__(self, pid: int) -> None:
        self._descriptor = -1
        with suppress(OSError):
            self._descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY)

    def read(self) -> _Memory:
        """Return zeros if there is no /proc, or if the process has ended."""
        try:
            numbers = os.pread(self._descriptor, 128, 0).split()
        except OSError:
            return _Memory(0, 0)
        return _Memory(*(int(numbers[at]) * resource.getpagesize() for at in (1, 5)))

    def close(self) -> None:
        """May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@asynccontextmanager
async def started(
    limits: Limits, threads: trio.CapacityLimiter
) -> AsyncIterator[tuple[ImageWorker, Ready]]:
    """Start a worker, and yield it with its first message. After the block its process is gone.

    Args:
        threads: the limiter of the threads that start and end it, one at a time.

    Raises:
        CannotStart: no process could be created, or it ended, took too long, or sent another
            message.
    """
    try:
        worker = await trio.to_thread.run_sync(ImageWorker.spawn, limits, limiter=threads)
    except OSError as error:
        raise CannotStart(str(error)) from error
    try:
        try:
            ready = await worker.ready()
        except TimeoutError as error:
            raise CannotStart(str(error)) from error
        except (OSError, ValueError) as error:
            epitaph = await trio.to_thread.run_sync(worker.epitaph, error, limiter=threads)
            raise CannotStart(epitaph) from error
        yield worker, ready
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(worker.end, limiter=threads)


class ImageWorkers:
    """A fixed number of workers, each owned by a task of ``run``.

    Args:
        count: the number of workers.
        limits: the limits of each worker.
        on_death: called with the reason when a worker died.
    """

    def __init__(self, count: int, limits: Limits, on_death: Callable[[DeathReason], None]) -> None:
        self._count = count
        self._limits = limits
        self._on_death = on_death
        # Each task that owns a worker uses one of these threads at a time, to start or end it.
        self._threads = trio.CapacityLimiter(count)
        self._idle: deque[ImageWorker] = deque()
        self._serving: set[ImageWorker] = set()
        self._failure: CannotStart | None = None
        self._changed = trio.Event()
        self._reported = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running. Cancellation kills them, even during a job."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._count):
                nursery.start_soon(self._keep_one, name="image_worker")
            task_status.started()

    @contextmanager
    def begin(self, batch: Batch) -> Iterator[Iterator[Outcome]]:
        """Begin the job of ``batch`` on a worker, which has no other job during the block.

        Call it in a Trio thread. There are no more such threads than workers, so a worker is free
        unless it is being replaced. Then ``batch`` waits: for ``process.queue_wait`` while another
        worker serves, else until a worker has started. The worker is free again before the thread
        ends.

        Raises:
            trio.Cancelled: the task of the thread was cancelled before the job began.
            CannotStart: there is no worker, and a worker cannot be started.
            ResultTooCostly: the worker died in the block.
            Busy: the worker was killed in the block because ``run`` was cancelled.
        """
        worker, job = trio.from_thread.run(self._begin, batch)
        try:
            yield worker.run(job)
        except WorkerDied as death:
            trio.from_thread.run_sync(self._died, death.reason, str(death))
            raise ResultTooCostly(str(death)) from death
        finally:
            trio.from_thread.run_sync(self._give_back, worker)

    async def _begin(self, batch: Batch) -> tuple[ImageWorker, Job]:
        while True:
            # This is the last checkpoint before the job begins. If all calls have left, it cancels.
            await trio.lowlevel.checkpoint_if_cancelled()
            worker = self._take_idle()
            if worker is not None:
                worker.has_job = True
                return worker, batch.begin()
            if self._serving:
                batch.limit_wait()
            elif self._failure is not None:
                raise self._failure
            # Otherwise every worker is starting, for the first time or after all were killed. Then
            # START_LIMIT ends the wait.
            await self._changed.wait()

    def _take_idle(self) -> ImageWorker | None:
        while self._idle:
            worker = self._idle.popleft()
            if worker.leaving:
                continue
            fault = worker.fault()
            if fault is None:
                return worker
            self._died(fault, "while it had no job")
            self._retire(worker)
        return None

    def _give_back(self, worker: ImageWorker) -> None:
        worker.has_job = False
        if worker.leaving or worker.is_worn():
            self._retire(worker)
        else:
            self._idle.append(worker)
            self._wake()

    def _retire(self, worker: ImageWorker) -> None:
        # Its task would do this later, and until then a job would wait for this worker.
        self._serving.discard(worker)
        worker.spent.set()

    def _died(self, reason: DeathReason, cause: str) -> None:
        self._on_death(reason)
        log.warning("a worker died", reason=reason, cause=cause)

    def _wake(self) -> None:
        """Make every job that waits for a worker check again."""
        self._changed.set()
        self._changed = trio.Event()

    async def _keep_one(self) -> None:
        """Run one worker after the other, without end."""
        pause = RESTART_PAUSE
        while True:
            try:
                async with started(self._limits, self._threads) as (worker, ready):
                    self._started(ready)
                    await self._until_spent(worker)
                pause = RESTART_PAUSE
            except CannotStart as error:
                self._failed(error)
                await trio.sleep(pause)
                pause = min(2 * pause, MAX_RESTART_PAUSE)

    async def _until_spent(self, worker: ImageWorker) -> None:
        self._serving.add(worker)
        self._give_back(worker)
        try:
            await worker.spent.wait()
        finally:
            self._serving.discard(worker)
            worker.leaving = True
            if worker.has_job:
                # The service stops, and nothing will use the results. The thread of the job still
                # uses the worker's socket for a moment, until it returns.
                worker.stop()
                with trio.CancelScope(shield=True):
                    await worker.spent.wait()

    def _started(self, ready: Ready) -> None:
        self._failure = None
        if ready.missing and not self._reported:
            self._reported = True
            log.warning("the sandbox lacks parts on this platform", missing=ready.missing)

    def _failed(self, error: CannotStart) -> None:
        log.error("no worker starts", cause=str(error))
        self._failure = error
        self._wake()

"""The service's side of the workers: start them, hand them out, drive them, replace them."""

from __future__ import annotations

import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Literal, NamedTuple

import structlog
import trio

from proxy.errors import Busy, UndecodableImage
from proxy.imaging.memory_estimate import Estimate
from proxy.imaging.pipeline import Outcome, Recipe, Rendered
from proxy.imaging.workers.batch import Job
from proxy.imaging.workers.ipc import ANSWER, ERRORS, JOB, MAX_CAUSE, RECIPES, Head, Ready, Status
from proxy.imaging.workers.sandbox import Limits
from proxy.model import formats
from proxy.model.formats import Format

TIME_LIMIT = 30.0
"""Seconds for one recipe of a job. The slowest that the default presets allow, 26 megapixels of
noise as WebP, takes half of it on a busy core."""

START_LIMIT = 30.0
"""Seconds for a worker to start: a third of one on an idle machine."""

JOBS = 1000
"""Of one worker, before a fresh one takes its place, so that no fragmentation lasts."""

BUSY_SECONDS = 600.0
"""Of one worker, likewise; its limit of CPU time ends one that works without having a job."""

HELD = 128 << 20
"""Resident bytes that a worker may have kept of its jobs before it is replaced."""

RESTART_PAUSE, MAX_RESTART_PAUSE = 0.5, 30.0
"""Seconds before the next attempt, doubled at each, where no worker starts."""

# "-I": no environment, no user's folder. The path is ours, wherever this package came from.
BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[4:]; from proxy.imaging.workers.main import main; "
    "main(*map(int, sys.argv[1:4]))"
)

DeathReason = Literal["crash", "hang", "protocol"]

log = structlog.get_logger(__name__)


class WorkerDied(Exception):
    """A worker broke down over a picture."""

    def __init__(self, reason: DeathReason, cause: str) -> None:
        super().__init__(f"{reason}: {cause}")
        self.reason = reason


class WorkerDefect(Exception):
    """A defect of ours in a worker."""


class CannotStart(Exception):
    """No worker starts."""


class ImageWorker:
    """A process, and our end of its socket. One thread at a time may use it.

    Attributes:
        spent: is set when nobody will use it any more.
        leaving: whether it is not to be handed out again.
        has_job: whether it is handed out.
    """

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.spent = trio.Event()
        self.leaving = False
        self.has_job = False
        self._process = process
        self._connection = connection
        self._answered = True
        self._jobs = 0
        self._busy_seconds = 0.0
        self._memory = _MemoryFile(process.pid)
        self._fresh = self._memory.read()

    @classmethod
    def spawn(cls, limits: Limits) -> ImageWorker:
        """Start a process; it says ``Ready`` later.

        Raises:
            OSError: no process, no descriptor.
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
                    # Its standard error is ours until it is ready, to say why it cannot be.
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours)

    async def ready(self) -> Ready:
        """Wait for what it says first. Cancellation leaves it for ``end``.

        Raises:
            CannotStart: it ended, or took too long, or said something else.
        """
        with trio.move_on_after(START_LIMIT) as patience:
            await trio.lowlevel.wait_readable(self._connection)
        if patience.cancelled_caught:
            raise CannotStart(f"not ready within {START_LIMIT:g} s")
        try:
            head, data = self._answer(time.monotonic() + 1, 0)
            if head.status is not Status.READY:
                raise ValueError(f"said {head.status.name}")
            found = Ready.model_validate_json(data)
        except (OSError, ValueError) as error:
            raise CannotStart(self._epitaph(error)) from error
        self._fresh = self._memory.read()
        return found

    def fault(self) -> DeathReason | None:
        """What is wrong with it between two jobs: it ended, or said something unasked."""
        self._connection.settimeout(0)
        try:
            said = self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            said = b""
        return "protocol" if said else "crash"

    def is_worn(self) -> bool:
        """Whether a fresh one should take its place."""
        worn = self._jobs >= JOBS or self._busy_seconds >= BUSY_SECONDS
        return worn or not self._answered

    def run(self, job: Job) -> Iterator[Outcome]:
        """Have a picture transformed: an outcome for each recipe, in their order.

        Blocks for at most ``TIME_LIMIT`` and a moment for each. An outcome that is an error is one
        of the picture's, or ``WorkerDefect``.

        Raises:
            WorkerDied: over the recipe whose turn it was, and this worker with it.
        """
        self._jobs += 1
        self._answered = False
        self._limit_memory(job.memory)
        began = time.monotonic()
        try:
            deadline = began + TIME_LIMIT
            self._send(job, deadline)
            for place, (recipe, estimate) in enumerate(job.orders):
                yield self._outcome(place, recipe, estimate, deadline)
                deadline = time.monotonic() + TIME_LIMIT
            self._answered = True
        except TimeoutError as error:
            self._kill()
            raise WorkerDied("hang", f"no answer within {TIME_LIMIT:g} s") from error
        except OSError as error:
            raise WorkerDied("crash", self._epitaph(error)) from error
        except ValueError as error:
            self._kill()
            raise WorkerDied("protocol", str(error)) from error
        finally:
            self._busy_seconds += time.monotonic() - began

    def end(self) -> None:
        """Kill it and wait until it is gone. Blocks for milliseconds; may be called twice."""
        self._kill()
        self._process.wait()
        self._connection.close()
        self._memory.close()

    def _kill(self) -> None:
        self.leaving = True
        self._process.kill()

    def _epitaph(self, error: Exception) -> str:
        """How it ended, for the log; ``error`` where it did not."""
        with suppress(subprocess.TimeoutExpired):
            # Its end of the socket closes a little before it can be waited for.
            code = self._process.wait(1)
            self._kill()
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._kill()
        return f"{type(error).__name__}: {error}"

    def _limit_memory(self, amount: int) -> None:
        """Allow ``amount`` bytes beyond what it holds now: from here, since it may not itself."""
        held = self._memory.read()
        if held.resident > self._fresh.resident + HELD:
            self._jobs = JOBS
        if held.data and sys.platform == "linux":
            with suppress(OSError, ValueError):  # over the limit it has anyway; or it has ended
                _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_DATA)
                soft = min(held.data + amount, hard)
                resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (soft, hard))

    def _send(self, job: Job, deadline: float) -> None:
        data = _packed(tuple(recipe for recipe, _ in job.orders))
        self._set_time(deadline)
        self._connection.sendall(JOB.pack(len(data), len(job.source), job.pixels) + data)
        self._set_time(deadline)
        self._connection.sendall(job.source)

    def _outcome(self, place: int, recipe: Recipe, estimate: Estimate, deadline: float) -> Outcome:
        head, data = self._answer(deadline, estimate.result)
        if head.place != place:
            raise ValueError(f"answered {head.place} where it was the turn of {place}")
        if head.status is Status.DONE:
            return _checked(head.format, data, recipe)
        cause = _printable(data)
        if head.status is Status.DEFECT:
            return WorkerDefect(cause)
        if head.status not in ERRORS:
            raise ValueError(f"said {head.status.name}")
        return ERRORS[head.status](cause)

    def _answer(self, deadline: float, most: int) -> tuple[Head, bytes]:
        """Raises OSError at its end, TimeoutError, and ValueError for what is no answer."""
        head = Head.unpack(bytes(self._receive(ANSWER.size, deadline)))
        if head.length > (most if head.status is Status.DONE else MAX_CAUSE):
            raise ValueError(f"{head.status.name} of {head.length} bytes")
        return head, bytes(self._receive(head.length, deadline))

    def _receive(self, length: int, deadline: float) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            self._set_time(deadline)
            received = self._connection.recv_into(view)
            if not received:
                raise ConnectionResetError("ended in an answer")
            view = view[received:]
        return data

    def _set_time(self, deadline: float) -> None:
        self._connection.settimeout(max(deadline - time.monotonic(), 0.001))


@lru_cache(maxsize=64)
def _packed(recipes: tuple[Recipe, ...]) -> bytes:
    return RECIPES.dump_json(recipes)


def _checked(format_: Format, data: bytes, recipe: Recipe) -> Rendered:
    """A result, if it is one that the recipe allows."""
    if formats.sniff(data) is not format_:
        raise ValueError(f"a result that is no {format_}")
    if recipe.output not in (None, format_) or format_ is Format.HEIC:
        raise ValueError(f"{format_} for {recipe.output}")
    return Rendered(data, format_)


def _printable(cause: bytes) -> str:
    return cause.decode("ascii", "backslashreplace").encode("unicode_escape").decode()


class _Memory(NamedTuple):
    """Bytes that a process holds: resident ones, and private ones as RLIMIT_DATA counts them."""

    resident: int
    data: int


class _MemoryFile:
    """What Linux says of the memory of a process; kept open, for it is asked before each job."""

    def __init__(self, pid: int) -> None:
        self._descriptor = -1
        with suppress(OSError):
            self._descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY)

    def read(self) -> _Memory:
        """Zeros where there is no /proc, and of a process that has ended."""
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


class ImageWorkers:
    """As many workers as there may be, each owned by a task of ``run``.

    Args:
        count: of workers.
        limits: of each.
        on_death: is told why a worker died.
    """

    def __init__(self, count: int, limits: Limits, on_death: Callable[[DeathReason], None]) -> None:
        self._count = count
        self._limits = limits
        self._on_death = on_death
        self._give, self._get = trio.open_memory_channel[ImageWorker | CannotStart](math.inf)
        self._running = False
        self._alive = 0
        self._failure: CannotStart | None = None
        self._reported = False

    @property
    def waiting(self) -> int:
        """How many wait for a worker."""
        return self._get.statistics().tasks_waiting_receive

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running. Cancellation lets their jobs end, and leaves no process."""
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._count):
                    nursery.start_soon(self._keep_one)
                task_status.started()
        finally:
            self._give.close()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[ImageWorker]:
        """Wait for a worker, and have it for the time of the block.

        Cancellation while waiting leaves it to others.

        Raises:
            CannotStart: there is none, and none starts.
            UndecodableImage: it died in the block.
            Busy: ``run`` has ended.
        """
        worker = await self._take()
        try:
            yield worker
        except WorkerDied as death:
            self._died(death.reason, str(death))
            raise UndecodableImage(str(death)) from death
        finally:
            worker.has_job = False
            if worker.leaving or worker.is_worn():
                worker.leaving = True
                worker.spent.set()
            else:
                self._give.send_nowait(worker)

    async def _take(self) -> ImageWorker:
        while True:
            if not self._running:
                raise RuntimeError("nothing runs the workers")
            if self._failure is not None and not self._alive:
                raise self._failure
            try:
                worker = await self._get.receive()
            except trio.EndOfChannel:
                raise Busy("the workers have ended") from None
            if isinstance(worker, CannotStart):
                raise worker
            if worker.leaving:
                continue
            fault = worker.fault()
            if fault is None:
                worker.has_job = True
                return worker
            self._died(fault, "while it had no job")
            worker.leaving = True
            worker.spent.set()

    def _died(self, reason: DeathReason, cause: str) -> None:
        self._on_death(reason)
        log.warning("a worker died", reason=reason, cause=cause)

    async def _keep_one(self) -> None:
        """One worker after the other."""
        pause = RESTART_PAUSE
        while True:
            try:
                await self._run_one()
                pause = RESTART_PAUSE
            except CannotStart as error:
                self._failed(error)
                await trio.sleep(pause)
                pause = min(2 * pause, MAX_RESTART_PAUSE)

    async def _run_one(self) -> None:
        """One worker, from its start until it is spent."""
        try:
            worker = await trio.to_thread.run_sync(ImageWorker.spawn, self._limits)
        except OSError as error:
            raise CannotStart(str(error)) from error
        try:
            ready = await worker.ready()
            self._started(ready)
            self._give.send_nowait(worker)
            self._alive += 1
            try:
                await self._until_spent(worker)
            finally:
                self._alive -= 1
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(worker.end)

    async def _until_spent(self, worker: ImageWorker) -> None:
        try:
            await worker.spent.wait()
        finally:
            worker.leaving = True
            # A job ends first: its time is limited, and its result is kept.
            if worker.has_job:
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
        if not self._alive:
            for _ in range(self.waiting):
                self._give.send_nowait(error)

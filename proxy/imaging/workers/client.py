"""The service's side of the workers: starts them, gives them jobs, replaces and ends them.

A worker is a sandboxed process. Each is owned by one task, and used by one job at a time.
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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import Literal, NamedTuple

import structlog
import trio

from proxy.errors import Busy, ResultTooCostly
from proxy.imaging.memory_estimate import MOST_SECONDS, Estimate
from proxy.imaging.recipes import Outcome, Recipe, Rendered
from proxy.imaging.workers.batch import Batch, Job
from proxy.imaging.workers.forks import END_LIMIT, Forked, ForkServer
from proxy.imaging.workers.ipc import (
    ANSWER,
    ERRORS,
    JOB,
    MAX_CAUSE,
    PID,
    RECIPES,
    Head,
    Ready,
    Status,
)
from proxy.imaging.workers.sandbox import Limits
from proxy.imaging.workers.shared_source import KEPT, SharedSource, VideoSource
from proxy.model import formats
from proxy.model.formats import Format
from proxy.model.picture_info import PictureInfo

TIME_LIMIT = 30.0
"""Seconds of wall time for a still result, for a worker that sleeps or is not scheduled. What ends
the work on a costly picture is its limit of CPU time, ``Estimate.cpu``."""

SHORTEST_WAIT = 0.01
"""Seconds until the CPU time of a worker near its limit is read again."""

START_LIMIT = 60.0
"""Seconds for a worker to start. On an idle machine the first takes a third of a second."""

JOBS = 1000
"""Jobs after which a fresh worker replaces one, so that memory fragmentation does not last."""

BUSY_SECONDS = 600.0
"""Seconds of work after which a worker is replaced. Its CPU limit ends it if it works without
a job."""

HELD = 128 << 20
"""Resident bytes that a worker may keep from its jobs before it is replaced."""

RESTART_PAUSE, MAX_RESTART_PAUSE = 0.5, 30.0
"""Seconds before the next attempt if a worker does not start; doubled each time."""

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
    """A worker process, and the service's end of its socket, which never blocks.

    Attributes:
        spent: set when the worker will not be used any more.
        leaving: whether it must not get another job.
        has_job: whether it has a job.
    """

    def __init__(
        self,
        server: ForkServer,
        connection: socket.socket,
        source: SharedSource | VideoSource,
    ) -> None:
        self.spent = trio.Event()
        self.leaving = False
        self.has_job = False
        self._server = server
        self._process: Forked | None = None
        connection.setblocking(False)
        self._connection = connection
        self._source = source
        self._stopped = False
        self._answered = True
        self._jobs = 0
        self._busy_seconds = 0.0
        self._memory = _MemoryFile(-1)
        self._fresh: _Memory | None = None

    @classmethod
    def spawn(
        cls, server: ForkServer, limits: Limits, room: int, video: VideoSource | None = None
    ) -> ImageWorker:
        """Have a process forked, which introduces itself and sends ``Ready`` later.

        Args:
            room: maximum bytes of a source.
            video: what its one job is about.

        Raises:
            OSError: there are no more processes or descriptors.
        """
        source = video or SharedSource(room)
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            source.close()
            raise
        worker = cls(server, ours, source)
        try:
            with theirs, _closed_after(source.to_read()) as to_read:
                server.fork(limits, theirs, to_read, source.room)
        except OSError:
            worker.end()
            raise
        return worker

    async def ready(self) -> Ready:
        """Wait for its first messages. After a cancellation, ``end`` must still be called.

        Raises:
            TimeoutError: it took longer than ``START_LIMIT``.
            OSError: the worker ended.
            ValueError: it sent another message.
        """
        with trio.move_on_after(START_LIMIT):
            await self._introduced()
            head = Head.unpack(await self._receive_on_loop(ANSWER.size))
            if head.status is not Status.READY or head.length > MAX_CAUSE:
                raise ValueError(f"sent {head.status.name} of {head.length} bytes")
            ready = Ready.model_validate_json(await self._receive_on_loop(head.length))
            # Its end takes the worker along from now on; before, it may have left an orphan.
            if not self._server.is_running():
                raise ConnectionResetError("the process that forked it has ended")
            return ready
        raise TimeoutError(f"not ready within {START_LIMIT:g} s")

    async def _introduced(self) -> None:
        await trio.lowlevel.wait_readable(self._connection)
        data, descriptors, _, _ = socket.recv_fds(self._connection, PID.size, 1)
        self._memory = _MemoryFile(descriptors[0] if descriptors else -1)
        # So few bytes come in one piece, with the descriptor.
        if len(data) < PID.size:
            raise ConnectionResetError("ended before it was ready")
        self._process = Forked(self._server, *PID.unpack(data))

    def fault(self) -> DeathReason | None:
        """Return the fault of a worker without a job, or None. Does not block.

        "crash": it ended. "protocol": it sent data although it had no job.
        """
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

    async def run(self, job: Job, tell: Callable[[Outcome], object]) -> Outcome:
        """Run ``job`` in the worker, and return the outcome of its last recipe.

        Waits for each recipe until the worker has used the CPU time of its estimate, at most for
        ``longest`` of it and a moment, and ends at once on ``stop``. If an outcome is an error, it
        is an error of the picture, or ``WorkerDefect``. A worker whose job was cancelled is worn.

        Args:
            tell: called with each outcome before the last, in order, when it is there.

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
            await self._send(job, limit)
            for place, order in enumerate(job.orders[:-1]):
                tell(await self._outcome(place, *order, limit))
                limit = self._limit_time(job.orders[place + 1][1])
            last = await self._outcome(len(job.orders) - 1, *job.orders[-1], limit)
            self._answered = True
            if len(job.source) > KEPT:
                await trio.to_thread.run_sync(self._source.clear)
            return last
        except (OSError, ValueError) as error:
            raise await self._why_it_died(error) from error
        finally:
            self._busy_seconds += time.monotonic() - began

    def stop(self) -> None:
        """Kill it during its job, which then ends at once. Does not block."""
        self._stopped = True
        self._kill()
        # Ends the wait of the job even if the kernel needs longer to end the process.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Kill it, and wait at most ``END_LIMIT`` until it is gone. May be called twice."""
        self._kill()
        # One that has not introduced itself ends when it tries to.
        self._connection.close()
        if self._process is not None:
            try:
                self._process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                log.error("a killed worker does not end", pid=self._process.pid)
        self._memory.close()
        self._source.close()

    def epitaph(self, error: Exception) -> str:
        """Kill it; return how it had ended, else ``error``, for the log. Blocks up to a second."""
        with suppress(subprocess.TimeoutExpired):
            # Its end of the socket closes shortly before the process itself has ended.
            code = (self._process or self._server).wait(1)
            self._kill()
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._kill()
        return f"{type(error).__name__}: {error}"

    def _kill(self) -> None:
        self.leaving = True
        if self._process is not None:
            self._process.kill()

    async def _why_it_died(self, error: Exception) -> Exception:
        if self._stopped:
            return Busy("the processing pool has ended")
        if isinstance(error, TimeoutError):
            self._kill()
            return WorkerDied("hang", str(error))
        if isinstance(error, OSError):
            return WorkerDied("crash", await trio.to_thread.run_sync(self.epitaph, error))
        self._kill()
        return WorkerDied("protocol", str(error))

    def _limit_memory(self, amount: int) -> None:
        """Allow the worker ``amount`` more bytes than it holds now. It may not set this itself."""
        held = self._memory.read()
        if self._fresh is None:
            self._fresh = held
        if held.resident > self._fresh.resident + HELD:
            self._jobs = JOBS
        if held.data and self._process is not None and sys.platform == "linux":
            with suppress(OSError, ValueError):  # over its hard limit, or it has ended
                _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_DATA)
                soft = min(held.data + amount, hard)
                resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (soft, hard))

    def _limit_time(self, estimate: Estimate) -> _TimeLimit:
        end = time.monotonic() + longest(estimate.cpu)
        return _TimeLimit(end, estimate.cpu, self._cpu_seconds() + estimate.cpu)

    def _cpu_seconds(self) -> float:
        """The CPU time of the process; 0 if it has ended, or if the platform does not tell."""
        if self._process is None or sys.platform != "linux":
            return 0.0
        try:
            # The clock of another process, as clock_getcpuclockid(3) gives it.
            return time.clock_gettime(~self._process.pid << 3 | _CPUCLOCK_SCHED)
        except OSError:
            return 0.0

    async def _send(self, job: Job, limit: _TimeLimit) -> None:
        if len(job.source) > KEPT:
            await trio.to_thread.run_sync(self._source.put, job.source)
        else:  # to copy it takes a tenth of a millisecond, a thread longer
            self._source.put(job.source)
        recipes = _packed(tuple(recipe for recipe, _ in job.orders))
        left = memoryview(JOB.pack(len(recipes), len(job.source), job.pixels) + recipes)
        while left:
            wait = self._longest_wait(limit)
            try:
                left = left[self._connection.send(left) :]
            except BlockingIOError:
                with trio.move_on_after(wait):
                    await trio.lowlevel.wait_writable(self._connection)

    async def _outcome(
        self, place: int, recipe: Recipe, estimate: Estimate, limit: _TimeLimit
    ) -> Outcome:
        head, data = await self._answer(limit, estimate.result)
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

    async def _answer(self, limit: _TimeLimit, most: int) -> tuple[Head, bytes]:
        """Raises OSError if the worker ends, TimeoutError, and ValueError for an invalid answer."""
        head = Head.unpack(bytes(await self._receive(ANSWER.size, limit)))
        if head.length > (most if head.status is Status.DONE else MAX_CAUSE):
            raise ValueError(f"{head.status.name} of {head.length} bytes")
        return head, bytes(await self._receive(head.length, limit))

    async def _receive(self, length: int, limit: _TimeLimit) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            wait = self._longest_wait(limit)
            try:
                received = self._connection.recv_into(view)
            except BlockingIOError:
                with trio.move_on_after(wait):  # the limits decide whether this is the end
                    await trio.lowlevel.wait_readable(self._connection)
                continue
            if not received:
                raise ConnectionResetError("ended in an answer")
            view = view[received:]
            if view:  # one that sends byte after byte is not to hold the loop
                await trio.lowlevel.checkpoint()
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
        raise TimeoutError("no answer within the time limit")
    return left


def longest(cpu: float) -> float:
    """Return the seconds of wall time for a recipe that may compute for ``cpu`` seconds.

    ``TIME_LIMIT`` is meant for a still; one that moves may compute for longer.
    """
    return TIME_LIMIT + max(cpu - MOST_SECONDS, 0)


@lru_cache(maxsize=64)
def _packed(recipes: tuple[Recipe, ...]) -> bytes:
    return RECIPES.dump_json(recipes)


def _checked(format_: Format, data: bytes, recipe: Recipe) -> Rendered:
    """Return the result; raise ValueError if the recipe does not allow it."""
    if recipe.output is Format.JSON and format_ is Format.JSON:
        told = PictureInfo.model_validate_json(data)
        return Rendered(told.model_dump_json().encode(), format_)
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
    """Linux's ``statm`` file of a process, or -1. It is read before each job."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

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
async def fork_server(
    threads: trio.CapacityLimiter, *, for_videos: bool = False
) -> AsyncIterator[ForkServer]:
    """Have what workers are forked from. After the block its process and all workers are gone."""
    server = ForkServer(for_videos=for_videos)
    try:
        yield server
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.close, limiter=threads)


@contextmanager
def _token(jobs: trio.CapacityLimiter) -> Iterator[None]:
    """Hold a token, which must be free."""
    jobs.acquire_nowait()
    try:
        yield
    finally:
        jobs.release()


@contextmanager
def _closed_after(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@asynccontextmanager
async def started(
    server: ForkServer,
    limits: Limits,
    room: int,
    threads: trio.CapacityLimiter,
    video: VideoSource | None = None,
) -> AsyncIterator[tuple[ImageWorker, Ready]]:
    """Start a worker, and yield it with its first message. After the block its process is gone.

    Args:
        room: maximum bytes of a source.
        threads: the limiter of the threads that start and end it, one at a time.
        video: what its one job is about.

    Raises:
        CannotStart: no process could be created, or it ended, took too long, or sent another
            message.
    """
    try:
        worker = await trio.to_thread.run_sync(
            ImageWorker.spawn, server, limits, room, video, limiter=threads
        )
    except OSError as error:
        raise CannotStart(str(error)) from error
    try:
        try:
            ready = await worker.ready()
        except TimeoutError as error:
            # The next one is forked from another process.
            await trio.to_thread.run_sync(server.close, limiter=threads)
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
        room: maximum bytes of a source.
        on_death: called with the reason when a worker died.
        on_decoders: called with what a worker has that started.
    """

    def __init__(
        self,
        count: int,
        limits: Limits,
        room: int,
        on_death: Callable[[DeathReason], None],
        on_decoders: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._count = count
        self._limits = limits
        self._room = room
        self._on_death = on_death
        self._on_decoders = on_decoders
        # Each task that owns a worker uses one of these threads at a time, to start or end it.
        self._threads = trio.CapacityLimiter(count)
        self._video_threads = trio.CapacityLimiter(count)
        self._idle: deque[ImageWorker] = deque()
        self._serving: set[ImageWorker] = set()
        self._failure: CannotStart | None = None
        self._changed = trio.Event()
        self._reported = False
        self._video_server: ForkServer | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running. Cancellation kills them, even during a job."""
        async with (
            fork_server(self._video_threads, for_videos=True) as self._video_server,
            fork_server(self._threads) as server,
            trio.open_nursery() as nursery,
        ):
            for _ in range(self._count):
                nursery.start_soon(self._keep_one, server, name="image_worker")
            task_status.started()

    async def run_job(
        self, batch: Batch, tell: Callable[[Outcome], object], jobs: trio.CapacityLimiter
    ) -> Outcome:
        """Run the job of ``batch`` on a worker, and return its last outcome.

        There are no more tokens than workers, so a worker is free unless it is being replaced. Then
        ``batch`` waits: for ``process.queue_wait`` while another worker serves, else until a worker
        has started. A cancellation before the job begins leaves nothing behind; after that it waits
        for the end.

        Args:
            tell: called with each outcome before the last.
            jobs: has a token for this job now, and that of the worker until it is free again.

        Raises:
            CannotStart: there is no worker, and a worker cannot be started.
            ResultTooCostly: the worker died.
            Busy: the worker was killed because ``run`` was cancelled.
        """
        with _token(jobs):
            worker, job = await self._begin(batch)
            try:
                return await self._outcome(worker, job, tell)
            finally:
                self._give_back(worker)

    async def run_video(
        self, video: VideoSource, job: Job, limits: Limits, jobs: trio.CapacityLimiter
    ) -> Outcome:
        """Run the one recipe of ``job`` in a worker of its own, which ends with it.

        A cancellation during the job waits for its end. A stop of ``run`` ends it at once.

        Args:
            jobs: has a token for this job now.

        Raises:
            CannotStart: the worker does not start.
            ResultTooCostly: it died.
        """
        if (server := self._video_server) is None:
            raise CannotStart("nothing runs the workers")
        async with started(server, limits, video.room, self._video_threads, video) as (
            worker,
            ready,
        ):
            self._on_decoders(ready.decoders)
            with _token(jobs):
                return await self._outcome(worker, job, lambda outcome: None)

    async def _outcome(
        self, worker: ImageWorker, job: Job, tell: Callable[[Outcome], object]
    ) -> Outcome:
        """The last outcome of a job that has begun, and goes on to its end."""
        try:
            with trio.CancelScope(shield=True):
                last = await worker.run(job, tell)
        except WorkerDied as death:
            self._died(death.reason, str(death))
            raise ResultTooCostly(str(death)) from death
        return last

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

    async def _keep_one(self, server: ForkServer) -> None:
        """Run one worker after the other, without end."""
        pause = RESTART_PAUSE
        while True:
            try:
                async with started(server, self._limits, self._room, self._threads) as (
                    worker,
                    ready,
                ):
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
                # The service stops, and nothing will use the results. The job still uses the
                # worker's socket for a moment, until it ends.
                worker.stop()
                with trio.CancelScope(shield=True):
                    await worker.spent.wait()

    def _started(self, ready: Ready) -> None:
        self._failure = None
        self._on_decoders(ready.decoders)
        if ready.missing and not self._reported:
            self._reported = True
            log.warning("the sandbox lacks parts on this platform", missing=ready.missing)

    def _failed(self, error: CannotStart) -> None:
        log.error("no worker starts", cause=str(error))
        self._failure = error
        self._wake()

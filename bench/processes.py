"""The processes of a benchmark: started, waited for, and always ended, each by its id."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import h11
import trio

from bench.client import get
from bench.pictures import BASES, Size
from bench.upstream import LOOPBACK, Counts, Manifest
from proxy.config import ENV_PREFIX
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]

START_SECONDS = 60.0
POLL_SECONDS = 0.02
AT_REST_SECONDS, AT_REST_LOOKS = 0.1, 3
"""So many looks find the same: a busy machine may not run a process for longer than one."""

GRACE_SECONDS = 10.0
"""From SIGTERM to SIGKILL."""

INTERRUPTED = 130
"""Exit code of what SIGINT or SIGTERM ended, as shells have it."""


class BenchError(Exception):
    """A benchmark cannot go on; the text says why."""


def run(main: Callable[[], Awaitable[int]]) -> int:
    """Run ``main``; SIGTERM ends it as Ctrl-C does, so that no process of ours is left behind.

    Returns:
        its exit code, or 1 for a ``BenchError`` or a time limit, which is printed.
    """
    code = INTERRUPTED

    async def guarded() -> None:
        nonlocal code
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_sigterm, nursery.cancel_scope)
            code = await main()
            nursery.cancel_scope.cancel()

    try:
        trio.run(guarded)
    except* SystemExit as ends:  # the parser of arguments has helped, or said what is wrong
        (end,) = ends.exceptions
        assert isinstance(end, SystemExit)
        code = int(end.code or 0)
    except* KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except* (BenchError, trio.TooSlowError) as failures:
        code = 1
        print(*_said(failures), sep="\n", file=sys.stderr)
    return code


def _said(failures: BaseExceptionGroup[Exception]) -> Iterator[str]:
    for each in failures.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _said(each)
        else:
            yield f"{type(each).__name__}: {each}"


async def _cancel_on_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def allow_open_files(wanted: int) -> None:
    """Raise this process's limit, which those it starts inherit.

    Raises:
        BenchError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise BenchError(f"{wanted} open files are needed, and the limit is {hard} (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@asynccontextmanager
async def running(
    module: str,
    *arguments: str,
    log: Path,
    stdout: int | None = None,
    environment: Mapping[str, str] | None = None,
    checkout: Path = ROOT,
) -> AsyncIterator[trio.Process]:
    """``python -m module`` for the time of the block; its output goes to ``log``.

    Args:
        checkout: whose module it is; another one's runs with the interpreter in its ``.venv``.
        stdout: ``subprocess.PIPE`` to read it here; if not specified, to ``log`` too.
        environment: ``IMAGE_PROXY_`` variables; those of this process are not passed on.
    """
    python = sys.executable if checkout == ROOT else str(checkout / ".venv/bin/python")
    command = [python, "-m", module, *arguments]
    async with started(
        command, log=log, stdout=stdout, environment=environment, folder=checkout
    ) as process:
        yield process


@asynccontextmanager
async def started(
    command: Sequence[str],
    *,
    log: Path,
    stdout: int | None = None,
    stderr: int | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path = ROOT,
) -> AsyncIterator[trio.Process]:
    """Any program in ``folder`` for the time of the block; as ``running``, also for ``stderr``."""
    with log.open("ab") as output:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=output if stdout is None else stdout,
            stderr=output if stderr is None else stderr,
            cwd=folder,
            env={**inherited(), **(environment or {})},
        )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


def inherited() -> dict[str, str]:
    """This process's environment, without what would configure a proxy."""
    return {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}


async def _end(process: trio.Process) -> None:
    process.terminate()
    with trio.move_on_after(GRACE_SECONDS):
        await process.wait()
        return
    process.kill()
    await process.wait()


@asynccontextmanager
async def upstream(
    folder: Path,
    *,
    blobs: int,
    size: Size,
    latency: float,
    bases: int = BASES,
    host: str = LOOPBACK,
    hanging_host: str = LOOPBACK,
) -> AsyncIterator[Manifest]:
    """A ``bench.upstream`` for the time of the block."""
    log = folder / "upstream.log"
    arguments = {
        "--blobs": blobs,
        "--size": size,
        "--latency": latency,
        "--bases": bases,
        "--host": host,
        "--hanging-host": hanging_host,
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    async with running("bench.upstream", *words, log=log, stdout=subprocess.PIPE) as process:
        yield await _manifest(process, log)


async def _manifest(process: trio.Process, log: Path) -> Manifest:
    assert process.stdout is not None
    received = bytearray()
    with trio.move_on_after(START_SECONDS):
        async for chunk in process.stdout:
            received += chunk
            if received.endswith(b"\n"):
                return Manifest.parse(bytes(received))
    raise BenchError(f"the upstream does not start\n{_tail(log)}")


@dataclass(frozen=True, slots=True)
class Server:
    """A server under load, started and perhaps not ready yet."""

    process: trio.Process
    port: int
    log: Path

    async def ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until ``/readyz`` answers 200.

        Raises:
            BenchError: the process ended, or is not ready in time.
        """
        await until(self.is_ready, f"port {self.port} to be ready", seconds)

    async def is_ready(self) -> bool:
        """Whether it is; BenchError where it has ended."""
        if self.process.poll() is not None:
            raise BenchError(f"a server ended with {self.process.returncode}\n{_tail(self.log)}")
        try:
            return (await get(self.port, "/readyz")).status == 200
        except (OSError, trio.BrokenResourceError, h11.ProtocolError):
            return False  # it does not listen yet, or a relay before it has nobody behind


@asynccontextmanager
async def proxy(
    folder: Path,
    name: str,
    directory_port: int,
    checkout: Path = ROOT,
    module: str = "proxy",
    /,
    **extra: str,
) -> AsyncIterator[Server]:
    """``python -m proxy serve`` of a checkout, or of what wraps it, for the time of the block."""
    port = free_port()
    log = folder / f"{name}.log"
    environment = {
        "IMAGE_PROXY_SERVER__BIND": f"{LOOPBACK}:{port}",
        "IMAGE_PROXY_IDENTITY__PLC_URL": f"http://{LOOPBACK}:{directory_port}",
        "IMAGE_PROXY_FETCH__ALLOW_HTTP": "true",
        "IMAGE_PROXY_FETCH__ALLOW_PRIVATE_HOSTS": "true",
        "IMAGE_PROXY_CACHE__PATH": str(folder / f"{name}-cache"),
        **extra,
    }
    async with running(
        module, "serve", log=log, environment=environment, checkout=checkout
    ) as process:
        yield Server(process, port, log)


@asynccontextmanager
async def peer(folder: Path, answers: Path, *extra: str) -> AsyncIterator[Server]:
    """``bench.peer`` for the time of the block."""
    port = free_port()
    log = folder / "peer.log"
    arguments = ("--bind", f"{LOOPBACK}:{port}", "--answers", str(answers), *extra)
    async with running("bench.peer", *arguments, log=log) as process:
        yield Server(process, port, log)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants; NaN where there is no Linux to ask.

    Those that have ended count too, once they were waited for: then their time is their parent's.
    """
    try:
        while True:
            own, ended = _cpu_of(pid)
            running = [cpu_seconds(child) for child in children(pid)]
            # A child that ended meanwhile would count twice, or not at all.
            if _cpu_of(pid)[1] == ended:
                return own + ended + sum(each for each in running if not math.isnan(each))
    except OSError:
        return math.nan


def _cpu_of(pid: int) -> tuple[float, float]:
    """Seconds of a process itself, and of its descendants that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    # proc_pid_stat(5): utime, stime, cutime and cstime, fields 14 to 17; the first here is field 3.
    user, system, user_of_ended, system_of_ended = map(int, fields[11:15])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + system) / tick, (user_of_ended + system_of_ended) / tick


async def cpu_at_rest(pid: int) -> float:
    """``cpu_seconds`` when they no longer grow: results are written after the answer."""
    found = cpu_seconds(pid)
    same = 0
    with trio.move_on_after(START_SECONDS):
        while same < AT_REST_LOOKS:
            await trio.sleep(AT_REST_SECONDS)
            last, found = found, cpu_seconds(pid)
            same = same + 1 if found == last else 0
    return found


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; 0 of what has ended.

    What several of them share counts for each.
    """
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    own = pages * os.sysconf("SC_PAGE_SIZE")
    return own + sum(resident_bytes(child) for child in children(pid))


def pss_bytes(pid: int) -> int:
    """Memory of a process and its descendants, what several share divided among them.

    0 of what has ended, and where there is no Linux to ask.
    """
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in rollup.splitlines())
    own = next((int(words[1]) << 10 for words in lines if words[0] == "Pss:"), 0)
    return own + sum(pss_bytes(child) for child in children(pid))


def children(pid: int) -> list[int]:
    """The processes that a process started: each is the child of a thread (proc_pid_task(5))."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            found += map(int, children.read_text().split())
    return found


async def until(
    reached: Callable[[], Awaitable[bool]], what: str, seconds: float = START_SECONDS
) -> None:
    """Poll until ``reached``; BenchError after ``seconds``."""
    with trio.move_on_after(seconds):
        while not await reached():  # noqa: ASYNC110  # it happens in another process
            await trio.sleep(POLL_SECONDS)
        return
    raise BenchError(f"waited {seconds:g} s for {what}")


async def counts(port: int) -> Counts:
    """What the upstream on ``port`` was asked."""
    return Counts.parse((await get(port, "/counts")).body)


async def metric(port: int, name: str) -> float:
    """A metric of the proxy on ``port``, summed over its labels; 0 while there is none."""
    return sum((await metrics(port, name)).values())


async def metrics(port: int, name: str) -> dict[str, float]:
    """The values of a metric of the proxy on ``port``, by its labels as they are printed."""
    found = {}
    for line in (await get(port, "/metrics")).body.decode().splitlines():
        series, _, value = line.rpartition(" ")
        metric_name, _, labels = series.partition("{")
        if metric_name == name:
            found[labels.removesuffix("}")] = float(value)
    return found


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

"""Fails a test in which code of ``proxy`` held up the event loop: by computing, or for a disk.

While one step of a task runs, nothing else of the service does. A step may take 50 ms of CPU time,
and may not ask a file system anything: an answer takes microseconds, until a disk is slow.

What the tests themselves do in a step (pictures, files) is let pass. So is a function of ``proxy``
that blocks and that a test calls without a thread: a stall is that of the innermost async function.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import inspect
import os
import signal
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import trio

from tests import open_files

ROOT = Path(__file__).resolve().parents[1]

LIMIT_SECONDS = 0.05
"""CPU time of the loop's thread in one step. A busy machine does not add to it."""

SAMPLE_SECONDS = 0.01
"""How often a step that goes on is asked for its stack; in CPU time of the process."""

ALLOWED: Mapping[str, str] = {
    "imaging/workers/shared_source.py:SharedSource.put": "copies to a file in memory, up to 1 MiB",
    "lifecycle.py:open_service": "makes and closes the parts while nothing is served",
    "lifecycle.py:open_moderator": "of a command, which serves nothing",
    "serving/multiprocess/peers.py:forget": "of the supervisor, whose loop answers no request",
}
"""Functions of ``proxy`` (file:name) that may hold up the loop, and why."""

TRACEBACKS = frozenset({"linecache", "rich.console", "traceback"})
"""Modules that write tracebacks: only a defect makes the service write one."""

NO_DISK = ("/dev/", "/proc/", "/sys/")
"""Files that the kernel has in memory."""

FILE_EVENTS = frozenset(
    {
        "fcntl.flock",
        "fcntl.lockf",
        "open",
        "os.chmod",
        "os.chown",
        "os.link",
        "os.listdir",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.scandir",
        "os.symlink",
        "os.truncate",
        "os.utime",
        "sqlite3.connect",
    }
)
"""Audit events of Python (sys.addaudithook) that tell of a call for a file system."""

BY_PATH = ("access", "lstat", "readlink", "stat", "statvfs")
BY_DESCRIPTOR = ("fdatasync", "fsync", "pread", "pwrite", "read", "write")
"""Functions of ``os`` of which no event tells. ``fstat`` is not among them: it asks memory."""

SQLITE = ("commit", "execute", "executemany", "executescript")


class LoopStalled(AssertionError):
    """The event loop was held up."""


class LoopStalls(trio.abc.Instrument):
    """Watches every step of one ``trio.run``.

    Args:
        found: is given each stall: where it was, and what.
    """

    def __init__(self, found: dict[str, str]) -> None:
        self._found = found
        self._timed = threading.current_thread() is threading.main_thread()
        self._since = 0.0
        self._seconds: dict[bool, float] = {}
        self._worst = (0.0, "")
        self._owner = True
        self._collecting_since: float | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Begin to measure."""
        self._seconds = {True: 0.0, False: 0.0}
        self._worst = (0.0, "where it was is not known")
        # Time counts from the first sample that finds the service at work; where none can be taken,
        # all of it counts, but for that of a test's own task.
        code = getattr(task.coro, "cr_code", None)
        is_test = code is not None and code.co_filename.startswith(_TESTS)
        self._owner = not self._timed and not is_test
        _stepping[threading.get_ident()] = self
        if self._timed:
            signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)
        self._since = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Judge the step that has ended."""
        self._seconds[self._owner] += time.thread_time() - self._since
        if self._timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
        del _stepping[threading.get_ident()]
        if self._seconds[True] > LIMIT_SECONDS:
            spent = f"{self._seconds[True] * 1000:.0f} ms of CPU time in one step"
            self._found.setdefault(self._worst[1], f"{spent} of {task.name}")

    def sample(self, frame: FrameType | None) -> None:
        """Count the CPU time since the last sample as that of ``frame``."""
        if self._collecting_since is not None:
            return
        now = time.thread_time()
        spent, self._since = now - self._since, now
        ours, self._owner = _stack(frame)
        self._seconds[self._owner] += spent
        if self._owner and spent > self._worst[0]:
            self._worst = (spent, " < ".join(ours))

    def collecting(self, *, is_at_end: bool) -> None:
        """Leave out the time of the garbage collector: most of the heap is pytest's."""
        if not is_at_end:
            self._collecting_since = time.thread_time()
        elif self._collecting_since is not None:
            self._since += time.thread_time() - self._collecting_since
            self._collecting_since = None

    def touch(self, call: str, what: object) -> None:
        """Note a call for a file system, on ``what``: a path, or a descriptor of an open file."""
        if self._collecting_since is not None:  # the finalizer of somebody's garbage
            return
        if isinstance(what, str | bytes | os.PathLike) and os.fsdecode(what).startswith(NO_DISK):
            return
        ours, is_proxy = _stack(sys._getframe(2))
        if is_proxy:
            self._found.setdefault(f"{call} in {' < '.join(ours)}", repr(what))


@contextmanager
def watching() -> Iterator[dict[str, str]]:
    """Every ``trio.run`` of the block is watched; what it yields has the stalls."""
    found: dict[str, str] = {}
    _watchers.append(found)
    try:
        yield found
    finally:
        _watchers.pop()


_watchers: list[dict[str, str]] = []
_stepping: dict[int, LoopStalls] = {}


def _stack(frame: FrameType | None) -> tuple[list[str], bool]:
    """The functions of ``proxy`` in this step, innermost first; whether what it does is theirs."""
    ours: list[str] = []
    is_proxy: bool | None = None
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        if code.co_name == "unrolled_run":
            break
        if file.startswith("<frozen importlib") or frame.f_globals.get("__name__") in TRACEBACKS:
            return [], False  # an import happens once in the life of a process
        if file in _WRAPPERS:
            frame = frame.f_back
            continue
        if file.startswith(_PROXY):
            ours.append(f"{file[len(_PROXY) :]}:{code.co_qualname}")
            if is_proxy is None and code.co_flags & _ASYNC:
                is_proxy = True
        elif file.startswith(_TESTS) and is_proxy is None and (not ours or code.co_flags & _ASYNC):
            is_proxy = False
        frame = frame.f_back
    return ours, is_proxy is not False and not any(function in ALLOWED for function in ours)


_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_WRAPPERS = (__file__, open_files.__file__)
_PROXY = f"{ROOT / 'proxy'}{os.sep}"
_TESTS = f"{ROOT / 'tests'}{os.sep}"


def _on_audit(event: str, arguments: tuple[Any, ...]) -> None:
    stalls = _stepping.get(threading.get_ident())
    if stalls is None or event not in FILE_EVENTS:
        return
    what = arguments[0] if arguments else None
    if event == "open" and isinstance(what, int):  # a file object over it
        return
    if event.startswith("fcntl.") and arguments[1] & (fcntl.LOCK_NB | fcntl.LOCK_UN):
        return
    stalls.touch(event, what)


def _on_collection(phase: str, _details: object) -> None:
    stalls = _stepping.get(threading.get_ident())
    if stalls is not None:
        stalls.collecting(is_at_end=phase == "stop")


def _on_sample(_number: int, frame: FrameType | None) -> None:
    stalls = _stepping.get(threading.get_ident())
    if stalls is not None:
        stalls.sample(frame)


_NO_DISK = frozenset(os.stat(folder).st_dev for folder in NO_DISK if os.path.ismount(folder))


def _is_on_disk(descriptor: object) -> bool:
    if not isinstance(descriptor, int):
        return False
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and status.st_dev not in _NO_DISK


def _guarded(name: str, original: Callable[..., Any], *, by_descriptor: bool) -> Callable[..., Any]:
    @functools.wraps(original)
    def guarded(*arguments: Any, **options: Any) -> Any:
        stalls = _stepping.get(threading.get_ident())
        if stalls is not None and (not by_descriptor or _is_on_disk(arguments[0])):
            stalls.touch(name, arguments[0])
        return original(*arguments, **options)

    return guarded


def _telling(factory: type[sqlite3.Connection]) -> type[sqlite3.Connection]:
    """Its connections, which tell of statements on the loop."""
    methods = {
        name: _guarded(f"sqlite3.{name}", getattr(factory, name), by_descriptor=False)
        for name in SQLITE
    }
    return type(factory.__name__, (factory,), methods)


def _connect(
    *arguments: Any, factory: type[sqlite3.Connection] = sqlite3.Connection, **options: Any
) -> sqlite3.Connection:
    connection: sqlite3.Connection = _sqlite_connect(
        *arguments, factory=_telling(factory), **options
    )
    return connection


def _run(*arguments: Any, **options: Any) -> Any:
    if _watchers:
        instruments = [*options.get("instruments", ()), LoopStalls(_watchers[-1])]
        options["instruments"] = instruments
    return _trio_run(*arguments, **options)


def _install() -> None:
    """Put the hooks in place, for the life of this process: an audit hook cannot be removed."""
    for name in BY_PATH + BY_DESCRIPTOR:
        original = getattr(os, name)
        guarded = _guarded(f"os.{name}", original, by_descriptor=name in BY_DESCRIPTOR)
        setattr(os, name, guarded)
        for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if original in able:
                able.add(guarded)
    vars(sqlite3)["connect"] = _connect
    vars(trio)["run"] = functools.wraps(_trio_run)(_run)
    sys.addaudithook(_on_audit)
    gc.callbacks.append(_on_collection)
    signal.signal(signal.SIGPROF, _on_sample)
    # A system call that the signal comes upon goes on.
    signal.siginterrupt(signal.SIGPROF, False)


_sqlite_connect = sqlite3.connect
_trio_run = trio.run
_install()

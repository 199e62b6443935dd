"""Workers that misbehave, and what a worker must not be able to do. Runs in the worker."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from proxy.errors import UndecodableImage
from proxy.imaging.pipeline import render
from proxy.imaging.recipes import Outcome, Recipe, Rendered
from proxy.imaging.workers import fork_server, sandbox
from proxy.imaging.workers import main as worker
from proxy.imaging.workers.imports import import_all
from proxy.imaging.workers.main import Given, render_job, serve
from proxy.model.formats import Format
from proxy.model.presets import Preset

BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[2:]; from tests.imaging.workers.hostile import main; "
    "main(int(sys.argv[1]))"
)
WITH_THREADS = BOOTSTRAP.removesuffix(")") + ", threads=4)"

JPEG = b"\xff\xd8\xff made by a hostile worker"

_connection: socket.socket
_source: int
_call_as_i386: Callable[[int], int]


def main(descriptor: int, threads: int = 0) -> None:
    """Workers as the real ones are, up to what they do with a source."""
    fork_server.ignore_signals()
    import_all()
    fork_server.fork_workers(socket.socket(fileno=descriptor), threads, _be_worker)


def _be_worker(given: Given) -> None:
    global _connection, _source, _call_as_i386
    _connection = given.connection
    with open("/proc/self/maps", encoding="ascii") as maps:
        (_source,) = (int(line.partition("-")[0], 16) for line in maps if "memfd:source" in line)
    _call_as_i386 = gate_to_i386()
    serve(given, work)


def work(source: bytes, recipes: Sequence[Recipe], max_pixels: int) -> Iterator[Outcome]:
    """Do as the source says, for each recipe: a name, a colon, and the rest.

    ``at:1:`` before it: only for the second recipe.
    """
    name, _, rest = source.partition(b":")
    if name not in DEEDS and name != b"at":
        yield from render_job(source, recipes, max_pixels)
        return
    for place in range(len(recipes)):
        here, there = name, rest
        if name == b"at":
            number, _, deed = rest.partition(b":")
            here, _, there = (
                deed.partition(b":") if place == int(number) else (b"nothing", b"", b"")
            )
        try:
            DEEDS[here](there)
            yield Rendered(JPEG, Format.JPEG)
        except Exception as error:
            yield error


def _spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _end_with(said: bytes) -> None:
    _connection.sendall(said)
    os._exit(0)


def _import_quietly(name: str) -> None:
    """As libraries do it with what they can do without."""
    with suppress(ImportError):
        __import__(name)


def _fail(error: Exception) -> None:
    raise error


DEEDS: dict[bytes, Callable[[bytes], object]] = {
    b"nothing": lambda rest: None,
    b"crash": lambda rest: ctypes.string_at(0),
    b"abort": lambda rest: os.abort(),
    b"hang": lambda rest: _spin(math.inf),
    b"spin": lambda rest: _spin(float(rest)),
    b"sleep": lambda rest: threading.Event().wait(60),
    b"nap": lambda rest: threading.Event().wait(float(rest)),
    b"take": lambda rest: bytearray(int(rest)),
    b"raw": _end_with,
    b"more": lambda rest: _connection.sendall(rest),
    b"thread": lambda rest: _fail(UndecodableImage(_in_a_thread())),
    b"overwrite": lambda rest: _fail(UndecodableImage(attempt(_overwrite))),
    b"defect": lambda rest: _fail(ZeroDivisionError("a defect")),
    b"import": lambda rest: _import_quietly(rest.decode()),
    b"probe": lambda rest: _fail(UndecodableImage(attempt(PROBES[rest.decode()]))),
    b"sweep": lambda rest: _fail(UndecodableImage(SWEEPS[rest.decode()]())),
}


def attempt(probe: Callable[[], object]) -> str:
    """What came of it."""
    try:
        return f"done: {probe()}"
    except (OSError, ValueError) as error:
        return f"failed: {error}"


def _call(name: str, *arguments: object) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, name)
    function.restype = ctypes.c_long
    result = function(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _fork() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def _exec() -> None:
    os.execv("/bin/true", ["/bin/true"])  # noqa: S606


def _overwrite() -> None:
    _call("mprotect", ctypes.c_void_p(_source), ctypes.c_size_t(PAGE), READ | WRITE)
    ctypes.memmove(_source, b"own", 3)


def _listen() -> None:
    with socket.socket(socket.AF_UNIX) as here:
        here.bind("\0" + os.urandom(8).hex())
        here.listen()


def _connect() -> None:
    with socket.socket() as there, socket.socket() as here:
        there.bind(("127.0.0.1", 0))
        there.listen()
        here.connect(there.getsockname())


NONE, READ, WRITE, EXECUTE = 0, 1, 2, 4
PAGE = 4096


def _map(size: int, protection: int, flags: int) -> int:
    """The address of new memory."""
    address = _call("mmap", None, ctypes.c_size_t(size), protection, flags, -1, ctypes.c_long(0))
    assert isinstance(address, int)
    return address


def _map_and_unmap(size: int, protection: int, flags: int) -> None:
    _unmap(_map(size, protection, flags), size)


def _unmap(address: int, size: int) -> None:
    _call("munmap", ctypes.c_void_p(address), ctypes.c_size_t(size))


PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
GROWS_DOWN, NO_RESERVE = 0x100, 0x4000
LOT = 1 << 36
"""Bytes, more than any worker may have. Without access to them, they cost nothing."""


def _protect(before: int, after: int, size: int = PAGE) -> None:
    """Change what may be done with private memory."""
    address = _map(size, before, PRIVATE | NO_RESERVE)
    try:
        _call("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(size), after)
    finally:
        _unmap(address, size)


def _enlarge() -> None:
    address = _map(PAGE, READ | WRITE, PRIVATE)
    sizes = ctypes.c_size_t(PAGE), ctypes.c_size_t(2 * PAGE)
    _call("mremap", ctypes.c_void_p(address), *sizes, 1)


def _start_thread() -> None:
    libc = ctypes.CDLL(None)
    thread = ctypes.c_ulong()
    code = ctypes.cast(libc.getpid, ctypes.c_void_p)
    number = libc.pthread_create(ctypes.byref(thread), None, code, None)
    if number:
        raise OSError(number, os.strerror(number))
    libc.pthread_join(thread, None)


def _raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


PROBES: dict[str, Callable[[], object]] = {
    "read a file": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
    "read its own program": lambda: os.close(os.open(sys.executable, os.O_RDONLY)),
    "list a folder": lambda: os.listdir("/"),
    "write a file": lambda: os.close(os.open("/tmp", os.O_TMPFILE | os.O_WRONLY)),  # noqa: S108
    "look at a file": lambda: os.stat("/etc/passwd"),
    "read its environment": lambda: os.close(os.open("/proc/self/environ", os.O_RDONLY)),
    "read its parent": lambda: os.close(os.open(f"/proc/{os.getppid()}/status", os.O_RDONLY)),
    "open a socket": lambda: socket.socket().close(),
    "listen in a namespace of names": _listen,
    "connect": _connect,
    "duplicate a descriptor": lambda: os.close(os.dup(1)),
    "fork": _fork,
    "signal its parent": lambda: os.kill(os.getppid(), 0),
    "signal everybody": lambda: os.kill(-1, 0),
    "map executable memory": lambda: _map_and_unmap(PAGE, READ | WRITE | EXECUTE, PRIVATE),
    "make memory executable": lambda: _protect(READ | WRITE, EXECUTE),
    # RLIMIT_DATA counts none of these.
    "share memory": lambda: _map_and_unmap(LOT, READ | WRITE, SHARED | NO_RESERVE),
    "map memory that grows": lambda: _map_and_unmap(1 << 27, READ | WRITE, PRIVATE | GROWS_DOWN),
    "map memory to read alone": lambda: _map_and_unmap(PAGE, READ, PRIVATE),
    "make written memory read-only": lambda: _protect(READ | WRITE, READ),
    "hide written memory": lambda: _protect(READ | WRITE, NONE),
    "enlarge memory": _enlarge,
    "start a thread": _start_thread,
    "make a file in memory": lambda: os.close(os.memfd_create("x")),
    "make a namespace": lambda: _call("unshare", 0),
    "change its limits": _raise_limit,
    "execute": _exec,
}  # fmt: skip
"""Each is done by a process that is not confined; "execute" ends it."""


CALLS = [*range(600), *(0x40000000 | number for number in range(600))]
"""The system calls of x86-64, many numbers that none has, and the same for the x32 interface."""

ENDS = {15, 60, 231, 335, 336}
"""rt_sigreturn, exit, exit_group, uretprobe and uprobe of x86-64, with which the sweep would end:
the kernel exempts the last two from filters, and ends a process that calls them on its own."""

DISTURBS = {153, 162}
"""vhangup and sync, which disturb others than their process."""


def call_number(number: int) -> int:
    """What a call fails with (0: it did not), with arguments that no call accepts as pointers,
    descriptors, sizes or flags: so it fails by them, if it is not refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6) != -1:
        return 0
    return ctypes.get_errno()


def _every_call() -> str:
    found = {number: call_number(number) for number in CALLS if number not in ENDS}
    return _listed(found, errno.EPERM)


def _every_descriptor() -> str:
    """What reading says of each: a file that is no socket, or a socket without data."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = ctypes.create_string_buffer(1)
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    found = {}
    for number in range(4096):
        if libc.recv(number, there, 1, flags) == -1:
            found[number] = ctypes.get_errno()
        else:
            found[number] = 0
    return _listed(found, errno.EBADF)


def _every_signal() -> str:
    """Whom signal 0, which only asks for permission, reaches by which call of x86-64."""
    parent, own = os.getppid(), os.getpid()
    ways = {
        f"{name} {whom}": (number, *arguments)
        for whom in (parent, 1, 0, -1, -os.getpid(), own)
        for name, number, arguments in (
            ("kill", 62, (whom, 0)),
            ("tkill", 200, (whom, 0)),
            ("tgkill", 234, (whom, whom, 0)),
            ("rt_sigqueueinfo", 129, (whom, 0, 0)),
            ("rt_tgsigqueueinfo", 297, (whom, whom, 0, 0)),
            ("pidfd_open", 434, (whom, 0)),
        )
        if (name, whom) != ("tgkill", own)
    }
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for way, numbers in ways.items():
        failed = libc.syscall(*map(ctypes.c_long, numbers)) == -1
        found[way] = ctypes.get_errno() if failed else 0
    return _listed(found, errno.EPERM)


def _every_mapping() -> str:
    """Which protections and flags are accepted: each bit, beside private and shared memory."""
    found = {}
    for base in (PRIVATE, SHARED):
        for flags in (base, *(base | 1 << bit for bit in range(32))):
            for protection in (*range(16), *(WRITE | 1 << bit for bit in range(4, 31))):
                try:
                    # Far from what is there, where a fixed address is accepted.
                    _map_and_unmap_at(protection, flags)
                    found[f"{protection}/{flags:#x}"] = 0
                except OSError as error:
                    found[f"{protection}/{flags:#x}"] = error.errno or 0
    return _listed(found, errno.EPERM)


def _map_and_unmap_at(protection: int, flags: int) -> None:
    where = ctypes.c_void_p(1 << 40)
    size, start = ctypes.c_size_t(PAGE), ctypes.c_long(0)
    address = _call("mmap", where, size, protection, ctypes.c_int(flags), -1, start)
    assert isinstance(address, int)
    _unmap(address, PAGE)


def _fill() -> str:
    """Take all memory that can be had, of each kind, and keep it; hide what was written."""
    taken: list[int] = []
    piece = 1 << 20
    for flags in (PRIVATE, SHARED, PRIVATE | GROWS_DOWN):
        # Enough to be seen where it is not refused, without harm to the machine.
        for _ in range(256):
            try:
                address = _map(piece, READ | WRITE, flags | NO_RESERVE)
            except OSError:
                break
            taken.append(address)
            ctypes.memset(address, 1, piece)
            with suppress(OSError):
                _call("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(piece), READ)
    return f"pieces={len(taken)}"


def _listed(found: dict[str, int] | dict[int, int], usual: int) -> str:
    return " ".join(f"{key}={number}" for key, number in found.items() if number != usual)


SWEEPS: dict[str, Callable[[], str]] = {
    "calls": _every_call,
    "descriptors": _every_descriptor,
    "signals": _every_signal,
    "mappings": _every_mapping,
    "i386": lambda: str(_call_as_i386(20)),  # getpid
    "all memory": _fill,
    "a lot": lambda: attempt(lambda: _protect(NONE, READ | WRITE, LOT)),
}
"""Each says what was not refused."""


def sweep_unconfined() -> None:
    """Say which calls are refused here, where no sandbox is. Each is made in its own process."""
    out = socket.socket(fileno=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # some calls damage their process, which says so
    for number in CALLS:
        if number in ENDS | DISTURBS:
            continue
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # pause() would wait for ever
            refused = call_number(number) == errno.EPERM
            os.kill(os.getpid(), signal.SIGKILL if refused else signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        if os.WTERMSIG(status) == signal.SIGKILL:
            out.sendall(f"{number} ".encode())


def say_sweeps() -> None:
    """Say which mappings and signals are not refused here, a line for each."""
    said = f"{_every_mapping()}\n{_every_signal()}\n"
    socket.socket(fileno=1).sendall(said.encode())


def gate_to_i386() -> Callable[[int], int]:
    """A function that makes a system call of i386, by x86-64's "int 0x80"."""
    code = b"\x53\x89\xf8\xcd\x80\x5b\xc3"  # push rbx; mov eax, edi; int 0x80; pop rbx; ret
    address = _map(PAGE, READ | WRITE | EXECUTE, PRIVATE)
    ctypes.memmove(address, code, len(code))
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(address)


def i386_unconfined() -> None:
    """Say whether the kernel knows the calls of i386; if not, this process ends."""
    pid = gate_to_i386()(20)
    socket.socket(fileno=1).sendall(b"known" if pid == os.getpid() else b"")


PATHS = [
    "/",
    "/etc/passwd",
    "/dev/null",
    "/dev/zero",
    "/dev/ptmx",
    "/dev/shm",  # noqa: S108
    "/proc/self/exe",
    "/proc/self/fd",
    "/proc/self/maps",
    "/proc/self/mem",
    "/proc/1/status",
    "/proc/sys/kernel/hostname",
    "/sys/kernel",
]
"""One of each kind: files, folders, devices, links, and what the kernel makes up."""


def paths() -> None:
    """Say which paths open where Landlock alone holds, after those that open without it."""
    out = socket.socket(fileno=1)
    out.sendall(f"{_opened()}\n".encode())
    parts = ("no_new_privs", "Landlock for files")
    sandbox._PARTS = {name: sandbox._PARTS[name] for name in parts}
    missing = sandbox.confine(sandbox.Limits(1 << 30, 100))
    out.sendall(f"{_opened()}\n{missing}\n".encode())
    os._exit(0)


def _opened() -> list[str]:
    opened = []
    for path in PATHS:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
            opened.append(path)
        except OSError:
            pass
    return opened


def _become_nobody() -> None:
    """Root's threads are not counted."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)


def count_threads(*, as_root: bool = False) -> None:
    """Say what is missing, and how many threads start."""
    out = socket.socket(fileno=1)
    if not as_root:
        _become_nobody()
    missing = sandbox.confine(sandbox.Limits(1 << 30, 100, threads=4))
    never = threading.Lock()
    never.acquire()
    started = 0
    try:
        for _ in range(50):
            threading.Thread(target=never.acquire, daemon=True).start()
            started += 1
    except RuntimeError:
        pass
    out.sendall(f"{started}\n{missing}\n".encode())
    os._exit(0)


def decode_under_the_limit_of_threads(source: bytes, times: int) -> None:
    """Say what comes of a picture, again and again, as in a real worker that root does not run."""
    out = socket.socket(fileno=1)
    worker.warm_up()
    _become_nobody()
    missing = sandbox.confine(sandbox.Limits(1 << 30, 100, worker.THREADS))
    preset = Preset(width=60, height=40, fit="cover", quality=80)
    made: set[object] = set()
    for _ in range(times):
        try:
            made.add(render(source, preset, None, max_pixels=10**6).data[:2])
        except UndecodableImage as error:
            made.add(error.cause)
    out.sendall(f"{made}\n{missing}\n".encode())
    os._exit(0)


def unconfined() -> None:
    """Say on standard output, a socket, what comes of each probe here and now."""
    _say_each(socket.socket(fileno=1))


def only(part: str) -> None:
    """Say what comes of each probe with one part of the sandbox, after what of it is missing."""
    out = socket.socket(fileno=1)
    sandbox._PARTS = {name: sandbox._PARTS[name] for name in ("no_new_privs", part)}
    missing = sandbox.confine(sandbox.Limits(1 << 30, 100))
    out.sendall(f"missing: {missing}\n".encode())
    _say_each(out)
    os._exit(0)


def first_thread() -> None:
    """Say in which order the first thread and the filter come."""
    out = socket.socket(fileno=1)
    order: list[str] = []
    start, call = threading.Thread.start, sandbox._syscall

    def noted_start(thread: threading.Thread) -> None:
        order.append("thread")
        start(thread)

    def noted_call(number: int, *arguments: object) -> int:
        order.extend(["filter"] * (arguments[0] == sandbox._SET_MODE_FILTER))
        return call(number, *arguments)

    setattr(threading.Thread, "start", noted_start)  # noqa: B010 (mypy refuses the plain form)
    sandbox._syscall = noted_call
    sandbox._PARTS = {name: sandbox._PARTS[name] for name in ("no_new_privs", "seccomp")}
    missing = sandbox.confine(sandbox.Limits(1 << 30, 100, threads=4))
    out.sendall(f"{order} {missing}".encode())
    os._exit(0)


def in_a_container() -> None:
    """Say what is missing, and what comes of each probe, where the calls of the sandbox fail."""
    out = socket.socket(fileno=1)
    sandbox._prctl(sandbox._PR_SET_NO_NEW_PRIVS, 1)
    refused = {"unshare": 272, "capset": 126, "landlock_create_ruleset": 444, "seccomp": 317}
    step = sandbox._Instruction
    refuse = step(sandbox._RETURN, 0, 0, sandbox._ERRNO | errno.EPERM)
    steps = [step(sandbox._LOAD, 0, 0, sandbox._AT_CALL)]
    for number in refused.values():
        steps += [step(sandbox._JUMP_IF_EQUAL, 0, 1, number), refuse]
    steps.append(step(sandbox._RETURN, 0, 0, sandbox._ALLOW))
    program = sandbox._Program(len(steps), (step * len(steps))(*steps))
    sandbox._syscall(refused["seccomp"], sandbox._SET_MODE_FILTER, 0, ctypes.byref(program))
    missing = sandbox.confine(sandbox.Limits(1 << 30, 100, threads=4))
    out.sendall(f"{missing}\n".encode())
    _say_each(out)
    os._exit(0)


def _say_each(out: socket.socket) -> None:
    for name, probe in PROBES.items():
        out.sendall(f"{name}: {attempt(probe)}\n".encode())


def _in_a_thread() -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(attempt(PROBES["read a file"])))
    thread.start()
    thread.join()
    return found[0]

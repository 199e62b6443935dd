"""Workers that misbehave, and what a worker must not be able to do. Runs in the worker."""

from __future__ import annotations

import ctypes
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

from proxy.errors import UndecodableImage
from proxy.imaging.pipeline import Outcome, Recipe, Rendered
from proxy.imaging.workers import sandbox
from proxy.imaging.workers.main import render_job, serve
from proxy.model.formats import Format

BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv[4:]; from tests.imaging.workers.hostile import main; "
    "main(*map(int, sys.argv[1:4]))"
)

JPEG = b"\xff\xd8\xff made by a hostile worker"

_connection: socket.socket


def main(descriptor: int, memory: int, cpu: int) -> None:
    """A worker as the real one is, up to what it does with a source."""
    global _connection
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _connection = socket.socket(fileno=descriptor)
    serve(_connection, sandbox.Limits(memory, cpu), work)


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


def _fail(error: Exception) -> None:
    raise error


DEEDS: dict[bytes, Callable[[bytes], object]] = {
    b"nothing": lambda rest: None,
    b"crash": lambda rest: ctypes.string_at(0),
    b"abort": lambda rest: os.abort(),
    b"hang": lambda rest: _spin(math.inf),
    b"spin": lambda rest: _spin(float(rest)),
    b"take": lambda rest: bytearray(int(rest)),
    b"raw": _end_with,
    b"more": lambda rest: _connection.sendall(rest),
    b"thread": lambda rest: _fail(UndecodableImage(_in_a_thread())),
    b"defect": lambda rest: _fail(ZeroDivisionError("a defect")),
    b"probe": lambda rest: _fail(UndecodableImage(attempt(PROBES[rest.decode()]))),
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


def _listen() -> None:
    with socket.socket(socket.AF_UNIX) as here:
        here.bind("\0" + os.urandom(8).hex())
        here.listen()


def _connect() -> None:
    with socket.socket() as there, socket.socket() as here:
        there.bind(("127.0.0.1", 0))
        there.listen()
        here.connect(there.getsockname())


def _executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _make_executable() -> None:
    area = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    _call("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(4096), 4)


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
    "map executable memory": _executable_memory,
    "make memory executable": _make_executable,
    "make a file in memory": lambda: os.close(os.memfd_create("x")),
    "make a namespace": lambda: _call("unshare", 0),
    "change its limits": _raise_limit,
    "execute": _exec,
}  # fmt: skip
"""Each is done by a process that is not confined; "execute" ends it."""


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


def _say_each(out: socket.socket) -> None:
    for name, probe in PROBES.items():
        out.sendall(f"{name}: {attempt(probe)}\n".encode())


def _in_a_thread() -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(attempt(PROBES["read a file"])))
    thread.start()
    thread.join()
    return found[0]

"""The sandbox from both sides: what a worker cannot do, and what its end costs the others."""

from __future__ import annotations

import errno
import os
import platform
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from PIL import Image

import proxy
from proxy.config import Config
from proxy.errors import Busy, ImageTooLarge, ResultTooCostly, UndecodableImage, UnsupportedImage
from proxy.imaging import memory_estimate as memory
from proxy.imaging.memory_estimate import Estimate
from proxy.imaging.pipeline import render
from proxy.imaging.recipes import Outcome, Recipe
from proxy.imaging.workers import client as workers
from proxy.imaging.workers import forks, sandbox
from proxy.imaging.workers.batch import Job
from proxy.imaging.workers.client import CannotStart, WorkerDefect
from proxy.imaging.workers.ipc import ANSWER, FORMATS, PID, Status
from proxy.imaging.workers.pool import PoolStatistics, ProcessingPool
from proxy.imaging.workers.shared_source import KEPT, SharedSource
from proxy.model.formats import OUTPUTS, Format
from proxy.model.presets import Preset
from tests.imaging import sources
from tests.imaging.workers import hostile
from tests.imaging.workers.heic_grid import grid
from tests.logs import logged_by
from tests.processes import until

PRESET = Preset(width=60, height=40, fit="cover", quality=80)
ROOT = Path(proxy.__file__).parents[1]
PATIENCE = 30

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's"),
]


def config(threads: int = 2, queue_wait: float = 20) -> Config:
    return Config.model_validate({"process": {"threads": threads, "queue_wait": queue_wait}})


_servers: set[int] = set()
"""Processes that were there before the test that runs: of other tests, until the last one."""


def children(pid: int | str = "self") -> set[int]:
    """Processes of this one that the test has started, zombies among them."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found.update(map(int, (task / "children").read_text().split()))
    return found - _servers


def running_workers() -> set[int]:
    """Those of the fork servers that the test has started."""
    found: set[int] = set()
    for server in children():
        with suppress(FileNotFoundError):  # it ended meanwhile
            found |= children(server)
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _leaves_nothing() -> object:
    """Catches, after every test here, a process, a zombie or a descriptor that was left."""
    _servers.clear()
    _servers.update(children())
    before = descriptors()
    yield
    assert (children(), descriptors()) == (set(), before)


@pytest.fixture
def hostile_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that do as their source says."""
    monkeypatch.setattr(forks, "BOOTSTRAP", hostile.BOOTSTRAP)


class Running(ProcessingPool):
    """A pool that runs, and the deaths it counted."""

    def __init__(self, config: Config) -> None:
        self.deaths: Counter[str] = Counter()
        super().__init__(config, on_death=lambda reason: self.deaths.update([reason]))

    async def do(self, source: bytes, output: Format | None = None) -> bytes:
        """Transform ``source`` by ``PRESET``."""
        with trio.fail_after(PATIENCE):
            return (await self.process(source, PRESET, output)).data

    async def fails(self, source: bytes) -> UndecodableImage:
        """The error that says that ``source`` does not decode."""
        with pytest.raises(UndecodableImage) as caught:
            await self.do(source)
        return caught.value


@asynccontextmanager
async def running(threads: int = 2, queue_wait: float = 20) -> AsyncIterator[Running]:
    pool = Running(config(threads, queue_wait))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        yield pool
        nursery.cancel_scope.cancel()
    assert pool.statistics() == PoolStatistics(0, 0)


def python(code: str) -> str:
    """What ``code`` says in a process of its own, whose standard output is a socket."""
    here, there = socket.socketpair()
    with here, here.makefile() as said:
        with there:
            process = subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, stdout=there.fileno()
            )
        text = said.read()
        process.wait(PATIENCE)
    return text


# What a worker cannot do


def test_every_probe_succeeds_in_a_process_that_is_not_confined() -> None:
    """Catches probes that fail anyway, and so would prove nothing below."""
    printed = python("from tests.imaging.workers.hostile import unconfined; unconfined()")
    for name in hostile.PROBES:
        if name != "execute":
            assert f"{name}: done" in printed, printed
    assert "execute: failed" not in printed


async def test_a_worker_can_do_nothing_of_what_others_can(hostile_workers: None) -> None:
    """Catches a part of the sandbox that is left out, comes too late, or lets one call through."""
    async with running(threads=1) as pool:
        for name in hostile.PROBES:
            error = await pool.fails(b"probe:" + name.encode())
            assert re.match("failed: .*(not permitted|denied)", error.cause), f"{name}: {error}"
        assert pool.deaths == Counter()


async def test_threads_of_a_worker_are_confined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a filter that holds for the first thread alone, and one that forbids threads."""
    monkeypatch.setattr(forks, "BOOTSTRAP", hostile.WITH_THREADS)
    async with running(threads=1) as pool:
        assert (await pool.fails(b"thread")).cause.startswith("failed: [Errno 1]")


@pytest.mark.parametrize(
    ("part", "refused"),
    [
        (
            "Landlock for files",
            {"read a file", "list a folder", "write a file", "read its environment", "execute"},
        ),
        ("Landlock for TCP", {"connect"}),
        ("Landlock for signals", {"signal its parent"}),
        ("other limits", {"open a socket", "read a file", "make a file in memory"}),
        ("seccomp", set(hostile.PROBES)),
    ],
)
def test_each_part_holds_alone(part: str, refused: set[str]) -> None:
    """Catches a part that only seems to work because another does its work."""
    # Landlock is one ruleset, made by its first part.
    made_by = "Landlock for files" if part.startswith("Landlock") else part
    printed = python(f"from tests.imaging.workers.hostile import only; only({made_by!r})")
    if not printed.startswith("missing: []"):
        pytest.skip(printed.splitlines()[0])
    for name in refused:
        assert f"{name}: failed" in printed, printed


def test_a_worker_has_no_more_threads_than_its_codecs_need() -> None:
    """Catches thousands of threads, each of which costs the kernel memory that no limit counts."""
    started, missing = python(
        "from tests.imaging.workers.hostile import count_threads; count_threads()"
    ).splitlines()
    if "thread limit" in missing:
        pytest.skip(missing)
    assert 0 < int(started) <= 4


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_worker_of_root_says_that_its_threads_have_no_limit() -> None:
    """Catches a limit that is set, does not hold, and is not named as missing."""
    started, missing = python(
        "from tests.imaging.workers.hostile import count_threads; count_threads(as_root=True)"
    ).splitlines()
    assert ("thread limit" in missing) is (int(started) > 4)


def test_the_first_thread_of_a_worker_comes_before_the_filter() -> None:
    """Catches a first HEIC that does not decode: libc prepares for threads with the first."""
    said = python("from tests.imaging.workers.hostile import first_thread; first_thread()")
    assert said == "['thread', 'filter'] []"


@pytest.mark.parametrize(
    ("release", "has"),
    [("5.10.0-30-amd64", False), ("5.14.0", True), ("6.1.0-13-amd64", True), ("4.4", False)],
)
def test_the_thread_limit_is_left_out_where_the_kernel_counts_all_of_a_user(
    release: str, has: bool
) -> None:
    """Catches a limit that the user's other processes use up, so that no HEIC decodes."""
    assert sandbox.has_count_by_namespace(release) is has


def test_landlock_alone_opens_no_kind_of_path() -> None:
    """Catches a right that the ruleset does not handle."""
    before, after, missing = python(
        "from tests.imaging.workers.hostile import paths; paths()"
    ).splitlines()
    if missing != "[]":
        pytest.skip(missing)
    assert "/etc/passwd" in before
    assert after == "[]"


# All that a process could try. The lists here are not the sandbox's own.

on_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")

ALLOWED_CALLS = {
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "sched_yield": 24,
    "madvise": 28,
    "getpid": 39,
    "sendto": 44,
    "recvfrom": 45,
    "getcwd": 79,
    "gettimeofday": 96,
    "gettid": 186,
    "futex": 202,
    "restart_syscall": 219,
    "clock_gettime": 228,
    "set_robust_list": 273,
    "getrandom": 318,
    "rseq": 334,
}


async def sweep(of: str) -> dict[str, int]:
    """What a worker was not refused, with the number of the error, or 0."""
    async with running(threads=1) as pool:
        said = (await pool.fails(b"sweep:" + of.encode())).cause
        assert pool.deaths == Counter()
    return {key: int(number) for key, _, number in (word.rpartition("=") for word in said.split())}


@on_x86_64
async def test_a_worker_is_refused_every_system_call_but_a_few(hostile_workers: None) -> None:
    """Catches a call that is let through: its number need not be among the probes."""
    found = await sweep("calls")
    assert found.pop("435") == errno.ENOSYS  # clone3
    assert {int(number) for number in found} == set(ALLOWED_CALLS.values())


@on_x86_64
def test_few_of_these_calls_are_refused_to_a_process_that_is_not_confined() -> None:
    """Catches arguments for which the kernel itself answers as the sandbox does."""
    said = python("from tests.imaging.workers.hostile import sweep_unconfined; sweep_unconfined()")
    assert len(said.split()) < 100, said


@on_x86_64
async def test_a_worker_makes_no_call_by_the_interface_of_i386(hostile_workers: None) -> None:
    """Catches a filter that knows the numbers of one interface and lets the other through."""
    known = python("from tests.imaging.workers.hostile import i386_unconfined; i386_unconfined()")
    if known != "known":
        pytest.skip("the kernel has no such interface")
    async with running(threads=1) as pool:
        assert (await pool.fails(b"sweep:i386")).cause == str(-errno.EPERM)


async def test_a_worker_has_no_descriptor_but_its_socket_and_the_null_device(
    hostile_workers: None,
) -> None:
    """Catches a file or a connection of the service that a worker inherits."""
    found = await sweep("descriptors")
    sockets = [number for number, error in found.items() if error != errno.ENOTSOCK]
    assert len(sockets) == 1
    assert found.keys() == {"0", "1", "2", *sockets}
    assert found[sockets[0]] == errno.EAGAIN


@on_x86_64
async def test_a_worker_signals_nobody_by_any_call(hostile_workers: None) -> None:
    """Catches a worker that ends the service, another worker, or what else its user runs."""
    assert await sweep("signals") == {}


async def test_a_worker_maps_memory_only_as_its_limit_counts_it(hostile_workers: None) -> None:
    """Catches a kind of memory that RLIMIT_DATA does not count: shared, growing, to read alone."""
    found = await sweep("mappings")
    private, reserved, stack = 0x22, 0x4022, 0x20022
    kinds = [
        (protection, flags) for protection in (0, 2, 3) for flags in (private, reserved, stack)
    ]
    assert found == {f"{protection}/{flags:#x}": 0 for protection, flags in kinds}


def test_the_sweeps_find_what_is_open_to_a_process_that_is_not_confined() -> None:
    """Catches a sweep that finds nothing anywhere, and so would prove nothing."""
    said = python("from tests.imaging.workers.hostile import say_sweeps; say_sweeps()")
    mappings, signals = said.splitlines()
    assert {"3/0x21=0", "1/0x22=0", "3/0x122=0", "7/0x22=0"} <= set(mappings.split())
    if platform.machine() == "x86_64":
        assert f"kill {os.getpid()}=0" in signals


async def test_a_worker_has_no_privileges_and_a_stack_that_ends() -> None:
    """Catches root's capabilities in a worker, and a stack, which RLIMIT_DATA does not count."""
    async with running(threads=1) as pool:
        await pool.do(sources.jpeg(sources.photo(64, 48)))
        (worker,) = running_workers()
        status = status_of(worker)
        assert {status[f"Cap{kind}"].strip("0") for kind in ("Eff", "Prm", "Inh")} == {""}
        assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
        soft, hard = resource.prlimit(worker, resource.RLIMIT_STACK)
        assert 0 < soft == hard <= 8 << 20
        for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE):
            assert resource.prlimit(worker, kind) == (0, 0)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


async def test_a_worker_that_takes_all_memory_stays_below_its_limit(hostile_workers: None) -> None:
    """Catches memory beyond the limit, as the kernel itself counts what is resident."""
    async with running(threads=1) as pool:
        error = await pool.fails(b"sweep:all memory")
        (worker,) = running_workers()
        status = status_of(worker)
        limit, _ = resource.prlimit(worker, resource.RLIMIT_DATA)
        anonymous, shared = (int(status[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
        stack = 8 << 20
        assert anonymous + shared <= limit + stack, error.cause
        # It did take what it may.
        assert anonymous > limit / 2


async def test_reserved_memory_counts_as_soon_as_it_can_be_written(hostile_workers: None) -> None:
    """Catches a way past the limit: address space without access, which is made writable later."""
    async with running(threads=1) as pool:
        error = await pool.fails(b"sweep:a lot")
        assert "Cannot allocate memory" in error.cause


async def test_a_worker_cannot_write_to_its_source(hostile_workers: None) -> None:
    """Catches shared memory that a worker fills, which RLIMIT_DATA does not count."""
    async with running(threads=1) as pool:
        assert (await pool.fails(b"overwrite")).cause == "failed: [Errno 13] Permission denied"


async def test_a_large_source_takes_no_memory_when_its_job_is_done(
    monkeypatch: pytest.MonkeyPatch, hostile_workers: None
) -> None:
    """Catches workers that each keep as much as the largest source that they ever had."""
    made: list[SharedSource] = []
    put = SharedSource.put

    def note(source: SharedSource, data: bytes) -> None:
        put(source, data)
        made.append(source)

    monkeypatch.setattr(SharedSource, "put", note)
    async with running(threads=1) as pool:
        assert await pool.do(b"nothing:" + bytes(4 * KEPT)) == hostile.JPEG
        assert os.fstat(made[0]._descriptor).st_blocks == 0
        # The file is as large as before.
        assert await pool.do(b"nothing:" + bytes(4 * KEPT)) == hostile.JPEG
        assert await pool.do(b"nothing:") == hostile.JPEG
        assert pool.deaths == Counter()


@pytest.mark.parametrize("isolation", ["thread", "sandbox"])
async def test_a_source_for_which_no_worker_has_room_is_too_large(isolation: str) -> None:
    """Catches a source of a fetcher without a limit that is cut, or ends the worker."""
    small = {"process": {"threads": 1, "isolation": isolation}, "fetch": {"max_source_mb": 1}}
    pool = Running(Config.model_validate(small))
    with pytest.raises(ImageTooLarge):
        await pool.do(b"\xff\xd8\xff" + bytes(1 << 20))


def verdict(
    machine: str, call: int, *arguments: int, audit: int | None = None, threads: bool = False
) -> str:
    """What the filter for ``machine`` says of a call, by the rules of linux/seccomp.h."""
    of = sandbox._MACHINES[machine]
    packed = struct.pack(
        "<IIQ6Q", call, audit or of.audit, 0, *arguments, *[0] * (6 - len(arguments))
    )
    program = sandbox._filter(of, threads=threads)
    at = loaded = 0
    while True:
        step = program[at]
        match step.code:
            case sandbox._LOAD:
                (loaded,) = struct.unpack_from("<I", packed, step.operand)
                taken = 0
            case sandbox._JUMP_IF_EQUAL:
                taken = step.jump_true if loaded == step.operand else step.jump_false
            case sandbox._JUMP_IF_ANY:
                taken = step.jump_true if loaded & step.operand else step.jump_false
            case _:
                known = {0x7FFF0000: "allow", 0x50001: "EPERM", 0x50026: "ENOSYS"}
                return known[step.operand]
        at += 1 + taken


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_the_same_on_both_architectures(machine: str) -> None:
    """Catches a jump or a number that is wrong where the tests do not run."""
    column = sandbox._MACHINES[machine].column
    for numbers in sandbox._CALLS.values():
        assert verdict(machine, numbers[column]) == "allow"
        assert verdict(machine, numbers[column], audit=0x40000003) == "EPERM"
    allowed = {numbers[column] for numbers in sandbox._CALLS.values()}
    special = {"mmap": (9, 222), "mprotect": (10, 226), "clone": (56, 220), "tgkill": (234, 131)}
    numbers_of = {name: numbers[column] for name, numbers in special.items()}
    for call in {*range(600), 0x40000000 + 45} - allowed - {*numbers_of.values(), 435}:
        assert verdict(machine, call) == "EPERM", call
    assert verdict(machine, 435) == "ENOSYS"
    threads, vfork = 0x3D0F00, 0x4111
    assert verdict(machine, numbers_of["clone"], threads) == "EPERM"
    assert verdict(machine, numbers_of["clone"], threads, threads=True) == "allow"
    assert verdict(machine, numbers_of["clone"], vfork, threads=True) == "EPERM"
    for number in range(65):
        assert verdict(machine, numbers_of["tgkill"], os.getpid(), 1, number) == "allow"
        assert verdict(machine, numbers_of["tgkill"], os.getppid(), 1, number) == "EPERM"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_no_uncounted_memory_through_on_both_architectures(machine: str) -> None:
    """Catches a bit of a protection or of flags that is not tested."""
    column = sandbox._MACHINES[machine].column
    mmap, mprotect = (numbers[column] for numbers in ((9, 222), (10, 226)))
    for protection in (*range(16), *(2 | 1 << bit for bit in range(32))):
        writable = protection in {2, 3}
        changed = verdict(machine, mprotect, 0, 4096, protection)
        assert changed == ("allow" if writable else "EPERM"), protection
        for flags in (0x22, 0x4022, 0x20022, *(0x22 | 1 << bit for bit in range(32)), 0x21, 0x23):
            expected = (writable or protection == 0) and flags in {0x22, 0x4022, 0x20022}
            mapped = verdict(machine, mmap, 0, 4096, protection, flags)
            assert mapped == ("allow" if expected else "EPERM"), (protection, flags)


def test_a_worker_loads_neither_the_web_nor_the_network() -> None:
    """Catches an import of the package that brings the server into every worker."""
    loaded = python("import proxy.imaging.workers.main, sys; print(*sys.modules)").split()
    assert "proxy.imaging.pipeline" in loaded
    assert not {"quart", "trio", "hypercorn", "httpcore2", "structlog", "sqlite3"} & set(loaded)


def test_the_package_offers_what_it_documents() -> None:
    """Catches a lazy name: Hypercorn evaluates its argument among the module's own variables."""
    assert eval("create_app", vars(proxy))  # noqa: S307
    assert proxy.Config is Config
    assert callable(proxy.open_service)
    with pytest.raises(AttributeError):
        proxy.nothing  # type: ignore[attr-defined]  # noqa: B018


async def test_a_worker_has_no_environment(
    monkeypatch: pytest.MonkeyPatch, hostile_workers: None
) -> None:
    """Catches secrets that are inherited: the admin token is among the variables."""
    monkeypatch.setenv("IMAGE_PROXY_SERVER__ADMIN_TOKEN", "secret")
    async with running(threads=1) as pool:
        await pool.fails(b"probe:fork")
        (worker,) = running_workers()
        assert b"secret" not in environment_of(worker)


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except PermissionError:
        return b""  # hidden even from its own user


@on_x86_64
def test_a_worker_starts_where_a_container_refuses_the_calls_of_its_sandbox() -> None:
    """Catches a part whose absence ends the worker, or takes other parts with it."""
    said = python("from tests.imaging.workers.hostile import in_a_container; in_a_container()")
    missing, *probes = said.splitlines()
    for part in ("thread limit", "no capabilities", "Landlock for files", "seccomp"):
        assert f"{part} (Operation not permitted)" in missing
    assert "limits" not in missing
    assert "read a file: failed: [Errno 24] Too many open files: '/etc/passwd'" in probes


@pytest.mark.parametrize("missing", [["seccomp (no such call)"], ["a", "b"]])
async def test_missing_parts_are_named_in_one_line_of_the_log(
    missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a sandbox that is silently half there, and a line for each worker."""
    patched = (
        "import sys; sys.path[:] = sys.argv[2:]; from proxy.imaging.workers import sandbox; "
        f"sandbox.confine = lambda limits: {missing!r}; "
        "from proxy.imaging.workers.fork_server import main; main(int(sys.argv[1]))"
    )
    monkeypatch.setattr(forks, "BOOTSTRAP", patched)
    with logged_by(workers, monkeypatch) as lines:
        async with running(threads=2) as pool:
            await pool.do(sources.jpeg(sources.photo(64, 48)))
            await pool.do(sources.jpeg(sources.photo(64, 48)))
    assert [line["missing"] for line in lines if "missing" in line] == [missing]


# What comes through it


def require_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("no encoder for HEIC")


def heic() -> bytes:
    """A HEIC, where there is an encoder for it."""
    require_heic()
    import pillow_heif

    out = BytesIO()
    pillow_heif.from_pillow(Image.fromarray(sources.photo(160, 120))).save(out)
    return out.getvalue()


def tiled_heic() -> bytes:
    require_heic()
    return grid(4, 4)


def test_a_picture_of_many_tiles_needs_no_more_threads_than_the_limit() -> None:
    """Catches pictures of telephones that do not decode, because each tile has its thread."""
    require_heic()
    # Made here, because numpy starts threads, and a process that has any cannot be confined so.
    made, missing = python(
        "from tests.imaging.workers import hostile; "
        f"hostile.decode_under_the_limit_of_threads({grid(4, 4)!r}, 20)"
    ).splitlines()
    if "thread limit" in missing:
        pytest.skip(missing)
    assert made == "{b'\\xff\\xd8'}"


MAKERS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: sources.jpeg(
        sources.photo(160, 120), exif=sources.exif(6), icc_profile=sources.ADOBE_RGB
    ),
    "progressive": lambda: sources.jpeg(sources.photo(160, 120), progressive=True),
    "cmyk": lambda: sources.cmyk_jpeg(sources.cmyk(sources.photo(160, 120))),
    "png": lambda: sources.png(sources.with_alpha(sources.photo(160, 120))),
    "grey png": lambda: sources.png(sources.grey(160, 120)),
    "webp": lambda: sources.webp(sources.photo(160, 120)),
    "avif": lambda: sources.avif(sources.with_alpha(sources.photo(160, 120))),
    "ten bit avif": lambda: sources.ten_bit_avif(sources.photo(160, 120)),
    "gif": lambda: sources.gif(sources.photo(160, 120)),
    "animation": lambda: sources.animation("WEBP", [sources.photo(160, 120)] * 2),
    "heic": heic,
    "tiled heic": tiled_heic,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
async def test_a_worker_makes_the_same_bytes_as_a_thread(make: Callable[[], bytes]) -> None:
    """Catches a codec that needs a file, a thread or a call that it no longer has."""
    source = make()
    async with running(threads=1) as pool:
        for output in (None, *OUTPUTS):
            expected = render(source, PRESET, output, max_pixels=10**6).data
            assert await pool.do(source, output) == expected
        assert pool.deaths == Counter()


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"<svg/>", UnsupportedImage),
        (sources.jpeg(sources.photo(64, 48))[:500], UndecodableImage),
        (sources.png(sources.photo(9, 9))[:16] + b"\0\1\0\0\0\1\0\0" + bytes(99), ImageTooLarge),
    ],
)
async def test_an_error_comes_back_as_what_it_was(source: bytes, error: type[Exception]) -> None:
    """Catches a worker whose refusals all become one class, or kill it."""
    async with running(threads=1) as pool:
        with pytest.raises(error) as caught:
            await pool.do(source)
        assert type(caught.value) is error
        assert str(caught.value)
        assert pool.deaths == Counter()


# What a broken worker costs


@pytest.mark.parametrize("how", [b"crash", b"abort"])
async def test_a_crash_costs_its_own_request_alone(how: bytes, hostile_workers: None) -> None:
    """Catches a pool that breaks with its process, as concurrent.futures' does."""
    good = sources.jpeg(sources.photo(64, 48))
    async with running(threads=2) as pool:
        await pool.do(good)
        results: list[bytes] = []

        async def others() -> None:
            for _ in range(20):
                results.append(await pool.do(good))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            error = await pool.fails(how)
        assert "SIG" in error.cause
        assert len(results) == 20
        assert pool.deaths == {"crash": 1}
        await until(lambda: len(running_workers()) == 2)
        await pool.do(good)


async def test_a_hang_ends_with_its_time_limit(
    hostile_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a wait for an answer without an end: the worker sleeps, and takes no CPU time."""
    async with running(threads=1) as pool:
        await pool.do(b"take:1")
        (first,) = running_workers()
        monkeypatch.setattr(workers, "TIME_LIMIT", 0.3)
        assert "no answer within" in (await pool.fails(b"sleep")).cause
        monkeypatch.undo()
        monkeypatch.setattr(forks, "BOOTSTRAP", hostile.BOOTSTRAP)
        assert pool.deaths == {"hang": 1}
        assert await pool.do(b"take:1") == hostile.JPEG
        assert running_workers() != {first}


async def test_a_worker_that_computes_ends_with_the_cpu_time_of_its_estimate(
    hostile_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a picture of one pixel that may keep a core busy for as long as one of 50 million."""
    monkeypatch.setattr(memory, "LEAST_SECONDS", 0.2)
    async with running(threads=1) as pool:
        assert await pool.do(b"spin:0.05") == hostile.JPEG
        assert "over 0.2 s of CPU time" in (await pool.fails(b"hang")).cause
        assert pool.deaths == {"hang": 1}
        # The time that others took does not count.
        assert await pool.do(b"nap:0.5") == hostile.JPEG
        assert await pool.do(b"spin:0.05") == hostile.JPEG


@pytest.mark.parametrize(
    "bootstrap", [hostile.BOOTSTRAP, hostile.WITH_THREADS], ids=["usual", "in a user namespace"]
)
async def test_an_allocation_over_the_estimate_fails_in_the_worker(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a limit that is only the sum for everybody: four pictures could each take it."""
    monkeypatch.setattr(forks, "BOOTSTRAP", bootstrap)
    async with running(threads=1) as pool:
        assert await pool.do(b"take:1000000") == hostile.JPEG
        (worker,) = running_workers()
        for amount in (200 << 20, 1 << 40):
            with pytest.raises(ImageTooLarge):
                await pool.do(b"take:%d" % amount)
        assert await pool.do(b"take:1000000") == hostile.JPEG
        assert running_workers() == {worker}
        assert pool.deaths == Counter()


async def test_a_defect_is_not_blamed_on_the_picture(hostile_workers: None) -> None:
    """Catches a mistake of ours that is counted, cached and answered as a broken picture."""
    async with running(threads=1) as pool:
        with pytest.raises(WorkerDefect, match=r"ZeroDivisionError: a defect .*hostile\.py:\d+"):
            await pool.do(b"defect")
        assert await pool.do(b"take:1") == hostile.JPEG


async def test_a_worker_that_imports_late_says_so(hostile_workers: None) -> None:
    """Catches an answer that a swallowed ImportError has changed, and one told of the next job."""
    async with running(threads=1) as pool:
        with pytest.raises(WorkerDefect, match=r"imported too late: wave; DONE"):
            await pool.do(b"import:wave")
        assert await pool.do(b"take:1") == hostile.JPEG
        assert pool.deaths == Counter()


@pytest.mark.parametrize("orientation", range(2, 9))
async def test_an_avif_turned_or_mirrored_is_the_same_as_in_a_thread(orientation: int) -> None:
    """Catches modules that its decoder imports when the worker has given up its files."""
    source = sources.avif(sources.photo(64, 32), exif=sources.exif(orientation))
    async with running(threads=1) as pool:
        for output in (None, *OUTPUTS):
            assert (
                await pool.do(source, output)
                == render(source, PRESET, output, max_pixels=10**6).data
            )


def answer(
    status: int, format_: int, data: bytes, length: int | None = None, place: int = 0
) -> bytes:
    return ANSWER.pack(place, status, format_, len(data) if length is None else length) + data


DONE = Status.DONE
AS = {format_: FORMATS.index(format_) for format_ in Format}


@pytest.mark.parametrize(
    "said",
    [
        b"garbage, and a lot of it" * 99,
        answer(99, 0, b""),
        answer(DONE, 99, hostile.JPEG),
        answer(DONE, AS[Format.PNG], hostile.JPEG),
        answer(DONE, AS[Format.JPEG], b""),
        answer(DONE, AS[Format.JPEG], b"<script>alert(1)</script>"),
        answer(DONE, AS[Format.HEIC], b"\0\0\0\x18ftypheic\0\0\0\0heic"),
        answer(DONE, AS[Format.JPEG], hostile.JPEG, 2**32 - 1),
        answer(Status.UNDECODABLE, 0, b"x" * 99, 2**31),
        answer(Status.UNDECODABLE, 0, b"x" * 2001),
        answer(Status.READY, 0, b'{"missing": []}'),
        answer(DONE, AS[Format.JPEG], hostile.JPEG, place=1),
    ],
)
async def test_an_invalid_answer_is_not_believed(said: bytes, hostile_workers: None) -> None:
    """Catches a service that trusts a worker with its memory, a type, or the cache's content."""
    async with running(threads=1) as pool:
        error = await pool.fails(b"raw:" + said)
        assert pool.deaths == {"protocol": 1}, error
        assert await pool.do(b"take:1") == hostile.JPEG


async def test_an_answer_in_another_format_than_was_asked_for_is_refused(
    hostile_workers: None,
) -> None:
    """Catches a cache entry whose type is not the one its key says."""
    async with running(threads=1) as pool:
        with pytest.raises(UndecodableImage):
            await pool.do(b"take:1", Format.WEBP)
        assert pool.deaths == {"protocol": 1}


async def test_an_answer_that_breaks_off_is_a_crash(hostile_workers: None) -> None:
    """Catches half a result that is taken for one."""
    async with running(threads=1) as pool:
        await pool.fails(b"raw:" + answer(DONE, 0, hostile.JPEG, 100))
        assert pool.deaths == {"crash": 1}


async def test_an_answer_without_a_question_is_dropped(hostile_workers: None) -> None:
    """Catches one picture's worker that leaves an answer for the next picture."""
    async with running(threads=1) as pool:
        planted = answer(DONE, AS[Format.JPEG], b"\xff\xd8\xff planted")
        # Both in one piece: when the first has been read, the second waits for the next picture.
        assert await pool.do(b"more:" + planted + planted) == b"\xff\xd8\xff planted"
        assert await pool.do(b"take:1") == hostile.JPEG
        assert pool.deaths == {"protocol": 1}


# Several results of one picture


async def three_of(pool: Running, source: bytes) -> tuple[list[bytes], list[Exception]]:
    """What becomes of three calls for ``source`` that come together."""
    results: list[bytes] = []
    errors: list[Exception] = []

    async def ask() -> None:
        try:
            results.append(await pool.do(source))
        except Exception as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    return results, errors


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many recipes each job had."""
    counted: list[int] = []
    run = workers.ImageWorker.run

    async def count(
        worker: workers.ImageWorker, job: Job, tell: Callable[[Outcome], object]
    ) -> Outcome:
        counted.append(len(job.orders))
        return await run(worker, job, tell)

    monkeypatch.setattr(workers.ImageWorker, "run", count)
    return counted


async def test_presets_of_one_source_come_from_one_job(jobs: list[int]) -> None:
    """Catches a source that is sent once for each preset, and an answer for another preset."""
    source = sources.jpeg(sources.photo(640, 480))
    made: dict[int, bytes] = {}
    async with running(threads=2) as pool:

        async def ask(width: int) -> None:
            preset = Preset(width=width, fit="contain", quality=80)
            made[width] = (await pool.process(source, preset, None)).data

        async with trio.open_nursery() as nursery:
            for width in range(100, 700, 100):
                nursery.start_soon(ask, width)
        assert pool.deaths == Counter()
    assert jobs == [6]
    for width, data in made.items():
        preset = Preset(width=width, fit="contain", quality=80)
        assert data == render(source, preset, None, max_pixels=10**6).data


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (b"crash", "crash"),
        (b"hang", "hang"),
        (b"raw:garbage, and a lot of it", "protocol"),
        # A good answer, but the next recipe was due.
        (b"raw:" + answer(DONE, AS[Format.JPEG], hostile.JPEG, place=0), "protocol"),
        (b"raw:" + answer(DONE, AS[Format.JPEG], hostile.JPEG, 2**31, place=1), "protocol"),
    ],
    ids=["crash", "hang", "garbage", "order", "length"],
)
async def test_a_worker_that_dies_over_one_recipe_costs_that_one_alone(
    deed: bytes,
    reason: str,
    jobs: list[int],
    hostile_workers: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches results that are lost because of who asked beside them."""
    if reason == "hang":
        monkeypatch.setattr(workers, "TIME_LIMIT", 3)
    async with running(threads=1) as pool:
        results, errors = await three_of(pool, b"at:1:" + deed)
        assert results == [hostile.JPEG] * 2
        assert [type(error) for error in errors] == [ResultTooCostly]
        assert pool.deaths == {reason: 1}
    assert jobs == [3, 1]


async def test_an_error_of_one_recipe_is_not_that_of_the_next(
    jobs: list[int], hostile_workers: None
) -> None:
    """Catches a job that ends with its first error."""
    async with running(threads=1) as pool:
        results, errors = await three_of(pool, b"at:1:defect:")
        assert results == [hostile.JPEG] * 2
        assert [type(error) for error in errors] == [WorkerDefect]
        assert pool.deaths == Counter()
    assert jobs == [3]


async def test_the_time_limit_is_for_each_recipe(
    jobs: list[int], hostile_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches many good results that together take longer than one may."""
    monkeypatch.setattr(workers, "TIME_LIMIT", 4)
    monkeypatch.setattr(memory, "LEAST_SECONDS", 4)
    async with running(threads=1) as pool:
        results, errors = await three_of(pool, b"spin:1.4")
        assert (results, errors) == ([hostile.JPEG] * 3, [])
    assert jobs == [3]


class SlowSocket:
    """The socket of a worker that sends a byte a second; counts the seconds."""

    def __init__(self, said: bytes) -> None:
        self.seconds = 0
        self._said = said

    def monotonic(self) -> float:
        return float(self.seconds)

    def clock_gettime(self, clock: int) -> float:
        return 0.0

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def send(self, data: memoryview) -> int:
        return len(data)

    def recv_into(self, view: memoryview) -> int:
        view[:1] = self._said[self.seconds : self.seconds + 1]
        self.seconds += 1
        return 1

    def close(self) -> None:
        pass


class StuckProcess:
    """A process that the kernel does not end."""

    pid = 2**22 + 1

    def __init__(self) -> None:
        self.killed = 0
        self.waited: list[float | None] = []

    def kill(self) -> None:
        self.killed += 1

    def wait(self, timeout: float | None = None) -> int:
        self.waited.append(timeout)
        raise subprocess.TimeoutExpired("worker", timeout or 0)


def with_process(process: StuckProcess, connection: SlowSocket) -> workers.ImageWorker:
    worker = workers.ImageWorker(
        forks.ForkServer(),
        connection,  # type: ignore[arg-type]
        SharedSource(1000),
    )
    worker._process = process  # type: ignore[assignment]
    return worker


async def test_the_time_limit_is_for_the_whole_answer_not_for_each_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a worker that holds its thread for ever by always sending another byte."""
    slow = SlowSocket(answer(DONE, AS[Format.JPEG], b"\xff\xd8\xff" + bytes(97)))
    process = StuckProcess()
    worker = with_process(process, slow)
    monkeypatch.setattr(workers, "time", slow)
    job = Job(b"x", ((Recipe(preset=PRESET, output=None), Estimate(1, 1, 1, 1000, 1.0)),))
    with pytest.raises(workers.WorkerDied) as caught:
        await worker.run(job, lambda outcome: None)
    worker._source.close()
    assert caught.value.reason == "hang"
    assert slow.seconds == workers.TIME_LIMIT
    assert process.killed == 1


async def test_the_end_of_a_worker_that_the_kernel_does_not_end_has_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a stop that waits for ever for a process that was killed."""
    process = StuckProcess()
    worker = with_process(process, SlowSocket(b""))
    with logged_by(workers, monkeypatch) as lines:
        worker.end()
    assert process.killed == 1
    assert process.waited == [forks.END_LIMIT]
    assert [line["event"] for line in lines] == ["a killed worker does not end"]


def test_a_fork_server_that_answers_too_late_is_ended() -> None:
    """Catches its late answer taken for one about another worker, which nobody would then kill."""
    server = forks.ForkServer()
    try:
        control, process = server._running(), server._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        control.settimeout(0.01)
        assert server.exit_code(os.getpid()) == -signal.SIGKILL
        assert process.poll() == -signal.SIGKILL
    finally:
        server.close()


# What a worker says and how it ends


async def test_causes_are_short_and_printable(hostile_workers: None) -> None:
    """Catches a worker that writes lines, colours or megabytes into the log."""
    async with running(threads=1) as pool:
        said = b"\x1b[31m\nlevel=error \xff" * 50
        error = await pool.fails(b"raw:" + answer(Status.UNDECODABLE, 0, said))
        assert error.cause.isascii()
        assert error.cause.isprintable()


async def test_a_worker_that_is_killed_while_idle_costs_no_request() -> None:
    """Catches a request that gets a dead worker, as after the system ran out of memory."""
    good = sources.jpeg(sources.photo(64, 48))
    async with running(threads=1) as pool:
        await pool.do(good)
        (worker,) = running_workers()
        os.kill(worker, signal.SIGKILL)
        await until(lambda: not is_running(worker))
        assert await pool.do(good)
        assert pool.deaths == {"crash": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_to_the_whole_group_ends_no_worker(number: signal.Signals) -> None:
    """Catches jobs that are lost when the terminal or the service manager stops the service."""
    good = sources.jpeg(sources.photo(64, 48))
    async with running(threads=1) as pool:
        await pool.do(good)
        (worker,) = running_workers()
        os.kill(worker, number)
        await pool.do(good)
        assert running_workers() == {worker}


ALONE = """
import socket
from mmap import mmap
from proxy.imaging.workers.main import Given, serve
from proxy.imaging.workers.sandbox import Limits
ours, theirs = socket.socketpair()
ours.close()
serve(Given(theirs, mmap(-1, 4096), Limits(1 << 30, 9)), None)
"""


def test_a_worker_whose_service_has_ended_meanwhile_says_nothing() -> None:
    """Catches a traceback on the terminal of a command that was done before its worker began."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("limit", "value", "jobs"),
    [("JOBS", 3, 7), ("BUSY_SECONDS", 1e-6, 3)],
    ids=["by its jobs", "by its CPU time"],
)
async def test_a_worn_worker_is_replaced(
    limit: str, value: float, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches memory that fragments for ever, and a worker that is ended over its last job.

    Its jobs alone do not tell: the limit of CPU time would end it in the middle of one.
    """
    monkeypatch.setattr(workers, limit, value)
    used: set[int] = set()
    run = workers.ImageWorker.run

    async def note(
        worker: workers.ImageWorker, job: Job, tell: Callable[[Outcome], object]
    ) -> Outcome:
        assert worker._process is not None
        used.add(worker._process.pid)
        return await run(worker, job, tell)

    monkeypatch.setattr(workers.ImageWorker, "run", note)
    good = sources.jpeg(sources.photo(64, 48))
    async with running(threads=1) as pool:
        for _ in range(jobs):
            await pool.do(good)
        assert len(used) == 3
        assert pool.deaths == Counter()


# Starting and ending


@pytest.mark.parametrize(
    "bootstrap",
    [
        "raise SystemExit(3)",
        "import os; os.abort()",
        "import os, sys; os.write(int(sys.argv[1]), b'no')",
    ],
    ids=["exit", "abort", "garbage"],
)
async def test_workers_that_cannot_start_are_a_defect_and_no_hang(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a request that waits for a worker that never comes, and a loop at full speed."""
    monkeypatch.setattr(forks, "BOOTSTRAP", bootstrap)
    with logged_by(workers, monkeypatch) as lines:
        async with running(threads=2) as pool:
            with pytest.raises(CannotStart):
                await pool.do(b"x")
            with pytest.raises(CannotStart):
                await pool.do(b"x")
    failed = [line for line in lines if line["event"] == "no worker starts"]
    assert 1 <= len(failed) <= 4
    assert all(line["cause"] for line in failed)


async def test_an_interpreter_that_is_not_there_is_a_defect_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches an error of the system that ends the service's nursery."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    async with running(threads=1) as pool:
        with pytest.raises(CannotStart, match="No such file"):
            await pool.do(b"x")


async def test_workers_that_start_again_serve_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a failure that is remembered for ever."""
    good = sources.jpeg(sources.photo(64, 48))
    with monkeypatch.context() as patched:
        patched.setattr(forks, "BOOTSTRAP", "raise SystemExit(3)")
        async with running(threads=1) as pool:
            with pytest.raises(CannotStart):
                await pool.do(good)
            patched.undo()
            await until(lambda: bool(running_workers()))
            with trio.fail_after(PATIENCE):
                while True:
                    try:
                        assert await pool.do(good)
                        break
                    except CannotStart:
                        await trio.sleep(0.05)


async def test_a_job_that_waits_for_the_job_of_another_is_busy_in_the_end(
    hostile_workers: None,
) -> None:
    """Catches a wait behind another job that process.queue_wait does not bound."""
    async with running(threads=1, queue_wait=0.05) as pool:
        await pool.do(b"take:1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.fails, b"hang")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Busy):
                await pool.do(b"take:1")
            (worker,) = running_workers()
            os.kill(worker, signal.SIGKILL)


# Workers whose start takes a while


@pytest.fixture
def half_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Awaitable[None]]:
    """Workers that send half of their first message, and then nothing; waits until one did."""
    fifo = tmp_path / "half"
    os.mkfifo(fifo)
    half = PID.pack(1) + answer(Status.READY, 0, b'{"missing', length=15)
    monkeypatch.setattr(
        forks,
        "BOOTSTRAP",
        "import os, signal, socket, sys; control = socket.socket(fileno=int(sys.argv[1])); "
        f"_, (there, _), *_ = socket.recv_fds(control, 99, 2); os.write(there, {half!r}); "
        f"open({str(fifo)!r}, 'w').close(); signal.pause()",
    )

    async def sent() -> None:
        await trio.to_thread.run_sync(fifo.read_bytes)
        await trio.testing.wait_all_tasks_blocked()

    return sent


async def test_half_a_first_message_does_not_stop_the_event_loop(
    half_started: Callable[[], Awaitable[None]],
    mock_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a blocking read on the event loop, and a start without an end."""
    with logged_by(workers, monkeypatch) as lines:
        async with running(threads=1, queue_wait=1000) as pool, trio.open_nursery() as nursery:
            await half_started()
            errors: list[Exception] = []

            async def ask() -> None:
                with pytest.raises(CannotStart) as caught:
                    await pool.process(b"x", PRESET, None)
                errors.append(caught.value)

            nursery.start_soon(ask)
            mock_clock.jump(workers.START_LIMIT - 1)
            await trio.testing.wait_all_tasks_blocked()
            # A read that blocks would have given up, or would hang here.
            assert (errors, lines) == ([], [])
            mock_clock.jump(1)
            await until_blocked(lambda: errors != [])
            assert str(errors[0]) == f"not ready within {workers.START_LIMIT:g} s"


async def until_blocked(condition: Callable[[], bool]) -> None:
    """Wait for what threads and processes bring about: in real time, whatever the clock."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await trio.testing.wait_all_tasks_blocked(0.001)


async def test_a_stop_does_not_wait_for_a_worker_that_starts(
    half_started: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a start that cancellation does not end, or that leaves its process."""
    monkeypatch.setattr(forks, "END_LIMIT", 0.1)  # what it is forked from says nothing any more
    async with running(threads=1):
        await half_started()
        began = trio.current_time()
    assert trio.current_time() - began < workers.START_LIMIT / 3


async def test_a_job_waits_with_its_token_for_the_first_worker_and_others_wait_as_usual(
    half_started: Callable[[], Awaitable[None]], mock_clock: trio.testing.MockClock
) -> None:
    """Catches a slow start that refuses the first picture, and one that lets a queue grow old."""
    async with running(threads=1, queue_wait=5) as pool, trio.open_nursery() as nursery:
        await half_started()
        errors: list[Exception] = []

        async def ask(source: bytes) -> None:
            with pytest.raises((Busy, CannotStart)) as caught:
                await pool.process(source, PRESET, None)
            errors.append(caught.value)

        nursery.start_soon(ask, b"first")
        await until_blocked(lambda: pool.limiter.borrowed_tokens == 1)
        nursery.start_soon(ask, b"second")
        await trio.testing.wait_all_tasks_blocked()
        assert pool.gate.statistics().waiting == 1
        assert pool.statistics() == PoolStatistics(running=1, waiting=2)
        mock_clock.jump(5)
        await until_blocked(lambda: pool.statistics() == PoolStatistics(1, 1))
        mock_clock.jump(workers.START_LIMIT - 5)
        await until_blocked(lambda: pool.statistics() == PoolStatistics(0, 0))
        assert [type(error) for error in errors] == [Busy, CannotStart]


async def test_a_worker_that_has_nothing_to_do_gives_its_free_memory_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches what one large picture took and a worker then keeps for ever."""
    impatient = "from proxy.imaging.workers import main; main.IDLE_SECONDS = 3; from proxy"
    monkeypatch.setattr(forks, "BOOTSTRAP", forks.BOOTSTRAP.replace("from proxy", impatient))
    large = sources.jpeg(sources.photo(3000, 2000))
    same_size = Preset(width=3000, fit="contain", quality=80)
    mib = 1 << 20
    async with running(threads=1) as pool:
        await pool.do(sources.jpeg(sources.photo(64, 48)))
        (worker,) = running_workers()
        before = resident(worker)
        await pool.process(large, same_size, Format.WEBP)
        assert resident(worker) > before + 20 * mib, "kept for the next picture"
        await until(lambda: resident(worker) < before + 10 * mib)
        assert await pool.do(large)
        assert running_workers() == {worker}


def resident(process: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_a_job_waits_for_a_new_worker_when_every_one_was_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a refusal of whatever comes while killed workers are replaced, however slowly.

    What they are forked from is killed, and takes them along.
    """
    good = sources.jpeg(sources.photo(64, 48))
    # Without patience for others: only the limit of a start lets this wait.
    async with running(threads=1, queue_wait=0) as pool:
        await pool.do(good)
        (worker,) = running_workers()
        slow = f"import time; time.sleep(0.5); {forks.BOOTSTRAP}"
        monkeypatch.setattr(forks, "BOOTSTRAP", slow)
        (server,) = children()
        os.kill(server, signal.SIGKILL)
        # Its end of the socket is closed then.
        await until(lambda: not is_running(worker))
        await pool.do(good)


async def test_a_pool_that_nothing_runs_says_so() -> None:
    """Catches a wait for workers that nobody starts."""
    with pytest.raises(RuntimeError, match="nothing runs"):
        await ProcessingPool(config()).process(b"x", PRESET, None)


@pytest.mark.parametrize("after", [0, 0.002, 0.02, 0.1, 0.3, 1])
async def test_cancellation_at_any_moment_leaves_nothing(after: float) -> None:
    """Catches a process, zombie, descriptor or token that is left by a service that stops early."""
    good = sources.jpeg(sources.photo(640, 480))
    before = children(), descriptors()
    pool = Running(config(threads=2))

    async def ask() -> None:
        with suppress(Busy):  # what has begun is not cancelled, and told of the end
            await pool.do(good)

    with trio.move_on_after(after):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            for _ in range(8):
                nursery.start_soon(ask)
            await trio.sleep_forever()
    assert pool.statistics() == PoolStatistics(0, 0)
    assert pool.gate.statistics().admitted == 0
    assert (children(), descriptors()) == before


@pytest.mark.parametrize("deed", [b"hang", b"at:1:hang", b"at:2:hang"])
async def test_a_stop_does_not_wait_for_a_job(deed: bytes, hostile_workers: None) -> None:
    """Catches a stop that takes TIME_LIMIT for each recipe, and blames pictures for its end.

    What was answered before is kept; nobody will take the rest.
    """
    pool = Running(config(threads=1))
    results: list[bytes] = []
    errors: list[Exception] = []
    began = trio.Event()
    answered = deed.removeprefix(b"at:")[:1]
    expected = int(answered) if answered.isdigit() else 0
    enough = trio.Event()

    async def ask() -> None:
        try:
            results.append((await pool.process(deed, PRESET, None, on_start=began.set)).data)
        except Exception as error:
            errors.append(error)
        if len(results) == expected:
            enough.set()

    async with trio.open_nursery() as asking, trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        for _ in range(3):
            asking.start_soon(ask)
        await began.wait()
        if expected:
            await enough.wait()
        nursery.cancel_scope.cancel()
    assert results == [hostile.JPEG] * expected
    # A picture that was called broken would be remembered as such.
    assert [type(error) for error in errors] == [Busy] * (3 - expected)
    assert pool.deaths == Counter()
    assert pool.statistics() == PoolStatistics(0, 0)
    assert pool.gate.statistics().admitted == 0


@pytest.mark.slow
async def test_a_service_with_slow_transforms_stops_within_its_time() -> None:
    """Catches a service that the service manager has to kill: pictures that take ten seconds."""
    noise = np.random.default_rng(1).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    source = sources.jpeg(noise)
    large = {"process": {"threads": 2, "queue_wait": 20}, "fetch": {"max_source_mb": 64}}
    pool = Running(Config.model_validate(large))
    began = trio.Event()
    errors: list[Exception] = []

    async def ask(width: int) -> None:
        preset = Preset(width=width, fit="contain", quality=90)
        try:
            await pool.process(source, preset, Format.AVIF, on_start=began.set)
        except Exception as error:
            errors.append(error)

    async with trio.open_nursery() as asking:
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            for width in range(3000, 3500, 100):
                asking.start_soon(ask, width)
            await began.wait()
            stopped = time.monotonic()
            nursery.cancel_scope.cancel()
        took = time.monotonic() - stopped
    assert [type(error) for error in errors] == [Busy] * 5
    assert took < Config().server.shutdown_timeout / 3


def test_workers_end_with_a_service_that_was_killed() -> None:
    """Catches orphans: no handler runs after SIGKILL."""
    code = """
import os, sys, trio
from pathlib import Path
from proxy.config import Config
from proxy.imaging.workers.pool import ProcessingPool
from tests.imaging.workers.test_sandbox import running_workers, PRESET, sources

async def main():
    pool = ProcessingPool(Config.model_validate({"process": {"threads": 2}}))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        await pool.process(sources.jpeg(sources.photo(64, 48)), PRESET, None)
        while len(running_workers()) < 2:
            await trio.sleep(0.01)
        print(*running_workers(), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    service = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    assert service.stdout is not None
    with service.stdout:
        # Before it may come a line of the log, about parts that this platform lacks.
        said = next(line for line in service.stdout if line.strip().replace(" ", "").isdecimal())
        found = [int(pid) for pid in said.split()]
        service.kill()
        service.wait()
    assert len(found) == 2
    end = time.monotonic() + PATIENCE
    while any(is_running(pid) for pid in found):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether it is there and no zombie: who reaps orphans is not ours to say."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"

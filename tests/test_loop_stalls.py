"""The instrument itself: what it fails a test for, and what it lets pass."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from textwrap import indent

import pytest
import trio

from tests.loop_stalls import ROOT, LoopStalled, watching

BURN = "end = time.thread_time() + 0.1\nwhile time.thread_time() < end: pass"
"""Twice of what one step may take."""


def in_proxy(body: str, *, is_async: bool = True) -> Callable[..., Awaitable[None]]:
    """A function of one path, ``proxy/made_up.py:work``."""
    source = (
        "import fcntl, gc, hashlib, os, sqlite3, time, trio\n"
        f"{'async ' if is_async else ''}def work(path):\n{indent(body, '    ')}\n"
    )
    found: dict[str, Callable[..., Awaitable[None]]] = {}
    exec(compile(source, ROOT / "proxy" / "made_up.py", "exec"), found)  # noqa: S102
    return found["work"]


def stalls_of(work: Callable[[Path], Awaitable[None]], path: Path) -> list[str]:
    """Where a run of ``work`` held up its loop."""
    with watching() as stalls:
        trio.run(work, path)
    return list(stalls)


@pytest.mark.parametrize(
    "body",
    [BURN, "hashlib.pbkdf2_hmac('sha256', b'', b'', 1_000_000)"],
    ids=["in Python", "in one call of C"],
)
def test_a_step_that_takes_too_much_cpu_time_is_told_with_its_function(
    body: str, tmp_path: Path
) -> None:
    """Catches a limit that nothing measures, and a sampler that C code keeps from looking."""
    assert stalls_of(in_proxy(body), tmp_path) == ["made_up.py:work"]


@pytest.mark.parametrize(
    "body",
    [
        "os.stat(path)",
        "path.exists()",
        "path.is_dir()",
        "os.listdir(path)",
        "list(path.iterdir())",
        "(path / 'new').mkdir()",
        "(path / 'file').write_bytes(b'')",
        "(path / 'file').read_bytes()",
        "(path / 'file').unlink()",
        "(path / 'file').rename(path / 'other')",
        "os.utime(path / 'file')",
        "os.statvfs(path)",
        "os.close(os.open(path / 'file', os.O_RDWR))",
        "sqlite3.connect(path / 'new').close()",
    ],
)
def test_a_call_for_a_file_by_its_name_is_told(body: str, tmp_path: Path) -> None:
    """Catches a call that no audit event tells of, or that pathlib makes."""
    (tmp_path / "file").write_bytes(b"x")
    stalls = stalls_of(in_proxy(body), tmp_path)
    assert stalls
    assert all(stall.endswith(" in made_up.py:work") for stall in stalls)


@pytest.mark.parametrize(
    "body",
    [
        "os.fsync(path)",
        "os.pwrite(path, b'x', 0)",
        "os.write(path, b'x')",
        "os.read(path, 1)",
        "fcntl.flock(path, fcntl.LOCK_EX)",
    ],
)
def test_a_call_for_a_file_that_is_open_is_told(body: str, tmp_path: Path) -> None:
    """Catches reading, writing and waiting for a lock through a descriptor that one has."""
    with (tmp_path / "file").open("w+b") as file:
        work = in_proxy(body)
        (stall,) = stalls_of(lambda _path: work(file.fileno()), tmp_path)
    assert stall.endswith(" in made_up.py:work")


def test_a_statement_on_an_open_database_is_told(tmp_path: Path) -> None:
    """Catches a query on the loop, of which Python tells nobody."""
    with closing(sqlite3.connect(tmp_path / "database")) as connection:
        work = in_proxy("path.execute('SELECT 1').fetchone()")
        assert stalls_of(lambda _path: work(connection), tmp_path) == [
            "sqlite3.execute in made_up.py:work"
        ]


@pytest.mark.parametrize(
    "body",
    [
        "await trio.to_thread.run_sync(path.exists)",
        "await trio.Path(path).read_bytes()",
        f"def burn():\n{indent(BURN, '    ')}\nawait trio.to_thread.run_sync(burn)",
        "for _ in range(20):\n    end = time.thread_time() + 0.01\n"
        "    while time.thread_time() < end: pass\n    await trio.lowlevel.checkpoint()",
        "end = time.thread_time() + 0.1\nwhile time.thread_time() < end: gc.collect()",
        "open('/proc/self/statm').close()",
        "import colorsys",
    ],
    ids=[
        "a file in a thread",
        "Trio's files",
        "CPU time of a thread",
        "many short steps",
        "garbage of the tests",
        "no disk",
        "an import",
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_holds_nothing_up_passes(body: str, tmp_path: Path) -> None:
    """Catches an instrument that forbids what is right, so that it gets switched off."""
    (tmp_path / "file").write_bytes(b"x")
    assert stalls_of(in_proxy(body), tmp_path / "file") == []


def test_a_lock_that_is_not_waited_for_passes(tmp_path: Path) -> None:
    """Catches a rule that forbids two system calls which answer from memory."""
    with (tmp_path / "file").open("w+b") as file:
        work = in_proxy(
            "os.fstat(path)\nfcntl.flock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "fcntl.lockf(path, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)\nfcntl.lockf(path, fcntl.LOCK_UN)"
        )
        assert stalls_of(lambda _path: work(file.fileno()), tmp_path) == []


def test_what_a_test_itself_does_passes(tmp_path: Path) -> None:
    """Catches a test that may not look at the files it is about."""
    blocking = in_proxy("path.exists()\n" + BURN, is_async=False)

    async def work(path: Path) -> None:
        os.stat(path)
        blocking(path)

    assert stalls_of(work, tmp_path) == []


def test_what_code_under_test_does_within_a_test_is_told(tmp_path: Path) -> None:
    """Catches judging a step by the task that it belongs to: most tests call the service."""
    inner = in_proxy("path.exists()")

    async def work(path: Path) -> None:
        await inner(path)

    assert stalls_of(work, tmp_path) == ["os.stat in made_up.py:work"]


@pytest.mark.xfail(raises=LoopStalled)
async def test_a_test_that_holds_up_the_loop_fails(tmp_path: Path) -> None:
    """Catches an instrument that is not in use: this test is expected to fail."""
    await in_proxy("path.exists()")(tmp_path)

"""Measuring a machine: each probe is held to a machine that is known to be so."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from proxy.config import Config
from proxy.egress.guarded_get import Response
from proxy.moderation.store import ModerationStore
from proxy.tools.doctor.probes import (
    access_times_of,
    ask_directory,
    examine,
    sandbox_parts,
    skew_of,
    why_no_store,
    why_not_resolved,
    why_not_usable,
    why_not_writable,
)
from tests.fakes.world import World
from tests.ports import free_port
from tests.required import skip_unless_required


def test_a_folder_is_tried_by_writing_and_nothing_stays_behind(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    assert why_not_writable(folder) is None
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Catches an examination by root whose folder the service can then not use."""
    assert why_not_writable(tmp_path / "new" / "cache") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    error = why_not_writable(tmp_path / "file")
    assert error is not None
    assert (error.errno, error.filename) == (errno.ENOTDIR, str(tmp_path / "file"))


STRANGER = """
import os, sys
from pathlib import Path
from proxy.tools.doctor.probes import why_not_usable, why_not_writable
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
found = why_not_writable(Path(sys.argv[1]))
print(found and found.filename)
print(why_not_usable(Path(sys.argv[1], sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moderation.sqlite3", "processes", "images/plc", "images/plc/ab"])
def test_one_file_of_roots_in_a_folder_of_the_services_is_found(tmp_path: Path, name: str) -> None:
    """Catches "can be written" told of a folder in which the service can write nothing."""
    if os.geteuid() != 0:
        skip_unless_required("only root can make files of two users")
    with TemporaryDirectory() as temporary:  # which a stranger can enter, as not those of pytest
        folder = Path(temporary)
        folder.chmod(0o755)
        (folder / "images" / "plc" / "ab").mkdir(parents=True)
        (folder / "processes").mkdir()
        store_in(folder)
        # As at the root of a volume: the file system's own, and nobody's business.
        (folder / "lost+found").mkdir(mode=0o700)
        for path in folder.rglob("*"):
            if path.name != "lost+found":
                os.chown(path, 65534, 65534)
        os.chown(folder, 65534, 65534)
        command = [sys.executable, "-c", STRANGER, str(folder), "moderation.sqlite3"]
        assert subprocess.check_output(command, text=True) == "None\nNone\n"
        os.chown(folder / name, 0, 0)
        first, second = subprocess.check_output(command, text=True).splitlines()
        assert first == str(folder / name)
        assert ("readonly" in second) == (name == "moderation.sqlite3")


def store_in(folder: Path) -> Path:
    store = ModerationStore(folder / "moderation.sqlite3")
    store.make()
    store.close()
    return store.path


@pytest.mark.parametrize("damage", ["header", "page"])
def test_a_damaged_store_is_found_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    """Catches nine lines of "ok" before a service that answers 503 to everything."""
    path = store_in(tmp_path)
    assert why_not_usable(path) is None
    data = bytearray(path.read_bytes())
    start = 0 if damage == "header" else 4096
    data[start : start + 1000] = b"\xff" * 1000
    path.write_bytes(data)
    before = sorted(each.name for each in tmp_path.iterdir())
    assert str(path) in (why_not_usable(path) or "")
    assert path.read_bytes() == data
    assert sorted(each.name for each in tmp_path.iterdir()) == before


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert why_not_usable(tmp_path / "moderation.sqlite3") is None
    assert list(tmp_path.iterdir()) == []


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own while the block runs."""
    if sys.platform != "linux" or os.geteuid() != 0:
        skip_unless_required("only root may mount a file system, and here only on Linux")
    # A block device's would honour them too; ramfs needs none.
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        skip_unless_required(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("option", ["strictatime", "relatime", "noatime"])
def test_what_a_read_does_to_access_times_is_found_by_reading(option: str, tmp_path: Path) -> None:
    """Catches a probe that takes what it has set itself for what the read has set."""
    with mounted(tmp_path, option):
        assert access_times_of(tmp_path) == option
        assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_be_written_is_told_with_its_reason(tmp_path: Path) -> None:
    with mounted(tmp_path, "ro"):
        error = why_not_writable(tmp_path)
        assert error is not None
        assert error.errno == errno.EROFS


async def levels_of(config: Config, world: World) -> dict[str, str]:
    """What an examination finds, by name."""
    found: dict[str, str] = {}
    async with aclosing(examine(config, (world.network, world.directory_network))) as findings:
        async for finding in findings:
            found[finding.name] = finding.level
    return found


async def test_a_full_disk_is_told_with_what_room_there_is(world: World, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "size=64k"):
        with suppress(OSError):
            (disk / "ballast").write_bytes(bytes(1 << 20))
        found = await levels_of(world.config(cache={"path": disk}), world)
        assert (found["cache folder"], found["disk space"]) == ("fail", "warn")


async def test_blocks_that_cannot_be_read_fail_and_looking_makes_nothing(
    world: World, tmp_path: Path
) -> None:
    found = await levels_of(world.config(), world)
    assert found["cache folder"] == "warn"
    assert not world.cache_path.exists()
    world.cache_path.mkdir()
    found = await levels_of(world.config(), world)
    assert (found["cache folder"], found["blocks"], found["cache index"]) == ("ok", "ok", "ok")
    assert list(world.cache_path.iterdir()) == []
    for name, told in (("moderation.sqlite3", "blocks"), ("blocks.sqlite3", "blocks")):
        (world.cache_path / name).write_bytes(b"no database" * 1000)
        assert (await levels_of(world.config(), world))[told] == "fail"
        (world.cache_path / name).unlink()
    (world.cache_path / "index-1.sqlite3").write_bytes(b"no database" * 1000)
    found = await levels_of(world.config(), world)
    # An index without a store: the store was lost.
    assert (found["blocks"], found["cache index"]) == ("fail", "fail")
    assert (world.cache_path / "index-1.sqlite3").exists(), "looking removes nothing either"


async def test_a_name_is_asked_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await why_not_resolved("127.0.0.1") is None
    assert await why_not_resolved("localhost") is None
    # RFC 6761 sets this one aside: it never resolves.
    assert await why_not_resolved("plc.invalid") is not None
    assert await why_not_resolved("no..name") is not None


async def test_the_directory_is_asked_as_the_service_would(world: World) -> None:
    answer, why = await ask_directory(world.config(), (world.network, world.directory_network))
    assert answer is not None, why
    assert world.plc.requests_by_path["/_health"] == 1
    assert world.open_wires == 0


async def test_a_directory_that_is_not_there_is_told_with_the_reason(world: World) -> None:
    config = world.config(identity={"plc_url": "https://nowhere.example"})
    answer, why = await ask_directory(config, (world.network, world.directory_network))
    assert answer is None
    assert "nowhere.example" in why


def test_the_clock_is_held_against_the_date_of_an_answer() -> None:
    def dated(date: str) -> Response:
        return Response(200, {"date": date}, b"", b"")

    assert skew_of(dated(formatdate(1000, usegmt=True)), 1090.0) == 90
    for nothing in ("", "yesterday", "Thu, 99 Jan 1970 00:00:00 GMT"):
        assert skew_of(dated(nothing), 0) is None
    assert skew_of(Response(200, {}, b"", b""), 0) is None


@pytest.mark.slow
async def test_the_sandbox_is_tried_in_a_real_worker_which_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing, error = await sandbox_parts(Config())
    assert error is None
    if sys.platform == "linux":
        # Where HEIC is installed, threads have no limit if this is root.
        assert {part.partition(" (")[0] for part in missing} <= {"thread limit"}
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    missing, error = await sandbox_parts(Config())
    assert error is not None


@pytest.mark.slow
async def test_an_examination_reports_on_everything_and_goes_on_after_a_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an examination that ends at the first thing that is wrong."""

    def no_lookups(*arguments: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", no_lookups)
    world.cache_path.write_text("a file where a folder should be")
    found = await levels_of(world.config(), world)
    expected = {"cache folder": "fail", "DNS": "fail", "PLC directory": "ok", "sandbox": "warn"}
    assert found.items() >= expected.items()
    assert {"CPUs", "clock", "open files", "memory"} <= found.keys()
    # Nothing to be said of a folder that is not there.
    assert not {"disk space", "access times"} & found.keys()


async def test_a_shared_store_is_tried_by_writing_and_nothing_stays_behind(
    world: World, tmp_path: Path
) -> None:
    """Catches a check that fills the bucket, and "ok" for one that nobody may write to."""
    folder = tmp_path / "store"
    assert await why_no_store(world.config(store={"url": folder.as_uri()})) is None
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    dead = {
        "url": "s3://bucket",
        "endpoint": f"http://127.0.0.1:{free_port()}",
        "region": "us-east-1",
        "access_key_id": "key",
        "secret_access_key": "secret",
        "allow_http": True,
    }
    assert await why_no_store(world.config(store=dead)) is not None
    (tmp_path / "file").touch()
    below_a_file = (tmp_path / "file" / "store").as_uri()
    why = await why_no_store(world.config(store={"url": below_a_file}))
    assert below_a_file in str(why)


async def test_only_a_machine_with_a_shared_store_is_examined_for_it(
    world: World, tmp_path: Path
) -> None:
    """Catches a warning about what one machine does not need, and no word about what is needed."""
    names = []
    networks = (world.network, world.directory_network)
    for settings in ({}, {"url": (tmp_path / "store").as_uri()}):
        async with aclosing(examine(world.config(store=settings), networks)) as found:
            names.append([finding.name async for finding in found])
    assert "shared store" not in names[0]
    assert "shared store" in names[1]

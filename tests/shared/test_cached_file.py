"""Files that the kernel has in memory: read without a wait, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from pathlib import Path

import pytest

from proxy.shared.cached_file import CachedFiles
from tests.required import skip_unless_required

TRIES = 1000
"""How often the kernel is asked to give pages back: it keeps those that it is busy with."""


@pytest.fixture
def files() -> CachedFiles:
    files = CachedFiles()
    with tempfile.NamedTemporaryFile() as probe:
        probe.write(b"x")
        probe.flush()
        if files.read(os.fsencode(probe.name), 1) is None:
            skip_unless_required("needs Linux 5.12, and temporary files on a disk")
    return files


def path_of(folder: Path, content: bytes) -> bytes:
    path = folder / "file"
    path.write_bytes(content)
    return os.fsencode(path)


@pytest.mark.parametrize("size", [1, 22_000, 1_000_000])
def test_a_file_in_the_page_cache_is_read_whole_with_its_access_time(
    size: int, files: CachedFiles, tmp_path: Path
) -> None:
    content = os.urandom(size)
    path = path_of(tmp_path, content)
    os.utime(path, (1234.5, 99))
    found = files.read(path, size)
    assert found is not None
    assert found.data == content
    assert found.accessed == pytest.approx(1234.5)


def test_a_file_of_another_size_is_left(files: CachedFiles, tmp_path: Path) -> None:
    """Catches a cut picture, and half of the next one."""
    path = path_of(tmp_path, b"four")
    assert files.read(path, 3) is None
    assert files.read(path, 5) is None
    assert files.is_possible


def test_what_the_kernel_does_not_have_in_memory_is_left(
    files: CachedFiles, tmp_path: Path
) -> None:
    """Catches a loop that waits for a disk."""
    path = path_of(tmp_path, os.urandom(1_000_000))
    with open(path, "rb") as opened:
        for _ in range(TRIES):
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if files.read(path, 1_000_000) is None:
                break
        else:
            skip_unless_required("needs a file system that gives its pages back")
        opened.read()
    assert files.read(path, 1_000_000) is not None


def test_only_a_regular_file_is_read_and_none_that_is_linked(
    files: CachedFiles, tmp_path: Path
) -> None:
    """Catches a FIFO that holds the loop, and a link that leads out of the cache."""
    real = path_of(tmp_path, b"four")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "", "missing", "file/below"):
        assert files.read(os.fsencode(tmp_path / name), 4) is None
        assert files.read(os.fsencode(tmp_path / name), 0) is None
    assert files.read(real, 4) is not None


def test_a_file_is_known_to_be_missing_once_it_was_looked_for(
    files: CachedFiles, tmp_path: Path
) -> None:
    """Catches a file that appeared meanwhile, and one that is there, though not to be read."""
    path = tmp_path / "file"
    assert not path.exists()
    assert files.is_missing(os.fsencode(path))
    path_of(tmp_path, b"four")
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir("/proc/self/fd"))
    for name in ("file", "link", "pipe", "file/below", ""):
        assert not files.is_missing(os.fsencode(tmp_path / name))
    assert sorted(os.listdir("/proc/self/fd")) == before
    path.unlink()
    assert files.is_missing(os.fsencode(path))
    assert files.is_possible


def test_no_descriptor_is_left_open(files: CachedFiles, tmp_path: Path) -> None:
    """Catches a removed file whose space is never given back, and its picture served on."""
    path = path_of(tmp_path, b"four")
    before = sorted(os.listdir("/proc/self/fd"))
    for size in (4, 5):
        files.read(path, size)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def test_a_system_that_cannot_do_it_is_asked_once(
    number: int, files: CachedFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches two calls for nothing before every hit."""
    calls = []

    def refuse(*_: object) -> int:
        calls.append(number)
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(files, "_syscall", refuse)
    path = path_of(tmp_path, b"four")
    for _ in range(3):
        assert files.read(path, 4) is None
    assert len(calls) == 1
    assert not files.is_possible

"""Marks in a shared folder: which processes live, and that none is buried twice or alive."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from proxy.coordination.liveness import UNFINISHED_SECONDS, Liveness

ENTER = """
import sys
from pathlib import Path
from proxy.coordination.liveness import Liveness
mark = Liveness(Path(sys.argv[1]))
mark.enter()
print(mark.token, flush=True)
sys.stdin.read()
"""


class Neighbour:
    """Another process with a mark in the folder."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ENTER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.token = self._process.stdout.readline().strip()

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def test_a_process_lives_until_it_is_killed_and_is_then_buried_once(tmp_path: Path) -> None:
    """Catches marks told by their existence or age alone, which outlive a SIGKILL."""
    mark = Liveness(tmp_path)
    mark.enter()
    neighbour = Neighbour(tmp_path)
    try:
        assert mark.living() == {mark.token, neighbour.token}
        assert mark.bury() == frozenset()
    finally:
        neighbour.kill()
    assert mark.living() == {mark.token}
    assert mark.bury() == {neighbour.token}
    assert mark.bury() == frozenset()


def test_a_number_left_with_a_mark_is_read_by_others_until_the_mark_is_gone(
    tmp_path: Path,
) -> None:
    """Catches a number that outlives its process, or that only its own process can read."""
    here, there = Liveness(tmp_path), Liveness(tmp_path)
    with pytest.raises(FileNotFoundError):
        here.note(1)
    here.enter()
    assert there.noted(here.token) == 0
    for number in (1, 2**63 - 1, 2**40, 0):
        here.note(number)
        assert there.noted(here.token) == number
    here.leave()
    assert there.noted(here.token) is None


def test_a_mark_that_was_deleted_is_noticed(tmp_path: Path) -> None:
    """Catches a process that notes a number where nobody looks."""
    mark = Liveness(tmp_path)
    assert not mark.is_there()
    mark.enter()
    assert mark.is_there()
    (tmp_path / mark.token).unlink()
    assert not mark.is_there()
    with pytest.raises(FileNotFoundError):
        mark.note(1)


def test_two_marks_of_one_process_are_told_apart(tmp_path: Path) -> None:
    """Catches locks that belong to a process: two services in one would bury each other."""
    one, other = Liveness(tmp_path), Liveness(tmp_path)
    one.enter()
    other.enter()
    assert one.living() == other.living() == {one.token, other.token}
    assert one.bury() == frozenset()
    other.leave()
    assert one.living() == {one.token}
    assert one.bury() == frozenset()


def test_entering_and_leaving_twice_is_as_once(tmp_path: Path) -> None:
    """Catches a second lock that waits for the first for ever, and a leak of the first."""
    mark = Liveness(tmp_path)
    mark.enter()
    mark.enter()
    assert mark.living() == {mark.token}
    mark.leave()
    mark.leave()
    assert list(tmp_path.iterdir()) == []
    assert mark.living() == frozenset()


def test_no_mark_is_seen_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches creating a mark by its name first: another process would bury the living."""
    watcher = Liveness(tmp_path)
    watcher.enter()
    buried: list[frozenset[str]] = []
    rename = Path.rename

    def look_first(path: Path, target: Path) -> Path:
        buried.append(watcher.bury())
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", look_first)
    late = Liveness(tmp_path)
    late.enter()
    assert buried == [frozenset()]
    assert watcher.living() == {watcher.token, late.token}


def test_what_a_process_left_that_ended_while_it_made_its_mark_goes(tmp_path: Path) -> None:
    """Catches files that pile up; and the mark that another process is just making taken away."""
    mark = Liveness(tmp_path)
    mark.enter()
    old, young = (tmp_path / f"{name}.new" for name in ("old", "young"))
    old.write_bytes(b"")
    young.write_bytes(b"")
    long_ago = time.time() - UNFINISHED_SECONDS - 60
    os.utime(old, (long_ago, long_ago))
    assert mark.bury() == frozenset()
    assert (old.exists(), young.exists()) == (False, True)


def test_processes_that_clean_up_at_once_share_the_dead(tmp_path: Path) -> None:
    """Catches a check without the lock held: two would clean up after the same process."""
    neighbours = [Neighbour(tmp_path) for _ in range(4)]
    for neighbour in neighbours:
        neighbour.kill()
    found: Counter[str] = Counter()
    start = threading.Barrier(4)

    def bury() -> None:
        mark = Liveness(tmp_path)
        start.wait()
        found.update(mark.bury())

    threads = [threading.Thread(target=bury) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {neighbour.token: 1 for neighbour in neighbours}


@pytest.mark.parametrize("returns", [True, False])
def test_a_mark_that_is_made_anew_is_not_taken_for_the_one_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returns: bool
) -> None:
    """Catches a lock of a file that has no name any more: the mark of one that lives goes."""
    watcher, other = Liveness(tmp_path), Liveness(tmp_path)
    other.enter()
    flock = fcntl.flock

    def late(descriptor: int, flags: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        other.leave()
        if returns:
            other.enter()
        flock(descriptor, flags)

    expected = {other.token} if returns else set()
    monkeypatch.setattr(fcntl, "flock", late)
    assert watcher.living() == expected
    other.enter()
    monkeypatch.setattr(fcntl, "flock", late)
    assert watcher.bury() == frozenset()
    assert other.is_there() is returns
    other.leave()


def test_a_folder_that_cannot_be_made_raises(tmp_path: Path) -> None:
    """Catches a mark that is silently not there."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        Liveness(tmp_path / "file" / "folder").enter()

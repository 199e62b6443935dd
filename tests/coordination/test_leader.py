"""Chores of a shared folder: one process at a time, and the next one when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from proxy.coordination.leader import RETRY_SECONDS, FolderLeadership, as_leader
from tests.fakes.steps import cancelled_at_every_step

HOLD = """
import sys
from pathlib import Path
from proxy.coordination.leader import FolderLeadership
turn = FolderLeadership(Path(sys.argv[1]))
print(turn.take(), flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_leader_is_free(tmp_path: Path) -> None:
    """Catches a turn that is a file's existence, or a time: a SIGKILL would stop the chore."""
    path = tmp_path / "turns" / "cdn"
    neighbour = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline().strip() == "True"
        turn = FolderLeadership(path)
        assert not turn.take()
    finally:
        os.kill(neighbour.pid, signal.SIGKILL)
        neighbour.communicate()
    assert turn.take()
    assert turn.take()
    turn.give_up()


def test_the_lock_that_a_leader_gave_up_is_free_and_locks_of_other_chores_always(
    tmp_path: Path,
) -> None:
    """Catches: a lock that outlasts its owner, or one lock for all chores."""
    first, second, other = (FolderLeadership(tmp_path / name) for name in ("a", "a", "b"))
    assert first.take()
    assert not second.take()
    assert other.take()
    first.give_up()
    first.give_up()
    assert second.take()
    second.give_up()
    other.give_up()


async def test_a_chore_runs_in_one_process_and_then_in_the_next(
    nursery: trio.Nursery, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """Catches a chore beside the one that runs, and a waiting one that misses its turn."""
    events: list[str] = []
    scope = trio.CancelScope()
    began = {"first": trio.Event(), "second": trio.Event()}

    async def chore(name: str) -> None:
        events.append(name)
        began[name].set()
        await trio.sleep_forever()

    async def first() -> None:
        with scope:
            await as_leader(FolderLeadership(tmp_path / "chore"), partial(chore, "first"))

    nursery.start_soon(first)
    await began["first"].wait()
    nursery.start_soon(as_leader, FolderLeadership(tmp_path / "chore"), partial(chore, "second"))
    mock_clock.jump(RETRY_SECONDS)
    await trio.testing.wait_all_tasks_blocked()
    assert events == ["first"]
    scope.cancel()
    while not began["second"].is_set():
        mock_clock.jump(RETRY_SECONDS)
        await trio.testing.wait_all_tasks_blocked(0.001)
    assert events == ["first", "second"]
    nursery.cancel_scope.cancel()


async def test_a_folder_that_cannot_be_written_does_not_end_the_service(
    nursery: trio.Nursery, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """Catches: a folder that cannot be written ends the service."""
    (tmp_path / "turns").write_text("no folder")
    began = trio.Event()

    async def chore() -> None:
        began.set()
        await trio.lowlevel.checkpoint()

    nursery.start_soon(as_leader, FolderLeadership(tmp_path / "turns" / "chore"), chore)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not began.is_set()
    (tmp_path / "turns").unlink()
    with trio.fail_after(1000):
        while not began.is_set():
            mock_clock.jump(RETRY_SECONDS)
            await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.parametrize("after", [False, True])
async def test_a_cancelled_wait_leaves_the_lock_free(tmp_path: Path, after: bool) -> None:
    """Catches a lock that was taken in a thread while the task was cancelled."""

    async def attempt() -> None:
        await as_leader(FolderLeadership(tmp_path / "chore"), trio.lowlevel.checkpoint)

    def check() -> None:
        turn = FolderLeadership(tmp_path / "chore")
        assert turn.take()
        turn.give_up()

    await cancelled_at_every_step(attempt, check, after=after)

"""One process of those on a folder: real ones, one of which is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import trio
import trio.testing

from proxy.moderation.feeds.alone import LOOK_SECONDS, alone
from tests.processes import ROOT

PROGRAM = """
import sys, trio
from pathlib import Path
from proxy.moderation.feeds.alone import alone

async def main():
    async with alone(Path(sys.argv[1])):
        print("held", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_two_hold_the_lock_or_nobody_after_one_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", PROGRAM, str(path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async for chunk in process.stdout:
            if b"\n" in chunk:
                break
        with trio.move_on_after(2 * LOOK_SECONDS) as waiting:
            async with alone(path):
                pass
        assert waiting.cancelled_caught
        process.send_signal(signal.SIGKILL)
        with trio.fail_after(30):
            async with alone(path):
                pass
    finally:
        process.kill()
        await process.wait()


async def test_a_cancellation_leaves_the_lock_held(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "lock"
    for _ in range(3):
        with trio.move_on_after(1):
            async with alone(path):
                await trio.sleep_forever()
    began = trio.current_time()
    async with alone(path):
        assert trio.current_time() == began


async def test_a_folder_that_cannot_be_written_ends_the_service(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with trio.move_on_after(10 * LOOK_SECONDS) as waiting:
        async with alone(blocked / "lock"):
            pass
    assert waiting.cancelled_caught
    blocked.unlink()
    with trio.fail_after(5):
        async with alone(blocked / "lock"):
            pass

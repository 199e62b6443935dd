"""What tests see of a process."""

from __future__ import annotations

import subprocess
import sys

import trio

from tests.processes import Process


async def test_when_a_process_has_ended_all_that_it_wrote_is_there() -> None:
    """Catches tests that look for a message in what was read by chance before the end."""
    command = [sys.executable, "-c", "print('told')"]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    await process.wait()
    running = Process(process)
    async with process.stdout, trio.open_nursery() as nursery:
        nursery.start_soon(running.read)
        assert await running.exit_code() == 0
        assert running.lines == ["told"]

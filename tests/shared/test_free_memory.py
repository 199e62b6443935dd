"""What the C library keeps of freed memory goes back to the system."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.shared import free_memory
from proxy.shared.free_memory import TRIM_SECONDS, keep_trimmed, trimmer

MIB = 1 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no such call")
def test_holes_below_what_is_in_use_are_returned() -> None:
    """Catches a trim of the top of the heap alone, which the library does by itself."""
    blocks = [bytearray(b"x" * 100_000) for _ in range(600)]
    last = blocks[1::50]
    full = resident()
    del blocks
    trimmer()()
    assert resident() < full - 30 * MIB
    assert all(each == b"x" * 100_000 for each in last)


async def test_memory_is_returned_again_and_again(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a service that is large for ever after one burst."""
    token = trio.lowlevel.current_trio_token()
    trimmed, receive = trio.open_memory_channel[None](10)

    def note() -> None:
        trio.from_thread.run_sync(trimmed.send_nowait, None, trio_token=token)

    monkeypatch.setattr(free_memory, "trimmer", lambda: note)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_trimmed)
        await wait_all_tasks_blocked()
        mock_clock.jump(TRIM_SECONDS / 2)
        await wait_all_tasks_blocked()
        assert receive.statistics().current_buffer_used == 0
        for _ in range(3):
            while not receive.statistics().current_buffer_used:
                mock_clock.jump(TRIM_SECONDS)
                await wait_all_tasks_blocked(0.001)
            receive.receive_nowait()
        nursery.cancel_scope.cancel()

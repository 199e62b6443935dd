"""Tasks that outlast a cancellation."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from proxy.shared.supervision import outlasting


async def test_a_start_that_is_cancelled_ends_although_its_task_would_be_shielded(
    autojump_clock: MockClock,
) -> None:
    """Catches a shield from the first step on: nothing could end the task, nor the wait for it."""
    ended = trio.Event()

    async def work(task_status: trio.TaskStatus[None]) -> None:
        # Nobody cancels this: a thread, say, is waited for.
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        task_status.started()
        with trio.move_on_after(1000):
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

    began = trio.current_time()
    with trio.move_on_after(1):
        async with outlasting(0) as tasks:
            await tasks.start(work, name="work")
    assert ended.is_set()
    assert trio.current_time() - began == 2


async def test_a_task_that_has_started_is_shielded(autojump_clock: MockClock) -> None:
    """Catches a shield that is never raised."""
    woken: list[float] = []

    async def work(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep(3)
        woken.append(trio.current_time())

    began = trio.current_time()
    with trio.move_on_after(1):
        async with outlasting(5) as tasks:
            await tasks.start(work, name="work")
            await trio.sleep_forever()
    assert woken == [began + 3]

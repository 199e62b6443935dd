"""A plugin of pytest: a test that hangs fails, with its name and where it stood.

A test of Trio is ended as a cancelled one is, so that it ends its processes and closes its files.
It fails with the stack of each of its tasks. pytest-timeout would raise within Trio's loop instead,
where nothing of the test is seen or cleaned up.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Generator
from functools import partial
from types import FrameType

import pytest
import trio

LIMIT, SLOW_LIMIT = 120.0, 600.0
"""Seconds for the fixtures of a test, the test, and its end, each; ``time_limit`` marks others.

What is marked as slow does steady work, on a busy machine for minutes.
"""

GRACE = 20.0
"""Seconds that a test of Trio has to end after it was cancelled."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _limited(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _limited(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _limited(item))


def _limited(item: pytest.Item) -> Generator[None, object, object]:
    mark = item.get_closest_marker("time_limit")
    usual = SLOW_LIMIT if item.get_closest_marker("slow") else LIMIT
    limit: float = mark.args[0] if mark else usual
    message = f"{item.nodeid} took over {limit:g} s"
    stood: list[str] = []

    def expired(number: int, frame: FrameType | None) -> None:
        if stood or not trio.lowlevel.in_trio_run():
            pytest.fail("\n".join([message, *stood]))
        stood.extend(["The thread:", *traceback.format_stack(frame)])
        stood.append(_stacks(trio.lowlevel.current_root_task()))
        signal.setitimer(signal.ITIMER_REAL, GRACE)
        # A task of the system that fails has Trio cancel all others.
        spawn = partial(trio.lowlevel.spawn_system_task, _fail, message)
        trio.lowlevel.current_trio_token().run_sync_soon(spawn)

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        return (yield)
    except trio.TrioInternalError:
        if not stood:
            raise
        raise pytest.fail.Exception("\n".join([message, *stood]), pytrace=False) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


async def _fail(message: str) -> None:
    raise TimeoutError(message)


def _stacks(task: trio.lowlevel.Task | None) -> str:
    """Where a task and those beneath it stand."""
    if task is None:
        return ""
    stack = traceback.StackSummary.extract(task.iter_await_frames()).format()
    beneath = [_stacks(each) for nursery in task.child_nurseries for each in nursery.child_tasks]
    return "\n".join([f"Task {task.name}:", "".join(stack), *beneath])

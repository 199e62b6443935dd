"""The time limit of tests, on tests that hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.slow

HANGING = """
import time
from pathlib import Path

import pytest
import trio

pytestmark = pytest.mark.time_limit(0.5)


async def waits_for_ever():
    await trio.sleep_forever()


async def test_a_task_waits():
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits_for_ever)
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)
        Path("cleaned up").touch()


async def test_a_task_waits_while_the_clock_jumps(autojump_clock):
    await waits_for_ever()


async def test_the_loop_is_kept():
    time.sleep(60)


def test_a_function_sleeps():
    time.sleep(60)


@pytest.fixture
def slow_fixture():
    time.sleep(60)


def test_a_fixture_sleeps(slow_fixture):
    pass


@pytest.mark.time_limit(60)
async def test_a_neighbour_passes():
    await trio.sleep(0)
"""


def test_a_test_that_hangs_fails_with_its_name_and_stack_and_cleans_up(tmp_path: Path) -> None:
    """Catches a gate that hangs, and processes that outlive the test that started them."""
    (tmp_path / "test_hanging.py").write_text(HANGING)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\nmarkers = time_limit\n")
    program = (
        "import pytest, tests.time_limit as plugin\n"
        "plugin.GRACE = 2\n"
        "pytest.main(['-rA'], [plugin])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout
    hung = [
        "test_a_task_waits",
        "test_a_task_waits_while_the_clock_jumps",
        "test_the_loop_is_kept",
        "test_a_function_sleeps",
    ]
    for name in hung:
        assert f"FAILED test_hanging.py::{name} - " in said
        assert f"test_hanging.py::{name} took over 0.5 s\n" in said
    assert "ERROR test_hanging.py::test_a_fixture_sleeps" in said
    assert "PASSED test_hanging.py::test_a_neighbour_passes" in said
    assert said.count(", in waits_for_ever\n") == 2
    assert ", in test_the_loop_is_kept\n    time.sleep(60)" in said
    assert "def test_a_function_sleeps():\n>       time.sleep(60)" in said
    assert (tmp_path / "cleaned up").exists()

"""The quick round: the tests of ``./run test --quick``.

It leaves out what is marked as slow, and what needs a program that a checkout does not bring. A
test that takes longer than ``LIMIT`` without a mark fails, so that the round stays quick.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

LEFT_OUT = ("slow", "nginx", "pds", "node", "browser")
"""The marks of tests that the quick round leaves out."""

LIMIT = 5.0
"""Seconds of processor time that a test may take, its processes included; most take 0.05.

In a new checkout the first property takes two: Hypothesis makes its table of characters.
"""


class QuickRound:
    """A plugin of pytest."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what is marked so."""
        left_out = [
            item for item in items if any(item.get_closest_marker(mark) for mark in LEFT_OUT)
        ]
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Fail a test that takes too long for this round."""
        began = _processor_time()
        yield
        if (spent := _processor_time() - began) > LIMIT:
            pytest.fail(f"{item.nodeid} took {spent:.1f} s: mark it as slow, or make it quicker")


def _processor_time() -> float:
    """Seconds that this process and those that it waited for have used."""
    return sum(os.times()[:4])

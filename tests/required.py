"""Tests that need something of the machine: skipped where it is missing, but not in the gate."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

VARIABLE = "IMAGEPROXY_REQUIRE_ALL"
"""Set, a test that would be skipped fails."""


def skip_unless_required(reason: str) -> NoReturn:
    """Skip the test that runs, or have it fail where everything is required."""
    if os.environ.get(VARIABLE):
        pytest.fail(reason)
    pytest.skip(reason)

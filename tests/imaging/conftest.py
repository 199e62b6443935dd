"""Chromium, for the tests of what a browser shows of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.imaging import browser_frames
from tests.page import NoBrowser
from tests.required import skip_unless_required


@pytest.fixture(scope="module")
def show() -> Iterator[Callable[[bytes, str], browser_frames.Film]]:
    """Show a file of a media type: its frames, and when they come."""
    try:
        with browser_frames.cinema() as shown:
            yield shown
    except NoBrowser as error:
        skip_unless_required(str(error))

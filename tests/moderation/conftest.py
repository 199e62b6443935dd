"""Stores that end with the test that opened them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from proxy.moderation.store import ModerationStore
from tests.moderation import StoreIn, open_store


@pytest.fixture
def store_in() -> Iterator[StoreIn]:
    """Opens stores, each as another process would; they are closed at the end of the test."""
    with ExitStack() as opened:

        def open_here(folder: Path) -> ModerationStore:
            return opened.enter_context(closing(open_store(folder)))

        yield open_here

"""Time that passes only when nothing is left to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio


@pytest.fixture(autouse=True)
def inline_threads(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Work for threads is done at once: a clock that jumps does not know of it, and would jump."""

    async def run_sync(sync_fn: Callable[..., Any], *args: Any, **_options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return sync_fn(*args)

    if request.node.get_closest_marker("pds") is None:
        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)

"""What a module logs, in a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import structlog


@contextmanager
def logged_by(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The lines of ``module`` while the block runs.

    Its logger is a fresh one: an application that ran before has bound the other to its own
    configuration for good.
    """
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as lines:
        patch.setattr(module, "log", structlog.get_logger())
        yield lines

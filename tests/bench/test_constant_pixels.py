"""The service without pixels starts its workers as the service does."""

from __future__ import annotations

from bench.constant_pixels import STARTS
from proxy.imaging.workers import fork_server, forks


def test_what_is_replaced_is_there() -> None:
    """Catches a change of the workers' start after which real pixels are measured as none."""
    assert STARTS in forks.BOOTSTRAP
    assert hasattr(fork_server, "render_job")

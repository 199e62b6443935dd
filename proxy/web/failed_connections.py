"""Tells of clients' connections that failed: each reason once a minute, however often it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import structlog

from proxy.observability.repeats import Repeats

MAX_ERROR = 500
"""Characters of an error. Clients choose a part of it."""

log = structlog.get_logger(__name__)


class FailedConnections:
    """Writes a line for the first of many that failed for one reason, and at ``debug`` for all.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._repeats = Repeats()

    def tell(self, reason: str, error: str = "") -> None:
        """Tell of one.

        Args:
            reason: what all that failed alike have in common.
            error: what this one has; as the reason if empty.
        """
        self._repeats.write(
            reason,
            self._clock(),
            log.warning,
            log.debug,
            "connection failed",
            error=(error or reason)[:MAX_ERROR],
        )

    def tell_all(self, group: ExceptionGroup[Exception]) -> None:
        """Tell of one that these exceptions ended; those of the same classes are alike."""
        self.tell(" ".join(sorted(set(_classes(group)))), repr(group.exceptions))


def _classes(group: ExceptionGroup[Exception]) -> Iterator[str]:
    for each in group.exceptions:
        if isinstance(each, ExceptionGroup):
            yield from _classes(each)
        else:
            yield type(each).__name__


FAILED = FailedConnections()
"""Those of this process."""

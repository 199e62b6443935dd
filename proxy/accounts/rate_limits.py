"""Reads from an answer that its host asks for fewer requests."""

from __future__ import annotations

import time

from proxy.egress.circuit import pause_asked
from proxy.egress.guarded_get import Response
from proxy.errors import RateLimited


def rate_limit_of(cause: str, answer: Response) -> RateLimited | None:
    """The error for an answer that asks for fewer requests; None for any other."""
    pause = pause_asked(answer.status, answer.headers, time.time())
    if not pause:
        return None
    # Where another host answered, the one that was asked is not left alone.
    return RateLimited(cause, None if answer.is_of_another_host else pause)

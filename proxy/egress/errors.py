"""The errors of requests to the outside. Internal: callers map them to ``proxy.errors``. Pure."""

from __future__ import annotations

MAX_CAUSE = 500
"""Characters. Strangers write parts of a cause: an HTTP parser repeats a bad header field whole."""


class EgressError(Exception):
    """A request got no usable answer.

    Args:
        cause: for the log; cut after ``MAX_CAUSE`` characters.
    """

    def __init__(self, cause: str = "") -> None:
        super().__init__(cause[:MAX_CAUSE])


class Forbidden(EgressError):
    """The guard refused the destination; nothing was sent to it."""


class ConnectFailed(EgressError):
    """No connection: the name does not resolve, the host refused it or is unreachable, or TLS
    failed."""


class BadAnswer(EgressError):
    """The connection broke, or the bytes received are not an acceptable HTTP answer."""


class NoAnswer(BadAnswer):
    """The connection broke before the first byte of an answer."""


class AskedToWait(EgressError):
    """The host asked for a pause that is not over; nothing was sent.

    Args:
        seconds: how much of the pause is left.
    """

    def __init__(self, cause: str, seconds: float = 0.0) -> None:
        super().__init__(cause)
        self.seconds = seconds


class TooLarge(EgressError):
    """The body is longer than the caller's limit."""


class TimedOut(EgressError):
    """The deadline passed, or bytes came slower than the minimum rate."""


class Saturated(EgressError):
    """The fetch channel is full; nothing was sent."""

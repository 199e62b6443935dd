"""How a request to the outside fails. Internal: callers map these to ``proxy.errors``. Pure."""

from __future__ import annotations


class EgressError(Exception):
    """A request that brought no usable answer; the text names the cause, for the log."""


class Forbidden(EgressError):
    """The guard refused the destination; no packet left."""


class ConnectFailed(EgressError):
    """No connection: the name does not resolve, refused, unreachable, or TLS failed."""


class BadAnswer(EgressError):
    """The connection broke, or what came is not an acceptable HTTP answer."""


class NoAnswer(BadAnswer):
    """The connection broke before the first byte of an answer."""


class AskedToWait(EgressError):
    """The host asked for a pause, which is not over; nothing was sent.

    Args:
        seconds: left of it.
    """

    def __init__(self, cause: str, seconds: float = 0.0) -> None:
        super().__init__(cause)
        self.seconds = seconds


class TooLarge(EgressError):
    """The body is longer than the caller's limit."""


class TimedOut(EgressError):
    """The deadline passed, or bytes came slower than the minimum rate."""


class Saturated(EgressError):
    """The fetch channel has no room; nothing was sent."""

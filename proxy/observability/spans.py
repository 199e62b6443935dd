"""The tracing interface for the rest of the service, with or without a tracer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol

Headers = Mapping[str, str]
Note = Callable[[int, str | None], None]
"""Called once with the status of an answer and its ``X-Cache``."""

trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""The trace of the request that the task works for, in hexadecimal, if it is exported."""


class Spans(Protocol):
    """Spans of one service. The parent is the span open in the task, or where the task started."""

    def request(
        self, method: str, route: str, path: str, headers: Headers
    ) -> AbstractContextManager[Note]:
        """Open the span of a request; its parent is the caller's span if ``headers`` name one."""
        ...

    def span(self, name: str) -> AbstractContextManager[None]:
        """Open a span for the duration of the block."""
        ...

    def past(self, durations: Mapping[str, float]) -> None:
        """Record consecutive spans, with durations in seconds; the last one ends now."""
        ...

    def begin(self, name: str) -> Callable[[], None]:
        """Begin a span now; calling the returned function, in any task, ends it."""
        ...

    def outgoing(self) -> Headers:
        """Return the trace headers for a PDS; empty unless ``trace.propagate``."""
        ...

    async def run(self) -> None:
        """Export until ``close``, then export the rest."""
        ...

    def close(self) -> None:
        """Declare that no span ends after this call."""
        ...


class NoSpans:
    """Does nothing, if no tracer is configured: each span costs one call."""

    @contextmanager
    def request(self, method: str, route: str, path: str, headers: Headers) -> Iterator[Note]:
        """See ``Spans.request``."""
        yield lambda status, cache: None

    def span(self, name: str) -> AbstractContextManager[None]:
        """See ``Spans.span``."""
        return _NOTHING

    def past(self, durations: Mapping[str, float]) -> None:
        """See ``Spans.past``."""

    def begin(self, name: str) -> Callable[[], None]:
        """See ``Spans.begin``."""
        return _nothing

    def outgoing(self) -> Headers:
        """See ``Spans.outgoing``."""
        return {}

    async def run(self) -> None:
        """See ``Spans.run``."""

    def close(self) -> None:
        """See ``Spans.close``."""


_NOTHING: AbstractContextManager[None] = nullcontext()


def _nothing() -> None:
    pass

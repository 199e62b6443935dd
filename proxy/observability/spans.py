"""What the rest of the service says of its work to a tracer, if there is one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

Headers = Mapping[str, str]
Note = Callable[[int, str | None], None]
"""Called once with the status of an answer and its ``X-Cache``."""


class Spans(Protocol):
    """Spans of one service, each beneath the one that is open in its task or was where it began."""

    def request(
        self, method: str, route: str, path: str, headers: Headers
    ) -> AbstractContextManager[Note]:
        """The span of a request, beneath the caller's own where ``headers`` name one."""
        ...

    def span(self, name: str) -> AbstractContextManager[None]:
        """A span for the time of the block."""
        ...

    def past(self, durations: Mapping[str, float]) -> None:
        """Spans one after the other, in seconds, of which the last ended now."""
        ...

    def begin(self, name: str) -> Callable[[], None]:
        """A span from now until what is returned is called, from whichever task."""
        ...

    def outgoing(self) -> Headers:
        """What a PDS is told of the trace; empty unless ``trace.propagate``."""
        ...

    async def run(self) -> None:
        """Export until ``close``, and what is left then."""
        ...

    def close(self) -> None:
        """No span ends after this."""
        ...


class NoSpans:
    """Nobody listens: costs a call each."""

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

"""OpenTelemetry: spans of requests, exported over OTLP. Needs the ``otel`` extra.

The SDK's batch processor has a thread of its own, which nothing here would own. Ended spans go into
a bounded channel instead; one task takes them out, and exports each batch in a thread of its
limiter. When the channel is full spans are dropped and counted: a request never waits for a trace.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

import structlog
import trio
from opentelemetry import context as contexts
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.config import TraceSection
from proxy.observability.spans import Headers, Note

QUEUE_SIZE = 2048
"""Spans that may wait; the SDK's own default."""

BATCH = 512

FLUSH_SECONDS = 5.0
"""Seconds that a span waits for others before they are exported together."""

EXPORT_SECONDS = 10.0
"""Seconds for one export, retries included."""

MAX_CAUSE = 500
"""Characters of what OpenTelemetry says of a failure."""

NAME = "atproto-imageproxy"

log = structlog.get_logger(__name__)


class Tracing:
    """See ``proxy.observability.spans.Spans``.

    Args:
        exporter: sends batches of spans, in a thread.
    """

    def __init__(self, settings: TraceSection, exporter: SpanExporter) -> None:
        self._settings = settings
        self._exporter = exporter
        # The exporter's results have no reason: it tells that to its own log.
        self._said = _Said()
        self._queue = _Queue()
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample)),
            resource=Resource.create({"service.name": NAME, "service.version": version(NAME)}),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._queue)
        self._tracer = provider.get_tracer(NAME)
        self._propagator = TraceContextTextMapPropagator()
        self._limiter = trio.CapacityLimiter(1)

    @contextmanager
    def request(self, method: str, route: str, path: str, headers: Headers) -> Iterator[Note]:
        """See ``Spans.request``. ``traceparent`` is honoured, its sampling with it."""
        attributes = {"http.request.method": method, "http.route": route, "url.path": path}
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            # An empty context: what is open around it is of another request.
            self._propagator.extract(headers, contexts.Context()),
            SpanKind.SERVER,
            attributes,
            record_exception=False,
        ) as span:

            def note(status: int, cache: str | None) -> None:
                span.set_attribute("http.response.status_code", status)
                if cache is not None:
                    span.set_attribute("imageproxy.cache", cache)
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))

            yield note

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """See ``Spans.span``. An error is its status; a traceback is for the log alone."""
        with self._tracer.start_as_current_span(name, record_exception=False):
            yield

    def past(self, durations: Mapping[str, float]) -> None:
        """See ``Spans.past``."""
        at = time.time_ns() - int(sum(durations.values()) * 1e9)
        for name, seconds in durations.items():
            span = self._tracer.start_span(name, start_time=at)
            at += int(seconds * 1e9)
            span.end(at)

    def begin(self, name: str) -> Callable[[], None]:
        """See ``Spans.begin``."""
        return self._tracer.start_span(name).end

    def outgoing(self) -> Headers:
        """See ``Spans.outgoing``."""
        headers: dict[str, str] = {}
        if self._settings.propagate:
            self._propagator.inject(headers)
        return headers

    async def run(self) -> None:
        """See ``Spans.run``. Cancellation abandons a thread to an export under way."""
        try:
            async with aclosing(self._queue.batches()) as batches:
                async for batch in batches:
                    try:
                        done = await trio.to_thread.run_sync(
                            self._exporter.export,
                            batch,
                            limiter=self._limiter,
                            abandon_on_cancel=True,
                        )
                    except Exception:
                        # Traces are lost rather than pictures.
                        log.exception("the exporter of spans failed")
                        continue
                    if done is not SpanExportResult.SUCCESS:
                        log.warning(
                            "spans were not exported",
                            spans=len(batch),
                            endpoint=_without_secrets(self._settings.endpoint),
                            cause=self._said.lately(),
                        )
        finally:
            # Also ends the pauses between the tries of an export under way.
            self._exporter.shutdown()
            self._said.end()

    def close(self) -> None:
        """See ``Spans.close``."""
        self._queue.close()


class _Said(logging.Handler):
    """What OpenTelemetry logged last: it becomes a part of our own line, and no other."""

    def __init__(self) -> None:
        super().__init__()
        # The last try and what came of all; it leaves out what it has said a moment ago.
        self._messages: deque[str] = deque(maxlen=2)
        self._log = logging.getLogger("opentelemetry")
        self._log.addHandler(self)
        self._log.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message. Called in the exporter's thread."""
        self._messages.append(record.getMessage()[:MAX_CAUSE])

    def lately(self) -> str:
        """Its last messages."""
        return "; ".join(self._messages)

    def end(self) -> None:
        """Keep no more of them."""
        self._log.removeHandler(self)


def _without_secrets(url: str) -> str:
    """A URL without the name and password that it may have."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class _Queue(SpanProcessor):
    """Ended spans on their way to the exporter."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[ReadableSpan](QUEUE_SIZE)
        self._dropped = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Called by the SDK, in Trio's thread: every span here ends there."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        try:
            self._send.send_nowait(span)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            self._dropped += 1

    def close(self) -> None:
        self._send.close()

    async def batches(self) -> AsyncGenerator[Sequence[ReadableSpan], None]:
        """Batches as they fill up, or after ``FLUSH_SECONDS``; ends after ``close``."""
        async with self._receive:
            async for first in self._receive:
                batch = [first]
                with trio.move_on_after(FLUSH_SECONDS):
                    while len(batch) < BATCH:
                        try:
                            batch.append(await self._receive.receive())
                        except trio.EndOfChannel:
                            break
                if self._dropped:
                    log.warning("spans were dropped", spans=self._dropped)
                    self._dropped = 0
                yield batch


def tracing_of(settings: TraceSection) -> Tracing:
    """What exports to ``trace.endpoint``."""
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=EXPORT_SECONDS)
    return Tracing(settings, exporter)

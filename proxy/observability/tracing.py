"""OpenTelemetry: exports spans of requests over OTLP. Needs the ``otel`` extra.

The SDK's batch processor starts a thread that nothing here would own. Instead, ended spans go into
a bounded channel. One task reads them, and exports each batch in a thread of its limiter. When the
channel is full, spans are dropped and counted: a request never waits for a trace.
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
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.config import TraceSection
from proxy.observability.spans import Headers, Note, trace_id

QUEUE_SIZE = 2048
"""Spans that may wait; the default of the SDK."""

BATCH = 512

FLUSH_SECONDS = 5.0
"""Seconds that a span waits for others, to be exported together."""

EXPORT_SECONDS = 10.0
"""Seconds for one export, retries included."""

MAX_CAUSE = 500
"""Characters kept of OpenTelemetry's message about a failure."""

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
        # The exporter's results give no reason; the reason is only in OpenTelemetry's log.
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
        """See ``Spans.request``. ``traceparent`` and its sampling decision are respected."""
        attributes = {"http.request.method": method, "http.route": route, "url.path": path}
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            # An empty context: a span that is open here belongs to another request.
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

            context = span.get_span_context()
            own = format_trace_id(context.trace_id) if context.trace_flags.sampled else None
            token = trace_id.set(own)
            try:
                yield note
            finally:
                trace_id.reset(token)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """See ``Spans.span``. An error sets the status; a traceback goes only to the log."""
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
        """See ``Spans.run``. Cancellation abandons the thread of an export in progress."""
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
                        # Lose traces rather than images.
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
            # Also ends the pauses between the retries of an export in progress.
            self._exporter.shutdown()
            self._said.end()

    def close(self) -> None:
        """See ``Spans.close``."""
        self._queue.close()


class _Said(logging.Handler):
    """Keeps OpenTelemetry's last log messages: they appear only as part of our own line."""

    def __init__(self) -> None:
        super().__init__()
        # The last try, and the final result. OpenTelemetry skips a message it logged just before.
        self._messages: deque[str] = deque(maxlen=2)
        self._log = logging.getLogger("opentelemetry")
        self._log.addHandler(self)
        self._log.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message. Called in the exporter's thread."""
        self._messages.append(record.getMessage()[:MAX_CAUSE])

    def lately(self) -> str:
        """Return the last messages."""
        return "; ".join(self._messages)

    def end(self) -> None:
        """Stop keeping messages."""
        self._log.removeHandler(self)


def _without_secrets(url: str) -> str:
    """Return a URL without its user name and password, if any."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class _Queue(SpanProcessor):
    """Ended spans on their way to the exporter."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[ReadableSpan](QUEUE_SIZE)
        self._dropped = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span. Called by the SDK in Trio's thread, where every span here ends."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        try:
            self._send.send_nowait(span)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            self._dropped += 1

    def close(self) -> None:
        self._send.close()

    async def batches(self) -> AsyncGenerator[Sequence[ReadableSpan], None]:
        """Yield batches when they are full, or after ``FLUSH_SECONDS``; end after ``close``."""
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
    """Build the tracing that exports to ``trace.endpoint``."""
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=EXPORT_SECONDS)
    return Tracing(settings, exporter)

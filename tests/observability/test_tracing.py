"""Traces: a span for each request, what it waited for beneath it, and nobody told unasked."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import structlog
import trio
import trio.testing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

import proxy.observability.tracing
import proxy.web.app
import proxy.web.responder
from proxy.config import TraceSection
from proxy.observability.spans import NoSpans
from proxy.observability.tracing import BATCH, FLUSH_SECONDS, QUEUE_SIZE, Tracing, tracing_of
from tests.fakes.world import World
from tests.logs import logged_by
from tests.web import img, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """An OTLP receiver on loopback, which reads what it gets with OpenTelemetry's own types.

    Attributes:
        spans: by name, in the order in which they came.
        status: of its answers.
    """

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.status = 200
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    async def serve(self, nursery: trio.Nursery) -> None:
        """Listen from now on."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, self._answer, listeners)

    async def _answer(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        body = b""
        async for data in stream:
            connection.receive_data(bytes(data))
            while (event := connection.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self._take(body)
                    body = b""
                    head = h11.Response(status_code=self.status, headers=[("Content-Length", "0")])
                    answer = connection.send(head) + connection.send(h11.EndOfMessage())
                    await stream.send_all(answer)
                    connection.start_next_cycle()
                elif isinstance(event, h11.ConnectionClosed):
                    return

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    async with trio.open_nursery() as nursery:
        found = Collector()
        await found.serve(nursery)
        yield found
        nursery.cancel_scope.cancel()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def trace_of(
    world: World, *headers: tuple[str, str], times: int = 1, **trace: Any
) -> tuple[Collector, list[Any]]:
    """What a collector got of a request for a new image, repeated; the replies."""
    async with collector() as found:
        config = world.config(trace={"endpoint": found.endpoint, **trace})
        blob = world.add_blob()
        async with serving(world, config) as client:
            replies = [await client.get(img(*blob), *headers) for _ in range(times)]
        # The service has ended, and with it what was left to export.
        return found, replies


async def test_a_miss_has_resolve_fetch_queue_process_and_write_beneath_its_span(
    world: World,
) -> None:
    """Catches spans of tasks that know nothing of their request."""
    found, (reply,) = await trace_of(world)
    assert reply.headers["x-cache"] == "miss"
    (root,) = found.named("GET /img/{preset}/plain/{did}/{cid}")
    assert root.parent_span_id == b""
    children = {span.name for span in found.spans if span.parent_span_id == root.span_id}
    assert children == {"resolve", "fetch", "queue", "process", "write"}
    assert {span.trace_id for span in found.spans} == {root.trace_id}
    for span in found.spans:
        assert root.start_time_unix_nano <= span.end_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    ordered = [found.named(name)[0] for name in ("resolve", "fetch", "queue", "process")]
    ends = [span.end_time_unix_nano for span in ordered]
    assert ends == sorted(ends)


@pytest.mark.usefixtures("both_ways")
async def test_a_request_says_its_status_and_cache_state_and_no_query(world: World) -> None:
    found, replies = await trace_of(world, times=2)
    assert [reply.headers["x-cache"] for reply in replies] == ["miss", "hit"]
    roots = [span for span in found.spans if span.parent_span_id == b""]
    assert [attributes(root)["imageproxy.cache"] for root in roots] == ["miss", "hit"]
    assert {attributes(root)["http.response.status_code"] for root in roots} == {200}
    async with (
        collector() as found,
        serving(world, world.config(trace={"endpoint": found.endpoint})) as client,
    ):
        await client.get(img(*world.add_blob()) + "?token=secret")
    assert found.spans
    assert "secret" not in str(found.spans)


async def test_a_failure_is_told_where_it_happened_without_a_traceback(world: World) -> None:
    world.pds.refuses = -1
    found, (reply,) = await trace_of(world)
    assert reply.status == 502
    (fetch,) = found.named("fetch")
    assert fetch.status.code == 2
    assert "FetchFailed" in fetch.status.message
    assert not any(span.events for span in found.spans)
    (root,) = found.named("GET /img/{preset}/plain/{did}/{cid}")
    assert root.status.code == 2


async def test_a_traceparent_is_honoured(world: World) -> None:
    """Catches a trace that begins anew behind every hop (W3C Trace Context)."""
    found, _ = await trace_of(world, ("traceparent", f"00-{TRACE}-{PARENT}-01"), sample=0)
    (root,) = found.named("GET /img/{preset}/plain/{did}/{cid}")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)


@pytest.mark.parametrize("value", [f"00-{TRACE}-{PARENT}-00", "nonsense", "00-0-0-01"])
async def test_a_caller_that_does_not_sample_or_speaks_nonsense_begins_no_trace(
    world: World, value: str
) -> None:
    found, (reply,) = await trace_of(world, ("traceparent", value), sample=0)
    assert reply.status == 200
    assert found.spans == []


@pytest.mark.parametrize("propagate", [False, True])
async def test_a_pds_is_told_of_the_trace_only_when_that_was_asked_for(
    world: World, propagate: bool
) -> None:
    """Catches a header that tells strangers what belongs together."""
    await trace_of(world, ("traceparent", f"00-{TRACE}-{PARENT}-01"), propagate=propagate)
    told = [request.headers.get("traceparent", "") for request in world.pds.requests]
    assert len(told) == 1
    assert (TRACE in told[0]) is propagate
    assert not any("traceparent" in request.headers for request in world.plc.requests)


@pytest.mark.usefixtures("both_ways")
async def test_without_an_endpoint_nothing_listens(world: World) -> None:
    async with serving(world) as client:
        assert isinstance(client.service.spans, NoSpans)
        assert (await client.get(img(*world.add_blob()))).status == 200


@pytest.mark.usefixtures("both_ways")
async def test_a_collector_that_refuses_costs_its_spans_and_no_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collector() as found:
        found.status = 400
        config = world.config(trace={"endpoint": found.endpoint})
        async with serving(world, config) as client:
            assert (await client.get(img(*world.add_blob()))).status == 200
        assert found.spans
        tracing = tracing_of(config.trace)
        end_spans(tracing, 3)
        tracing.close()
        with logged_by(proxy.observability.tracing, monkeypatch) as lines:
            await tracing.run()
    assert [(line["event"], line["spans"]) for line in lines] == [("spans were not exported", 3)]
    assert lines[0]["endpoint"] == found.endpoint
    assert "400" in lines[0]["cause"]


async def test_spans_that_are_lost_say_where_they_went_and_why_but_no_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a line that only counts, and a collector's password in the log."""
    monkeypatch.setattr(
        proxy.observability.tracing, "EXPORT_SECONDS", 2.0
    )  # it tries once more within
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        tracing = tracing_of(TraceSection(endpoint=f"http://user:s3cret@{address}/v1/traces"))
        end_spans(tracing, 1)
        tracing.close()
        with logged_by(proxy.observability.tracing, monkeypatch) as lines:
            await tracing.run()
    (line,) = lines
    assert line["endpoint"] == f"http://{address}/v1/traces"
    assert "Connection refused" in line["cause"]
    assert "s3cret" not in str(line)


class Recording(SpanExporter):
    """Keeps the sizes of batches; may be held up."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.error: Exception | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.sizes.append(len(spans))
        if self.error is not None:
            raise self.error
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to close."""


async def _here(work: Any, *arguments: Any, **_: Any) -> Any:
    return work(*arguments)


@pytest.fixture
def threadless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock does not wait for threads."""
    monkeypatch.setattr(trio.to_thread, "run_sync", _here)


def end_spans(tracing: Tracing, count: int) -> None:
    for _ in range(count):
        tracing.begin("write")()


async def test_spans_go_out_together_when_there_are_many_or_after_a_while(
    threadless: None, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Catches an export for each span, and spans that wait for ever for company."""
    exporter = Recording()
    tracing = Tracing(TraceSection(), exporter)
    end_spans(tracing, BATCH + 1)
    nursery.start_soon(tracing.run)
    await trio.testing.wait_all_tasks_blocked()
    assert exporter.sizes == [BATCH]
    await trio.sleep(FLUSH_SECONDS)
    await trio.testing.wait_all_tasks_blocked()
    assert exporter.sizes == [BATCH, 1]
    nursery.cancel_scope.cancel()


async def test_more_spans_than_fit_are_dropped_and_told_without_a_wait(
    threadless: None, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Recording()
    tracing = Tracing(TraceSection(), exporter)
    end_spans(tracing, QUEUE_SIZE + 7)
    tracing.close()
    with logged_by(proxy.observability.tracing, monkeypatch) as lines:
        await tracing.run()
    assert sum(exporter.sizes) == QUEUE_SIZE
    assert [line["spans"] for line in lines if line["event"] == "spans were dropped"] == [7]


async def test_an_exporter_that_breaks_does_not_end_the_service(
    threadless: None, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Recording()
    exporter.error = ZeroDivisionError()
    tracing = Tracing(TraceSection(), exporter)
    end_spans(tracing, BATCH + 1)
    tracing.close()
    with logged_by(proxy.observability.tracing, monkeypatch):
        await tracing.run()
    assert exporter.sizes == [BATCH, 1]


@pytest.mark.parametrize(("sample", "has_trace"), [(1, True), (0, False)])
async def test_the_line_of_a_request_that_waited_has_the_trace_that_shows_for_what(
    sample: int,
    has_trace: bool,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches a slow request in the log that cannot be found among the traces, and a false hint."""
    # Another test may have bound the other one.
    monkeypatch.setattr(proxy.web.responder, "log", structlog.get_logger())
    monkeypatch.setattr(proxy.web.app, "log", structlog.get_logger())
    found, _ = await trace_of(world, sample=sample)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [each for each in lines if each["event"] == "request"]
    if has_trace:
        (span,) = found.named("GET /img/{preset}/plain/{did}/{cid}")
        assert line["trace_id"] == span.trace_id.hex()
    else:
        assert "trace_id" not in line
    (stopped,) = [each for each in lines if each["event"] == "service stopped"]
    assert "trace_id" not in stopped

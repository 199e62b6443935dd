"""Opens a span around an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.observability.spans import Spans
from proxy.web.asgi import Receive, Scope, Send
from proxy.web.responses import HttpResponse

App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def traced(
    spans: Spans, route: str, scope: Scope, receive: Receive, send: Send, app: App
) -> None:
    """Let ``app`` answer a request inside a new span.

    Args:
        route: OpenTelemetry's ``http.route``: the path with placeholders for its parts.
    """
    with spans.request(scope["method"], route, scope["path"], _caller(scope)) as note:

        async def send_and_note(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                cache = dict(message["headers"]).get(b"x-cache")
                note(message["status"], None if cache is None else cache.decode())
            await send(dict(message))

        await app(scope, receive, send_and_note)


def trace_at_once(spans: Spans, route: str, scope: Scope, answer: HttpResponse) -> None:
    """Record the span of a request that was answered without a wait.

    It begins when the answer is known: what has to wait gets its span from ``traced``.
    """
    with spans.request(scope["method"], route, scope["path"], _caller(scope)) as note:
        note(answer.status, dict(answer.headers).get("X-Cache"))


def _caller(scope: Scope) -> dict[str, str]:
    """Return the headers that name the span of the caller."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }

"""Opens a span around an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.observability.spans import Spans
from proxy.web.asgi import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def traced(
    spans: Spans, route: str, scope: Scope, receive: Receive, send: Send, app: App
) -> None:
    """Let ``app`` answer a request inside a new span.

    Args:
        route: OpenTelemetry's ``http.route``: the path with placeholders for its parts.
    """
    headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }
    with spans.request(scope["method"], route, scope["path"], headers) as note:

        async def send_and_note(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                cache = dict(message["headers"]).get(b"x-cache")
                note(message["status"], None if cache is None else cache.decode())
            await send(dict(message))

        await app(scope, receive, send_and_note)

"""Sends answers over ASGI, without a framework between a hit and its client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

import trio
from quart import Response

from proxy.web.responses import Headers, HttpResponse, PendingResponse, method_not_allowed

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Respond = Callable[[str, str | None], HttpResponse | PendingResponse]

METHODS = ("GET", "HEAD")

ENCODED = 4096
"""Size of the LRU cache of encoded headers: about 1 KB for each answer."""


async def serve(scope: Scope, receive: Receive, send: Send, respond: Respond) -> None:
    """Answer one request: call ``respond`` with its path and its ``If-None-Match``.

    If the client disconnects, a pending answer is cancelled. A request body is read and dropped,
    also while the answer is sent: otherwise a server that waits for its application to read the
    body would wait forever, and keep the connection. An immediate answer without a body starts
    no task, because a task costs more than a hit from memory.
    """
    if_none_match, may_have_body = _read_headers(scope)
    if scope["method"] in METHODS:
        answer = respond(scope["path"], if_none_match)
    else:
        answer = method_not_allowed(METHODS)
    is_head = scope["method"] == "HEAD"
    if isinstance(answer, HttpResponse) and not may_have_body:
        for message in _messages(answer, is_head):
            await send(message)
        return
    async with trio.open_nursery() as nursery:
        work = trio.CancelScope()
        nursery.start_soon(_drop_body, receive, work)
        with work:
            found = answer if isinstance(answer, HttpResponse) else await answer()
        if not work.cancelled_caught:
            for message in _messages(found, is_head):
                await send(message)
        nursery.cancel_scope.cancel()


def quart_response(response: HttpResponse) -> Response:
    """Convert to Quart's response, for the routes that the framework serves."""
    return Response(response.body, status=response.status, headers=dict(response.headers))


def _read_headers(scope: Scope) -> tuple[str | None, bool]:
    """Return ``If-None-Match``, and whether a body may follow.

    Repeated fields form one list (RFC 9110, section 5.3). An HTTP/1 request has a body only if its
    headers announce one (RFC 9112, section 6.3); an HTTP/2 request need not announce it.
    """
    tags: list[bytes] = []
    may_have_body = not scope["http_version"].startswith("1.")
    for name, value in scope["headers"]:
        if name == b"if-none-match":
            tags.append(value)
        elif name in (b"content-length", b"transfer-encoding"):
            may_have_body = True
    return b", ".join(tags).decode("latin-1") if tags else None, may_have_body


async def _drop_body(receive: Receive, work: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    work.cancel()


def _messages(answer: HttpResponse, is_head: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    headers = list(_encoded(answer.headers))
    if answer.status != 304:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    return (
        {"type": "http.response.start", "status": answer.status, "headers": headers},
        {"type": "http.response.body", "body": b"" if is_head else answer.body},
    )


@lru_cache(ENCODED)
def _encoded(headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.lower().encode(), value.encode("latin-1")) for name, value in headers)

"""Answers over ASGI, without a framework between a hit and its client."""

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
"""Answers whose headers are kept as they are sent, the most recent: about 1 KB each."""


async def serve(scope: Scope, receive: Receive, send: Send, respond: Respond) -> None:
    """Answer one request with what ``respond`` makes of its path and its ``If-None-Match``.

    A client that goes away cancels an answer that takes a while. A body is taken and dropped,
    also while the answer is sent: a server that waits for its application to take a piece of it
    would wait for ever, and keep the connection. With neither, no task is started: it would cost
    more than a hit from memory.
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
    """The same as Quart's, for the routes that the framework serves."""
    return Response(response.body, status=response.status, headers=dict(response.headers))


def _read_headers(scope: Scope) -> tuple[str | None, bool]:
    """``If-None-Match``, and whether a body may come.

    Repeated fields are one list (RFC 9110, section 5.3). A request of HTTP/1 has a body where it
    announces one (RFC 9112, section 6.3); one of HTTP/2 need not announce it.
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

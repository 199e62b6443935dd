"""Sends answers over ASGI, without a framework between a hit and its client."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import trio
from quart import Response

from proxy.web.responses import (
    METHODS,
    Headers,
    HttpResponse,
    PendingResponse,
    method_not_allowed,
    preflight,
)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Respond = Callable[[str, str | None], HttpResponse | PendingResponse]

WITHOUT_CONTENT = (204, 304)
"""Statuses that say nothing of a length or a type (RFC 9110, sections 8.6 and 15.4.5)."""


async def serve(scope: Scope, receive: Receive, send: Send, respond: Respond) -> None:
    """Answer one request: call ``respond`` with its path and its ``If-None-Match``.

    If the client disconnects, a pending answer is cancelled. A request body is read and dropped,
    also while the answer is sent: otherwise a server that waits for its application to read the
    body would wait forever, and keep the connection. An immediate answer without a body starts
    no task, because a task costs more than a hit from memory.
    """
    if_none_match, may_have_body = read_headers(scope)
    if scope["method"] in METHODS:
        answer = respond(scope["path"], if_none_match)
    else:
        answer = preflight() if scope["method"] == "OPTIONS" else method_not_allowed()
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
    answer = Response(response.body, status=response.status, headers=dict(response.headers))
    if response.status in WITHOUT_CONTENT:
        # The framework's own; a cache would take them for those of what it has (RFC 9111, 3.2).
        del answer.headers["Content-Length"], answer.headers["Content-Type"]
    return answer


_ABSOLUTE = re.compile(
    rb"https?://((?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::[0-9]*)?)(?=/|$)", re.IGNORECASE
)


def in_origin_form(scope: Scope) -> Scope:
    """Return a request for a whole URL as one for its path: every server must accept both.

    Its host counts, and not that of the ``Host`` field (RFC 9112, section 3.2.2).
    """
    found = _ABSOLUTE.match(scope["raw_path"])
    if found is None:
        return scope
    path = scope["raw_path"][found.end() :] or b"/"
    headers = [pair for pair in scope["headers"] if pair[0] != b"host"]
    return {
        **scope,
        "raw_path": path,
        "path": unquote(path.decode("ascii")),
        "headers": [(b"host", found[1]), *headers],
    }


def read_headers(scope: Scope) -> tuple[str | None, bool]:
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
    headers = header_pairs(answer.status, answer.headers, len(answer.body))
    return (
        {"type": "http.response.start", "status": answer.status, "headers": headers},
        {"type": "http.response.body", "body": b"" if is_head else answer.body},
    )


def header_pairs(status: int, headers: Headers, length: int) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer as they are sent, for a body of ``length`` bytes."""
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    if status not in WITHOUT_CONTENT:
        pairs.append((b"content-length", b"%d" % length))
    return pairs

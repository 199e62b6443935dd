"""Answers over ASGI, without a framework between a hit and its client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from proxy.web.answers import Answer, Later, method_not_allowed

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Respond = Callable[[str, str | None], Answer | Later]

METHODS = ("GET", "HEAD")


async def serve(scope: Scope, receive: Receive, send: Send, respond: Respond) -> None:
    """Answer one request with what ``respond`` makes of its path and its ``If-None-Match``.

    A client that goes away cancels an answer that takes a while. A body is taken and dropped,
    also while the answer is sent: a server that waits for its application to take a piece of it
    would wait for ever, and keep the connection. With neither, no task is started: it would cost
    more than a hit from memory.
    """
    if scope["method"] in METHODS:
        answer = respond(scope["path"], _header(scope, b"if-none-match"))
    else:
        answer = method_not_allowed(METHODS)
    with_body = scope["method"] != "HEAD"
    if isinstance(answer, Answer) and not _may_have_body(scope):
        await _send(send, answer, with_body=with_body)
        return
    async with trio.open_nursery() as nursery:
        work = trio.CancelScope()
        nursery.start_soon(_drop_body, receive, work)
        with work:
            found = answer if isinstance(answer, Answer) else await answer()
        if not work.cancelled_caught:
            await _send(send, found, with_body=with_body)
        nursery.cancel_scope.cancel()


def _may_have_body(scope: Scope) -> bool:
    """RFC 9112, section 6.3: a request of HTTP/1 has a body where it announces one."""
    return not scope["http_version"].startswith("1.") or any(
        name in (b"content-length", b"transfer-encoding") for name, _value in scope["headers"]
    )


async def _drop_body(receive: Receive, work: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    work.cancel()


async def _send(send: Send, answer: Answer, *, with_body: bool) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers]
    if answer.status != 304:
        headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body if with_body else b""})


def _header(scope: Scope, wanted: bytes) -> str | None:
    """A header's value; of repeated ones, their list (RFC 9110, section 5.3)."""
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
    return ", ".join(values) if values else None

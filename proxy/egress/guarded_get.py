"""One guarded GET or HEAD: follows redirects itself, applies limits, and hashes the body as it
arrives."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from io import BytesIO
from math import inf
from traceback import clear_frames
from types import MappingProxyType, TracebackType

import trio

from proxy.egress.endpoint import Origin, redirect_target
from proxy.egress.errors import BadAnswer, ConnectFailed, NoAnswer, TimedOut, TooLarge
from proxy.egress.http_client import HttpClient, Method, StreamingResponse
from proxy.egress.own_hosts import PrivateHosts

USER_AGENT = f"atproto-imageproxy/{version('atproto-imageproxy')}"

REDIRECTS = frozenset({301, 302, 303, 307, 308})

MIN_BYTES_PER_SECOND = 1024
"""A body that arrives more slowly over one window is cut off; a phone on 2G is ten times faster."""

RATE_WINDOW = 5.0
"""The rate is measured over windows of this many seconds, so that a healthy server may pause."""

CHUNKS_PER_STEP = 32
"""After this many chunks other tasks have their turn. One read can bring hundreds of chunks, and
each takes about 0.01 ms."""

ERROR_BODY = 4096
"""The bytes read from an answer that is not a 200: enough for an XRPC error."""


PLAIN = frozenset({"", "identity", "none", "aws-chunked", "utf-8"})
"""Values of ``Content-Encoding`` that change nothing. Object stores keep what an uploader wrote."""

HEADERS = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
"""Of each request."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

EMPTY = hashlib.sha256(b"").digest()


Sink = Callable[[bytes], Awaitable[object]]
"""Takes the pieces of a body, in order."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    Attributes:
        status: three digits; never that of a redirect that was followed.
        body: at most as long as the caller's limit, and empty if the limit is None. If the answer
            is not a 200, its first 4096 bytes.
        sha256: digest of ``body``, 32 bytes.
        is_of_another_host: redirects led away from the host that was asked.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    sha256: bytes
    is_of_another_host: bool = False


@dataclass(frozen=True, slots=True)
class RequestRules:
    """The limits and headers of a request.

    Attributes:
        max_bytes: the limit for the body. If None, the body of a 200 is not read and the connection
            is closed.
        max_redirects: hops after the first request.
        allow_http, allow_private_hosts: see the configuration.
        headers: further headers, only for the first request. Redirects can lead to other hosts,
            which must not get them.
        sink: gets the body of a 200 instead of the answer; an error may come after some of it.
    """

    max_bytes: int | None
    max_redirects: int
    allow_http: bool
    allow_private_hosts: PrivateHosts
    headers: Mapping[str, str] = field(default_factory=dict)
    sink: Sink | None = None


async def guarded_get(
    first: HttpClient,
    others: HttpClient,
    origin: Origin,
    target: str,
    rules: RequestRules,
    on_received: Callable[[int], object] = lambda size: None,
    *,
    method: Method = "GET",
    on_departure: Callable[[], object] = lambda: None,
) -> Response:
    """Ask ``origin`` for ``target``.

    Args:
        first: sends the first request. It differs from ``others`` only for the operator's own
            directory, which may have a private address.
        others: sends the requests that follow redirects.
        on_received: called with the size of each piece of the body.
        on_departure: called when a redirect leads to another host: what happens there is not of
            ``origin``.

    Raises:
        Forbidden, ConnectFailed, BadAnswer, TooLarge, TimedOut: see ``proxy.egress.errors``.
    """
    client, more, asked = first, rules.headers, origin
    for _hop in range(rules.max_redirects + 1):
        headers = {**HEADERS, **more}
        async with _Opened(partial(client.request, method, origin, target, headers)) as reply:
            if reply.status not in REDIRECTS:
                answer = await _read(reply, method, rules, on_received)
                return answer if origin == asked else replace(answer, is_of_another_host=True)
            location = reply.headers.get("location")
        if location is None:
            raise BadAnswer(f"{origin}: status {reply.status} without a Location")
        origin, target = redirect_target(
            origin,
            target,
            location,
            allow_http=rules.allow_http,
            allow_private_hosts=rules.allow_private_hosts,
        )
        client, more = others, NO_HEADERS
        if origin != asked:
            on_departure()
    raise BadAnswer(f"{origin}: more than {rules.max_redirects} redirects")


class _Opened:
    """The head of a reply. A failure before its first byte is retried once (RFC 9110, 9.2.2)."""

    def __init__(self, ask: Callable[[], AbstractAsyncContextManager[StreamingResponse]]) -> None:
        self._ask = ask
        self._asked = ask()

    async def __aenter__(self) -> StreamingResponse:
        try:
            return await self._asked.__aenter__()
        except (ConnectFailed, NoAnswer):
            self._asked = self._ask()
            return await self._asked.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> bool | None:
        return await self._asked.__aexit__(kind, error, at)


def is_plain(content_encoding: str) -> bool:
    """Whether a body with this ``Content-Encoding`` is to be read as it is. Pure, total."""
    return all(each.strip().lower() in PLAIN for each in content_encoding.split(","))


async def _read(
    reply: StreamingResponse,
    method: Method,
    rules: RequestRules,
    on_received: Callable[[int], object],
) -> Response:
    max_bytes = rules.max_bytes
    if method == "HEAD":
        # The answer has no body (RFC 9110, section 9.3.2). Reading to its end frees the connection.
        await first_bytes(reply.body, ERROR_BODY)
        return Response(reply.status, reply.headers, b"", EMPTY)
    encoding = reply.headers.get("content-encoding", "")
    if reply.status != 200:
        # Its status counts also where a front encodes every page of errors.
        body = await first_bytes(reply.body, ERROR_BODY) if is_plain(encoding) else b""
        return Response(reply.status, reply.headers, body, hashlib.sha256(body).digest())
    if max_bytes is None:
        return Response(reply.status, reply.headers, b"", EMPTY)
    if not is_plain(encoding):
        raise BadAnswer(f"the body is encoded ({encoding[:32]!a}); identity was asked for")
    length = _declared_length(reply.headers)
    if length is not None and length > max_bytes:
        raise TooLarge(f"Content-Length {length} is over {max_bytes}")
    return await _read_whole(reply, length, max_bytes, rules.sink, on_received)


async def _read_whole(
    reply: StreamingResponse,
    length: int | None,
    max_bytes: int,
    sink: Sink | None,
    on_received: Callable[[int], object],
) -> Response:
    """Read a body to its end.

    Args:
        length: the declared one.
    """
    # Its ``getvalue`` copies nothing, unlike ``bytes(bytearray)``: 4 ms for 10 MB.
    received = BytesIO()
    whole = b""
    size = 0
    digest = hashlib.sha256()

    def take(piece: bytes) -> None:
        nonlocal size, whole
        size += len(piece)
        on_received(len(piece))
        if size > max_bytes:
            raise TooLarge(f"more than {max_bytes} bytes")
        if sink is None:
            if len(piece) == length:
                whole = piece
            else:
                received.write(piece)
        digest.update(piece)

    try:
        await _receive(reply.body, take, sink)
        if length is not None and size != length:
            raise BadAnswer(f"only {size} of {length} bytes arrived")
    except BaseException as error:
        # The traceback has this frame and those that read, and lives as long as the error.
        received.close()
        whole = b""
        _forget_variables(error)
        raise
    return Response(reply.status, reply.headers, whole or received.getvalue(), digest.digest())


async def first_bytes(body: AsyncGenerator[bytes, None], limit: int) -> bytes:
    """At most the first ``limit`` bytes of a body.

    Raises:
        BadAnswer: the connection broke before them.
        TimedOut: they arrived more slowly than ``MIN_BYTES_PER_SECOND``.
    """
    found = bytearray()

    def take(piece: bytes) -> bool:
        found.extend(piece)
        return len(found) >= limit

    await _receive(body, take)
    return bytes(found[:limit])


async def _receive(
    body: AsyncGenerator[bytes, None],
    take: Callable[[bytes], bool | None],
    sink: Sink | None = None,
) -> None:
    """Give each piece of a body to ``take``, until it returns True, and to ``sink``.

    Raises:
        TimedOut: a window of ``RATE_WINDOW`` seconds had less than ``MIN_BYTES_PER_SECOND``.
    """
    received = taken = 0
    async with aclosing(body):
        # One scope for all windows: to open one costs as much as all else here.
        with trio.move_on_after(RATE_WINDOW) as window:
            while piece := await anext(body, b""):
                if take(piece):
                    return
                if sink is not None:
                    left = window.deadline - trio.current_time()
                    window.deadline = inf  # what the disk takes is not the server's time
                    await sink(piece)
                    window.deadline = trio.current_time() + left
                taken += 1
                if taken % CHUNKS_PER_STEP == 0:
                    await trio.lowlevel.checkpoint()
                received += len(piece)
                if received >= MIN_BYTES_PER_SECOND * RATE_WINDOW:
                    received = 0
                    window.deadline = trio.current_time() + RATE_WINDOW
            return
        raise TimedOut(f"only {received} bytes in {RATE_WINDOW:g} s")


def _forget_variables(error: BaseException) -> None:
    """Clear the frames that ended by ``error``, or by what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def _declared_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length", "").strip()
    # Both clients use h11, which accepts at most 20 digits.
    return int(text) if text.isascii() and text.isdigit() else None

"""One guarded GET or HEAD: follows redirects itself, applies limits, and hashes the body as it
arrives."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from io import BytesIO
from traceback import clear_frames
from types import MappingProxyType

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
        async with _opened(client, method, origin, target, more) as reply:
            if reply.status not in REDIRECTS:
                answer = await _read(reply, method, rules, on_received)
                return replace(answer, is_of_another_host=origin != asked)
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


@asynccontextmanager
async def _opened(
    client: HttpClient, method: Method, origin: Origin, target: str, more: Mapping[str, str]
) -> AsyncIterator[StreamingResponse]:
    """The head of the reply. A failure before its first byte is retried once (RFC 9110, 9.2.2)."""
    headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **more}
    ask = partial(client.request, method, origin, target, headers)
    async with AsyncExitStack() as stack:
        try:
            reply = await stack.enter_async_context(ask())
        except (ConnectFailed, NoAnswer):
            reply = await stack.enter_async_context(ask())
        yield reply


def is_plain(content_encoding: str) -> bool:
    """Whether a body with this ``Content-Encoding`` is to be read as it is. Pure, total."""
    return all(each.strip().lower() in PLAIN for each in content_encoding.split(","))


async def _read(
    reply: StreamingResponse,
    method: Method,
    rules: RequestRules,
    on_received: Callable[[int], object],
) -> Response:
    max_bytes, sink = rules.max_bytes, rules.sink
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
    # Its ``getvalue`` copies nothing, unlike ``bytes(bytearray)``: 4 ms for 10 MB.
    received = BytesIO()
    size = 0
    digest = hashlib.sha256()
    try:
        async with aclosing(_at_least(MIN_BYTES_PER_SECOND, reply.body)) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                on_received(len(chunk))
                if size > max_bytes:
                    raise TooLarge(f"more than {max_bytes} bytes")
                if sink is None:
                    received.write(chunk)
                else:
                    await sink(chunk)
                digest.update(chunk)
        if length is not None and size != length:
            raise BadAnswer(f"only {size} of {length} bytes arrived")
    except BaseException as error:
        # The traceback has this frame and those that read, and lives as long as the error.
        received.close()
        chunk = b""
        _forget_variables(error)
        raise
    return Response(reply.status, reply.headers, received.getvalue(), digest.digest())


async def first_bytes(body: AsyncGenerator[bytes, None], limit: int) -> bytes:
    """At most the first ``limit`` bytes of a body.

    Raises:
        BadAnswer: the connection broke before them.
        TimedOut: they arrived more slowly than ``MIN_BYTES_PER_SECOND``.
    """
    found = bytearray()
    async with aclosing(_at_least(MIN_BYTES_PER_SECOND, body)) as chunks:
        async for chunk in chunks:
            found += chunk
            if len(found) >= limit:
                break
    return bytes(found[:limit])


async def _at_least(
    rate: float, chunks: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """The chunks, as long as each window of ``RATE_WINDOW`` seconds has ``rate`` bytes a second.

    Raises:
        TimedOut: a window had less.
    """
    received = taken = 0
    deadline = trio.current_time() + RATE_WINDOW
    async with aclosing(chunks):
        while True:
            with trio.move_on_at(deadline) as scope:
                chunk = await anext(chunks, None)
            if scope.cancelled_caught:
                raise TimedOut(f"only {received} bytes in {RATE_WINDOW:g} s")
            if chunk is None:
                return
            yield chunk
            taken += 1
            if taken % CHUNKS_PER_STEP == 0:
                await trio.lowlevel.checkpoint()
            received += len(chunk)
            if received >= rate * RATE_WINDOW:
                received = 0
                deadline = trio.current_time() + RATE_WINDOW


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

"""How servers misbehave: each plays one conversation wrongly, over an honest response."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import trio

from tests.fakes.network import Conversation, Fault, Response, honest

CHUNK = 16 * 1024


async def close(conversation: Conversation) -> None:
    """Ends without a byte."""


async def reset(conversation: Conversation) -> None:
    """Resets without a byte."""
    conversation.reset()


async def hang(conversation: Conversation) -> None:
    """Never answers."""
    await trio.sleep_forever()


async def reset_in_head(conversation: Conversation) -> None:
    await conversation.send(conversation.response.head()[:30])
    conversation.reset()


async def close_in_head(conversation: Conversation) -> None:
    await conversation.send(conversation.response.head()[:30])


async def hang_in_head(conversation: Conversation) -> None:
    await conversation.send(conversation.response.head()[:30])
    await trio.sleep_forever()


async def reset_after_head(conversation: Conversation) -> None:
    await conversation.send(conversation.response.head())
    conversation.reset()


async def reset_in_body(conversation: Conversation) -> None:
    await conversation.send(_all_but_the_last_byte(conversation))
    conversation.reset()


async def hang_after_head(conversation: Conversation) -> None:
    await conversation.send(conversation.response.head())
    await trio.sleep_forever()


async def hang_in_body(conversation: Conversation) -> None:
    await conversation.send(_all_but_the_last_byte(conversation))
    await trio.sleep_forever()


async def truncated(conversation: Conversation) -> None:
    """Closes before the announced length."""
    await conversation.send(_all_but_the_last_byte(conversation))


async def chunked(conversation: Conversation) -> None:
    """No fault: an honest answer without a length."""
    conversation.keep_alive = True
    await conversation.send(_chunked(conversation.response) + b"0\r\n\r\n")


async def chunked_without_end(conversation: Conversation) -> None:
    await conversation.send(_chunked(conversation.response))


async def bad_chunk_size(conversation: Conversation) -> None:
    head = conversation.response.head(("Transfer-Encoding", "chunked"), length=False)
    await conversation.send(head + b"zz\r\n" + conversation.response.body + b"\r\n0\r\n\r\n")


async def until_close(conversation: Conversation) -> None:
    """No fault: an honest answer whose end is the connection's."""
    head = conversation.response.head(("Connection", "close"), length=False)
    await conversation.send(head + conversation.response.body)


async def until_close_unsaid(conversation: Conversation) -> None:
    """The same from a server that leaves ``Connection: close`` out (RFC 9112, section 9.6)."""
    await conversation.send(conversation.response.head(length=False) + conversation.response.body)


async def http_1_0(conversation: Conversation) -> None:
    """No fault: an old server."""
    data = conversation.response.encoded()
    await conversation.send(data.replace(b"HTTP/1.1", b"HTTP/1.0", 1))


async def in_single_bytes(conversation: Conversation) -> None:
    """No fault: every byte of head and body on its own."""
    conversation.keep_alive = True
    for byte in conversation.response.encoded():
        await conversation.send(bytes([byte]))


async def continues_first(conversation: Conversation) -> None:
    """No fault: an interim answer comes before the final one (RFC 9110, section 15.2)."""
    conversation.keep_alive = True
    await conversation.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + conversation.response.encoded())


async def informational_forever(conversation: Conversation) -> None:
    while True:
        await conversation.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)


async def head_in_single_bytes(conversation: Conversation) -> None:
    await conversation.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        await conversation.send(b"a")


async def tiny_chunks(conversation: Conversation) -> None:
    await conversation.send(
        conversation.response.head(("Transfer-Encoding", "chunked"), length=False)
    )
    while True:
        await conversation.send(b"1\r\nx\r\n" * 1000)


async def tiny_reads(conversation: Conversation) -> None:
    """A body that would be long enough to be kept, a byte at a time."""
    size = 1024 * 1024
    await conversation.send(conversation.response.head(("Content-Length", str(size)), length=False))
    for _ in range(size):
        await conversation.send(b"x")


async def chunk_extensions(conversation: Conversation) -> None:
    """Long chunk extensions (RFC 9112, section 7.1.1) around a body of hardly any bytes."""
    await conversation.send(
        conversation.response.head(("Transfer-Encoding", "chunked"), length=False)
    )
    while True:
        await conversation.send(b"1;%s\r\nx\r\n" % (b"a" * 1000))


async def trailers(conversation: Conversation) -> None:
    """Tiny trailer fields (RFC 9112, section 7.1.2) after an honest body."""
    await conversation.send(_chunked(conversation.response) + b"0\r\n")
    while True:
        await conversation.send(b"a:\r\n" * 1000)


async def endless_body(conversation: Conversation) -> None:
    head = conversation.response.head(("Transfer-Encoding", "chunked"), length=False)
    await conversation.send(head)
    while True:
        await conversation.send(b"%x\r\n%s\r\n" % (CHUNK, bytes(CHUNK)))


async def endless_headers(conversation: Conversation) -> None:
    await conversation.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await conversation.send(b"X-More: and more of it\r\n" * 100)


async def endless_header(conversation: Conversation) -> None:
    """One header line that never ends."""
    await conversation.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        await conversation.send(b"a" * CHUNK)


async def endless_status_line(conversation: Conversation) -> None:
    await conversation.send(b"HTTP/1.1 200 ")
    while True:
        await conversation.send(b"O" * CHUNK)


async def not_http(conversation: Conversation) -> None:
    await conversation.send(b"SSH-2.0-OpenSSH_9.2p1\r\n")


async def http_0_9(conversation: Conversation) -> None:
    """A body without a head."""
    await conversation.send(conversation.response.body)


async def garbage(conversation: Conversation) -> None:
    await conversation.send(bytes(range(256)) * 4)


async def only_newlines(conversation: Conversation) -> None:
    await conversation.send(b"\r\n" * 100)


async def gzipped(conversation: Conversation) -> None:
    await conversation.send(_gzipped(conversation.response).encoded())


def trickle(bytes_per_second: float, *, at_once: int = 1) -> Fault:
    """The head at once, then the body ``at_once`` bytes at a time."""

    async def play(conversation: Conversation) -> None:
        await conversation.send(conversation.response.head())
        body = conversation.response.body
        for start in range(0, len(body), at_once):
            await trio.sleep(at_once / bytes_per_second)
            await conversation.send(body[start : start + at_once])

    return _named(f"trickle {bytes_per_second:g}", play)


def trickle_head(bytes_per_second: float) -> Fault:
    """Head and body, a byte at a time."""

    async def play(conversation: Conversation) -> None:
        for byte in conversation.response.encoded():
            await trio.sleep(1 / bytes_per_second)
            await conversation.send(bytes([byte]))

    return _named(f"trickle head {bytes_per_second:g}", play)


def pause(seconds: float) -> Fault:
    """No fault: stops in the middle of the body for a while."""

    async def play(conversation: Conversation) -> None:
        data = conversation.response.encoded()
        await conversation.send(data[:-1])
        await trio.sleep(seconds)
        await conversation.send(data[-1:])

    return _named(f"pause {seconds:g}", play)


def answers(
    status: int, body: bytes = b"", *headers: tuple[str, str], then: Fault = honest
) -> Fault:
    """Another response, played by ``then``."""

    async def play(conversation: Conversation) -> None:
        conversation.response = Response(status, body, headers)
        await then(conversation)

    return _named(f"answers {status}", play)


def redirects(location: str, status: int = 302) -> Fault:
    return answers(status, b"", ("Location", location))


def sends(data: bytes) -> Fault:
    """These bytes, whatever was asked."""

    async def play(conversation: Conversation) -> None:
        await conversation.send(data)

    return _named("sends", play)


def with_header(name: str, value: str, then: Fault = honest) -> Fault:
    """The honest response with one more header, played by ``then``."""

    async def play(conversation: Conversation) -> None:
        response = conversation.response
        conversation.response = replace(response, headers=(*response.headers, (name, value)))
        await then(conversation)

    return _named(f"with {name}", play)


def with_body(change: Callable[[bytes], bytes]) -> Fault:
    """The honest response with other bytes, and their length."""

    async def play(conversation: Conversation) -> None:
        response = conversation.response
        conversation.response = replace(response, body=change(response.body))
        await honest(conversation)

    return _named("with another body", play)


def with_length(value: str) -> Fault:
    """The honest response under another ``Content-Length``."""

    async def play(conversation: Conversation) -> None:
        response = conversation.response
        await conversation.send(response.head(("Content-Length", value), length=False))
        await conversation.send(response.body)

    return _named(f"with length {value}", play)


def gated(gate: trio.Event, then: Fault = honest, *, seen: trio.Event | None = None) -> Fault:
    """Waits for ``gate`` before it answers.

    Args:
        seen: set when a request is there.
    """

    async def play(conversation: Conversation) -> None:
        if seen is not None:
            seen.set()
        await gate.wait()
        await then(conversation)

    return _named("gated", play)


def _named(name: str, play: Callable[[Conversation], Coroutine[Any, Any, None]]) -> Fault:
    """``play`` under a name that test reports can show."""
    play.__name__ = name
    return play


def _all_but_the_last_byte(conversation: Conversation) -> bytes:
    return conversation.response.encoded()[:-1]


def _chunked(response: Response) -> bytes:
    head = response.head(("Transfer-Encoding", "chunked"), length=False)
    return head + b"%x\r\n%s\r\n" % (len(response.body), response.body)


def _gzipped(response: Response) -> Response:
    headers = (*response.headers, ("Content-Encoding", "gzip"))
    return replace(response, body=gzip.compress(response.body), headers=headers)

"""What servers do wrong, and what each of it must come out as.

A table, so that a new way to misbehave is one line here and a test over every client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from proxy.egress.errors import (
    BadAnswer,
    ConnectFailed,
    EgressError,
    Forbidden,
    NoAnswer,
    TimedOut,
    TooLarge,
)
from proxy.errors import (
    BlobNotFound,
    CidMismatch,
    FetchFailed,
    ForbiddenDestination,
    ImageProxyError,
    ImageTooLarge,
    RateLimited,
    UpstreamTimeout,
)
from tests.fakes import faults
from tests.fakes.network import Conversation, Fault, Site

_OF_EGRESS: dict[type[EgressError], type[ImageProxyError]] = {
    BadAnswer: FetchFailed,
    NoAnswer: FetchFailed,
    ConnectFailed: FetchFailed,
    Forbidden: ForbiddenDestination,
    TimedOut: UpstreamTimeout,
    TooLarge: ImageTooLarge,
}


@dataclass(frozen=True)
class Misbehaviour:
    """One way to misbehave, for as long as it is asked.

    Attributes:
        egress: how the GET fails; None: it brings an answer, which is for the fetch to judge.
        error: how the fetch of a blob fails; None: it does not.
        apply: makes a site misbehave so.
        beyond_asks: asks does not understand this answer, and takes it for a bad one.
    """

    id: str
    egress: type[EgressError] | None
    error: type[ImageProxyError] | None
    apply: Callable[[Site], None]
    beyond_asks: bool = False

    def over(self, client: str) -> Misbehaviour:
        """The expectations over ``client``."""
        if client == "asks" and self.beyond_asks:
            return replace(self, egress=BadAnswer, error=FetchFailed)
        return self

    def __str__(self) -> str:
        return self.id


def heal(site: Site) -> None:
    """Make ``site`` behave again."""
    fresh = Site(site.host)
    site.fault = fresh.fault
    site.refuses = fresh.refuses
    site.answers_connections = fresh.answers_connections
    site.has_certificate = fresh.has_certificate


def _fails(id: str, egress: type[EgressError], fault: Fault) -> Misbehaviour:
    return Misbehaviour(id, egress, _OF_EGRESS[egress], lambda site: setattr(site, "fault", fault))


def _brings(id: str, error: type[ImageProxyError] | None, fault: Fault) -> Misbehaviour:
    return Misbehaviour(id, None, error, lambda site: setattr(site, "fault", fault))


def _site(id: str, egress: type[EgressError], attribute: str, value: object) -> Misbehaviour:
    return Misbehaviour(
        id, egress, _OF_EGRESS[egress], lambda site: setattr(site, attribute, value)
    )


async def _slow_interim_answers(conversation: Conversation) -> None:
    while True:
        await conversation.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await trio.sleep(0.5)


def _beyond_asks(misbehaviour: Misbehaviour) -> Misbehaviour:
    return replace(misbehaviour, beyond_asks=True)


def _head(line: str, *headers: str) -> Fault:
    return faults.sends("\r\n".join((line, *headers, "", "")).encode("latin-1"))


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


_OK = "HTTP/1.1 200 OK"

BEFORE_THE_HEAD = (
    _site("connection refused", ConnectFailed, "refuses", -1),
    _site("connection neither accepted nor refused", TimedOut, "answers_connections", False),
    _site("TLS fails", ConnectFailed, "has_certificate", False),
    _fails("closes at once", NoAnswer, faults.close),
    _fails("resets at once", NoAnswer, faults.reset),
    _fails("never answers", TimedOut, faults.hang),
)

IN_THE_HEAD = (
    _fails("closes in the head", BadAnswer, faults.close_in_head),
    _fails("resets in the head", BadAnswer, faults.reset_in_head),
    _fails("hangs in the head", TimedOut, faults.hang_in_head),
    _fails("trickles the head", TimedOut, faults.trickle_head(2)),
    _fails("headers without end", BadAnswer, faults.endless_headers),
    _fails("one header without end", BadAnswer, faults.endless_header),
    _fails("status line without end", BadAnswer, faults.endless_status_line),
    _fails("interim answers without end", BadAnswer, faults.informational_forever),
    _fails("a slow stream of interim answers", BadAnswer, _slow_interim_answers),
    _fails("head in single bytes without end", BadAnswer, faults.head_in_single_bytes),
    _fails("another protocol", BadAnswer, faults.not_http),
    _fails("a body without a head", BadAnswer, faults.http_0_9),
    _fails("random bytes", BadAnswer, faults.garbage),
    _fails("only newlines", BadAnswer, faults.only_newlines),
    _fails("HTTP/3", BadAnswer, _head("HTTP/3 200 OK", "Content-Length: 0")),
    _fails("ICY", BadAnswer, _head("ICY 200 OK", "Content-Length: 0")),
    _fails("status of two digits", BadAnswer, _head("HTTP/1.1 20 OK", "Content-Length: 0")),
    _fails("status of four digits", BadAnswer, _head("HTTP/1.1 2000 OK", "Content-Length: 0")),
    _fails("header name with a space", BadAnswer, _head(_OK, "Bad Name: 1", "Content-Length: 0")),
    _fails("header without a name", BadAnswer, _head(_OK, ": 1", "Content-Length: 0")),
    _fails("header without a colon", BadAnswer, _head(_OK, "nonsense", "Content-Length: 0")),
    _fails("header with a NUL", BadAnswer, _head(_OK, "X: a\0b", "Content-Length: 0")),
    _fails("negative length", BadAnswer, faults.with_length("-1")),
    _fails("length that is no number", BadAnswer, faults.with_length("many")),
    _fails("two lengths", BadAnswer, _head(_OK, "Content-Length: 1", "Content-Length: 2")),
    _fails("unknown transfer coding", BadAnswer, _head(_OK, "Transfer-Encoding: gzip, chunked")),
    _fails("switches protocols", BadAnswer, _head("HTTP/1.1 101 Switching Protocols")),
)

IN_THE_BODY = (
    _fails("resets after the head", BadAnswer, faults.reset_after_head),
    _fails("resets in the body", BadAnswer, faults.reset_in_body),
    _fails("hangs after the head", TimedOut, faults.hang_after_head),
    _fails("hangs in the body", TimedOut, faults.hang_in_body),
    _fails("trickles the body", TimedOut, faults.trickle(2)),
    _fails("ends before its length", BadAnswer, faults.truncated),
    _fails("chunks without an end", BadAnswer, faults.chunked_without_end),
    _fails("chunk size that is no number", BadAnswer, faults.bad_chunk_size),
    _fails("body without end", TooLarge, faults.endless_body),
    _fails("chunks of one byte", BadAnswer, faults.tiny_chunks),
    _fails("a long body in single bytes", BadAnswer, faults.tiny_reads),
    _fails("chunk extensions without end", BadAnswer, faults.chunk_extensions),
    _fails("trailers without end", BadAnswer, faults.trailers),
    _fails("length over the limit", TooLarge, faults.with_length(str(11 * 1024**2))),
    _fails("length of 18 digits", TooLarge, faults.with_length("9" * 18)),
    _fails("length of 20 digits", TooLarge, faults.with_length("9" * 20)),
    _fails("gzip", BadAnswer, faults.gzipped),
    _fails("encoding nobody knows", BadAnswer, faults.with_header("Content-Encoding", "x-own")),
    _fails("two encodings", BadAnswer, faults.with_header("Content-Encoding", "identity, br")),
)

REDIRECTING = (
    _fails("redirect without Location", BadAnswer, faults.answers(302)),
    _fails("redirect to itself", BadAnswer, faults.redirects("/xrpc/again")),
    _fails("redirect to nowhere", Forbidden, faults.redirects("")),
    _fails("redirect to plain http", Forbidden, faults.redirects("http://pds.example/")),
    _fails("redirect to another scheme", Forbidden, faults.redirects("gopher://pds.example/")),
    _fails("redirect with userinfo", Forbidden, faults.redirects("https://a:b@pds.example/")),
    _fails("redirect to loopback", Forbidden, faults.redirects("https://127.0.0.1/")),
    _fails("redirect to metadata", Forbidden, faults.redirects("https://169.254.169.254/")),
    _fails("redirect to a bad port", Forbidden, faults.redirects("https://pds.example:22/")),
    _fails("redirect to no host", ConnectFailed, faults.redirects("https://gone.example/")),
    _fails(
        "redirect to a host the guard refuses",
        Forbidden,
        faults.redirects("https://inside.example/"),
    ),
)

ANSWERING_WRONGLY = (
    _brings("other bytes", CidMismatch, faults.with_body(_flipped)),
    _brings("a byte less", CidMismatch, faults.with_body(_cut)),
    _brings("a byte more", CidMismatch, faults.with_body(lambda data: data + b"\0")),
    _brings("no bytes", CidMismatch, faults.with_body(lambda data: b"")),
    _brings("length that is too small", CidMismatch, faults.with_length("1")),
    _brings(
        "less, ended by the connection's end",
        CidMismatch,
        faults.answers(200, b"less", then=faults.until_close),
    ),
    _brings("status 204", FetchFailed, faults.answers(204)),
    _brings("status 206", FetchFailed, faults.answers(206, b"part")),
    _brings("status 304", FetchFailed, faults.answers(304)),
    _brings("status 401", FetchFailed, faults.answers(401)),
    _brings("status 403", FetchFailed, faults.answers(403)),
    _brings("status 404", BlobNotFound, faults.answers(404)),
    _brings("status 429", RateLimited, faults.answers(429)),
    _brings("status 500", FetchFailed, faults.answers(500, b'{"error":"InternalServerError"}')),
    _brings("status 502", FetchFailed, faults.answers(502, b"<html>")),
    _brings("status 503", FetchFailed, faults.answers(503)),
    _brings("status 999", FetchFailed, faults.answers(999)),
    _brings("400 that is no JSON", FetchFailed, faults.answers(400, b"<html>")),
    _brings("400 with other JSON", FetchFailed, faults.answers(400, b'["BlobNotFound"]')),
    _brings(
        "400 whose error is a list",
        FetchFailed,
        faults.answers(400, b'{"error":["BlobNotFound"],"message":{}}'),
    ),
    _brings("400 without end", FetchFailed, faults.answers(400, then=faults.endless_body)),
)

ODD_BUT_RIGHT = (
    _brings("chunked", None, faults.chunked),
    _brings("ended by the connection's end", None, faults.until_close),
    _beyond_asks(_brings("ended by the connection's end, unsaid", None, faults.until_close_unsaid)),
    _brings("HTTP/1.0", None, faults.http_1_0),
    _brings("byte by byte", None, faults.in_single_bytes),
    _beyond_asks(_brings("an interim answer first", None, faults.continues_first)),
    _brings("a pause in the body", None, faults.pause(4)),
    _brings("identity named", None, faults.with_header("Content-Encoding", "Identity")),
    _beyond_asks(_brings("Latin-1 in a header", None, faults.with_header("X-Name", "Jos\xe9"))),
    _brings("the same header twice", None, faults.with_header("Content-Type", "image/gif")),
    _brings("connection: close", None, faults.with_header("Connection", "close")),
)

MISBEHAVIOURS = (
    *BEFORE_THE_HEAD,
    *IN_THE_HEAD,
    *IN_THE_BODY,
    *REDIRECTING,
    *ANSWERING_WRONGLY,
    *ODD_BUT_RIGHT,
)

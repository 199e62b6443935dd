"""Reads plain requests for images, and writes their answers, for the door of a connection. Pure.

The door answers a request before the server's parser sees it. It reads one complete request that
cannot be read in two ways. Everything else is not refused here: it goes on to the server's parser
unchanged, so that there is one set of rules for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Protocol
from urllib.parse import unquote

from proxy.web.asgi import Scope, header_pairs
from proxy.web.hypercorn_protocols import costly
from proxy.web.responses import METHODS, Headers, HttpResponse, PendingResponse

MAX_PLAIN = 8192
"""Bytes of a request that the door reads. Browsers and CDNs send about one thousand."""

ENCODED = 4096
"""Size of the LRU cache of heads of answers that needed no wait: about 1 KB each."""


@cache
def _request(images: str) -> re.Pattern[bytes]:
    # RFC 9112, sections 3 and 5: one space and CRLF where it says so; no tab and nothing outside
    # ASCII in a value. A line that begins with a space (obs-fold) has no name, and does not match.
    return re.compile(
        rb"(%s) (%s[!-~]*) HTTP/1\.1\r\n((?:[!#$%%&'*+.^_`|~0-9A-Za-z-]+:[ -~]*\r\n)+)\r\n"
        % ("|".join(METHODS).encode(), re.escape(images).encode())
    )


_NOT_PLAIN = frozenset(
    (b"content-length", b"transfer-encoding", b"trailer", b"te", b"upgrade", b"expect")
)
"""Fields that change how a request is read, or what follows it."""


class Door(Protocol):
    """What an application offers that lets a connection answer at its door.

    Attributes:
        images: how the paths of images begin, ``/img/`` unless it is mounted below a path.
    """

    images: str

    def answer(self, scope: Scope) -> HttpResponse | PendingResponse | None:
        """Answer a request, or return what is to be awaited; None: the application must be called.

        Args:
            scope: of ASGI, without what concerns the connection. Its method is one of ``METHODS``.
        """
        ...


def plain_request(data: bytes, images: str) -> Scope | None:
    """Return the ASGI scope of ``data``; None if it is not one plain request for an image.

    Args:
        images: see ``Door.images``.

    ``Connection`` may say ``keep-alive`` (RFC 9112, section 9.3), and nothing else.
    """
    found = _request(images).fullmatch(data) if len(data) <= MAX_PLAIN else None
    if found is None or costly(data) is not None:
        return None
    method, target, lines = found.groups()
    headers: list[tuple[bytes, bytes]] = []
    hosts = 0
    for line in lines[:-2].split(b"\r\n"):
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" ")
        if name == b"host":
            hosts += 1
        elif name in _NOT_PLAIN or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
        headers.append((name, value))
    if hosts != 1:
        return None
    path, _, query = target.partition(b"?")
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method.decode("ascii"),
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "headers": headers,
    }


def start_of_head(answer: HttpResponse) -> bytes:
    """Return the status line and the headers of ``answer``, as the server's writer makes them."""
    return _head(answer.status, answer.headers, len(answer.body))


def kept_start_of_head(answer: HttpResponse) -> bytes:
    """Return the same, and keep it: what needed no wait is asked for again.

    What was made says how long that took. No other answer has that head.
    """
    return _kept_head(answer.status, answer.headers, len(answer.body))


class EndOfHead:
    """The end of every head: the headers that the server adds, the date among them.

    Args:
        headers: returns them.
    """

    def __init__(self, headers: Callable[[], Iterable[tuple[bytes, bytes]]]) -> None:
        self._headers = headers
        self._second = 0
        self._made = b""

    def now(self) -> bytes:
        """Return the lines, and the empty one; made once a second, as the date has no fractions."""
        second = int(time.time())
        if second != self._second:
            self._second, self._made = second, _lines(self._headers()) + b"\r\n"
        return self._made


def _head(status: int, headers: Headers, length: int) -> bytes:
    # The reason is empty, and the space before it is required (RFC 9112, section 4).
    return b"HTTP/1.1 %d \r\n" % status + _lines(header_pairs(status, headers, length))


_kept_head = lru_cache(ENCODED)(_head)


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%s: %s\r\n" % pair for pair in headers)

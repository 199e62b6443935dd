"""Builds HTTP responses: the statuses, headers and bodies of docs/urls.md. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from proxy.errors import ImageProxyError
from proxy.model.formats import Format
from proxy.model.keys import BlobKey, ImageKey
from proxy.service import Blob, CacheState, Image
from proxy.web.caching import Caching
from proxy.web.conditional import none_match

Headers = tuple[tuple[str, str], ...]

PLAIN = "text/plain; charset=utf-8"

SECURITY: Headers = (
    ("Access-Control-Allow-Origin", "*"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; sandbox"),
)

SHARED: Headers = (
    (
        "Access-Control-Expose-Headers",
        "Accept-Ranges, Content-Disposition, Content-Range, ETag, Server-Timing, X-Cache",
    ),
    ("Timing-Allow-Origin", "*"),
)
"""What lets other origins' scripts read an answer: its headers (Fetch, section 3.3.3), and how long
it took (Resource Timing, section 4.5)."""

METHODS = ("GET", "HEAD")

ALLOWED = ", ".join((*METHODS, "OPTIONS"))

RESULTS = 4096
"""Size of the LRU cache of result headers: about 1 KB each."""

RETRY_AFTER = "2"
"""Seconds in which a full fetch channel roughly drains."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One HTTP answer; its ``Content-Length`` is the length of ``body``."""

    status: int
    headers: Headers
    body: bytes = b""


PendingResponse = Callable[[], Awaitable[HttpResponse]]
"""An answer that has to be waited for."""


def image_response(key: ImageKey, image: Image, caching: Caching) -> HttpResponse:
    """200 with a result."""
    headers = _image_headers(key.blob, image.format, image.etag, image.cache, caching)
    if image.timings:
        headers = (*headers, ("Server-Timing", _server_timing(image.timings)))
    return HttpResponse(200, headers, image.data)


@lru_cache(RESULTS)
def _image_headers(
    blob: BlobKey, format_: Format, etag: str, state: CacheState, caching: Caching
) -> Headers:
    return (
        ("Content-Type", format_.content_type),
        *caching.headers(blob),
        ("ETag", etag),
        ("X-Cache", state),
        ("Content-Disposition", f'inline; filename="{blob.cid}.{format_.extension}"'),
        *SECURITY,
        *SHARED,
    )


def blob_response(key: BlobKey, blob: Blob, caching: Caching) -> HttpResponse:
    """200 with a verified original."""
    headers = (
        ("Content-Type", blob.content_type),
        *caching.headers(key),
        ("ETag", blob.etag),
        ("Content-Disposition", f'attachment; filename="{key.cid}"'),
        ("Accept-Ranges", "bytes"),
        *SECURITY,
        *SHARED,
    )
    return HttpResponse(200, headers, blob.data)


@lru_cache(RESULTS)
def not_modified(blob: BlobKey, etag: str, caching: Caching) -> HttpResponse:
    """304, with the headers that RFC 9110, section 15.4.5, requires."""
    return HttpResponse(304, unmodified_headers(etag, caching.headers(blob)))


def unmodified_headers(etag: str, cached: Headers) -> Headers:
    """Return the headers of a 304. ``cached`` is what caches are told."""
    return (*cached, ("ETag", etag), *SECURITY)


def redirect(location: str, blob: BlobKey, *, max_age: float, caching: Caching) -> HttpResponse:
    """302 to a picture of ``blob``; it may lead to another one after ``max_age`` seconds."""
    headers = (
        ("Location", location),
        ("Cache-Control", f"public, max-age={max_age:.0f}"),
        *caching.tags(blob),
        ("Content-Type", PLAIN),
        *SECURITY,
    )
    return HttpResponse(302, headers)


def moved(location: str) -> HttpResponse:
    """308 to where something always is (RFC 9110, section 15.4.9)."""
    answer = plain_response(308, "moved")
    return replace(answer, headers=(("Location", location), *answer.headers))


def json_response(text: str) -> HttpResponse:
    """200 with JSON for this origin's own page."""
    headers = (
        ("Content-Type", "application/json"),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    )
    return HttpResponse(200, headers, text.encode())


def document_response(text: str, if_none_match: str | None) -> HttpResponse:
    """200 with a JSON document, or 304: caches ask before each use (RFC 9111, section 5.2.2.4)."""
    data = text.encode()
    etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
    caching = (("Cache-Control", "no-cache"),)
    if if_none_match is not None and not none_match(if_none_match, etag):
        return HttpResponse(304, unmodified_headers(etag, caching))
    headers = (("Content-Type", "application/json"), *caching, ("ETag", etag), *SECURITY, *SHARED)
    return HttpResponse(200, headers, data)


def varying(answer: HttpResponse) -> HttpResponse:
    """Add ``Vary``: shared caches keep one answer per ``Accept`` (RFC 9110, section 12.5.5)."""
    return replace(answer, headers=(*answer.headers, ("Vary", "Accept")))


def error_response(error: ImageProxyError) -> HttpResponse:
    """Return the response of ``error``, from its row of the error table."""
    headers: Headers = (
        ("Content-Type", PLAIN),
        ("Cache-Control", "public, max-age=60" if error.status == 404 else "no-store"),
        *SECURITY,
        *retry_after(error),
    )
    return HttpResponse(error.status, headers, f"{error.public_message}\n".encode())


def retry_after(error: ImageProxyError) -> Headers:
    """Return what a 503 says about when to ask again; nothing for another status."""
    if error.status != 503:
        return ()
    known = error.retry_after
    return (("Retry-After", str(math.ceil(known)) if known else RETRY_AFTER),)


def method_not_allowed() -> HttpResponse:
    """405 (RFC 9110, section 15.5.6)."""
    answer = plain_response(405, "method not allowed")
    return replace(answer, headers=(*answer.headers, ("Allow", ALLOWED)))


def preflight() -> HttpResponse:
    """204 to OPTIONS (RFC 9110, section 9.3.7), and to a preflight (Fetch, section 3.3.2)."""
    headers = (
        ("Allow", ALLOWED),
        ("Access-Control-Allow-Methods", ALLOWED),
        ("Access-Control-Allow-Headers", "*"),
        ("Access-Control-Max-Age", "86400"),
        *SECURITY,
    )
    return HttpResponse(204, headers)


def range_not_satisfiable(length: int) -> HttpResponse:
    """416 for a body of ``length`` bytes (RFC 9110, section 15.5.17)."""
    answer = plain_response(416, "range not satisfiable")
    return replace(answer, headers=(*answer.headers, ("Content-Range", f"bytes */{length}")))


def plain_response(status: int, text: str) -> HttpResponse:
    """Lines of text that no cache stores."""
    return HttpResponse(
        status,
        (("Content-Type", PLAIN), ("Cache-Control", "no-store"), *SECURITY),
        f"{text}\n".encode(),
    )


def _server_timing(timings: Mapping[str, float]) -> str:
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in timings.items())

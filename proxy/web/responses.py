"""Builds HTTP responses: the statuses, headers and bodies of docs/urls.md. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from proxy.errors import ImageProxyError
from proxy.model.formats import Format
from proxy.model.identifiers import Cid
from proxy.model.keys import BlobKey, ImageKey
from proxy.service import Blob, CacheState, Image

Headers = tuple[tuple[str, str], ...]

PLAIN = "text/plain; charset=utf-8"

IMMUTABLE = "public, max-age=31536000, immutable"

SECURITY: Headers = (
    ("Access-Control-Allow-Origin", "*"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; sandbox"),
)

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


def image_response(key: ImageKey, image: Image) -> HttpResponse:
    """200 with a result."""
    headers = _image_headers(key.blob.cid, image.format, image.etag, image.cache)
    if image.timings:
        headers = (*headers, ("Server-Timing", _server_timing(image.timings)))
    return HttpResponse(200, headers, image.data)


@lru_cache(RESULTS)
def _image_headers(cid: Cid, format_: Format, etag: str, state: CacheState) -> Headers:
    return (
        ("Content-Type", format_.content_type),
        ("Cache-Control", IMMUTABLE),
        ("ETag", etag),
        ("X-Cache", state),
        ("Content-Disposition", f'inline; filename="{cid}.{format_.extension}"'),
        *SECURITY,
    )


def blob_response(key: BlobKey, blob: Blob) -> HttpResponse:
    """200 with a verified original."""
    headers = (
        ("Content-Type", blob.content_type),
        ("Cache-Control", IMMUTABLE),
        ("ETag", blob.etag),
        ("Content-Disposition", f'attachment; filename="{key.cid}"'),
        *SECURITY,
    )
    return HttpResponse(200, headers, blob.data)


def not_modified(etag: str) -> HttpResponse:
    """304, with the headers that RFC 9110, section 15.4.5, requires."""
    return HttpResponse(304, (("Cache-Control", IMMUTABLE), ("ETag", etag), *SECURITY))


def redirect(location: str, *, max_age: float) -> HttpResponse:
    """302 to a picture that may change after ``max_age`` seconds."""
    headers = (
        ("Location", location),
        ("Cache-Control", f"public, max-age={max_age:.0f}"),
        ("Content-Type", PLAIN),
        *SECURITY,
    )
    return HttpResponse(302, headers)


def json_response(text: str) -> HttpResponse:
    """200 with JSON for this origin's own page."""
    headers = (
        ("Content-Type", "application/json"),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    )
    return HttpResponse(200, headers, text.encode())


def varying(answer: HttpResponse) -> HttpResponse:
    """Add ``Vary``: shared caches keep one answer per ``Accept`` (RFC 9110, section 12.5.5)."""
    return replace(answer, headers=(*answer.headers, ("Vary", "Accept")))


def error_response(error: ImageProxyError) -> HttpResponse:
    """Return the response of ``error``, from its row of the error table."""
    headers: Headers = (
        ("Content-Type", PLAIN),
        ("Cache-Control", "public, max-age=60" if error.status == 404 else "no-store"),
        *SECURITY,
    )
    if error.status == 503:
        headers = (*headers, ("Retry-After", RETRY_AFTER))
    return HttpResponse(error.status, headers, f"{error.public_message}\n".encode())


def method_not_allowed(allowed: tuple[str, ...]) -> HttpResponse:
    """405 (RFC 9110, section 15.5.6)."""
    answer = plain_response(405, "method not allowed")
    return replace(answer, headers=(*answer.headers, ("Allow", ", ".join(allowed))))


def plain_response(status: int, text: str) -> HttpResponse:
    """One line of text that no cache stores."""
    return HttpResponse(
        status,
        (("Content-Type", PLAIN), ("Cache-Control", "no-store"), *SECURITY),
        f"{text}\n".encode(),
    )


def _server_timing(timings: Mapping[str, float]) -> str:
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in timings.items())

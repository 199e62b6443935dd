"""The APIs of CDNs: the requests that purge URLs, and the meaning of the answers. Pure.

Cloudflare: https://developers.cloudflare.com/api/resources/cache/methods/purge/
bunny.net: https://docs.bunny.net/reference/purgepublic_indexpost
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode

from pydantic import SecretStr

from proxy.config import Config
from proxy.egress.circuit import retry_after
from proxy.egress.endpoint import Origin

MAX_REASON = 300
"""Characters of a CDN's message that are kept."""


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A POST request.

    Attributes:
        headers: they contain the token, so ``repr`` does not show them.
    """

    target: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """The answer to an ``ApiRequest``.

    Attributes:
        headers: by lower-case name.
        body: the first bytes of the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that purged nothing.

    Attributes:
        reason: a text for the operator, without the token.
        is_refusal: the CDN refused these URLs; it may accept others.
        wait: seconds that the CDN asks to wait; 0: it does not ask.
    """

    reason: str
    is_refusal: bool = False
    wait: float = 0.0


class CdnApi(Protocol):
    """The API of one CDN.

    Attributes:
        origin: the origin of the API.
        batch: the largest number of URLs in one request.
    """

    origin: Origin
    batch: int

    def post(self, urls: Sequence[str]) -> ApiRequest:
        """Return the request that purges ``urls``: at most ``batch`` of them."""
        ...

    def failure(self, reply: ApiResponse, wall_clock: float) -> Failure | None:
        """Return the failure that an answer reports; None: the URLs are purged. Total."""
        ...


class Cloudflare:
    """``POST /client/v4/zones/{zone}/purge_cache``."""

    origin = Origin("https", "api.cloudflare.com", 443)
    batch = 100

    def __init__(self, zone: str, token: SecretStr) -> None:
        self._zone = zone
        self._token = token

    def post(self, urls: Sequence[str]) -> ApiRequest:
        """See ``CdnApi.post``."""
        headers = {
            "Authorization": f"Bearer {self._token.get_secret_value()}",
            "Content-Type": "application/json",
        }
        body = json.dumps({"files": list(urls)}).encode()
        return ApiRequest(f"/client/v4/zones/{self._zone}/purge_cache", headers, body)

    def failure(self, reply: ApiResponse, wall_clock: float) -> Failure | None:
        """See ``CdnApi.failure``. The body of a 200 says whether the purge succeeded."""
        envelope = _object(reply.body)
        if reply.status == 200 and envelope.get("success") is True:
            return None
        return _failure(reply, _errors(envelope), self._token, wall_clock)


class Bunny:
    """``POST /purge?url=``, with one URL in each request."""

    origin = Origin("https", "api.bunny.net", 443)
    batch = 1

    def __init__(self, token: SecretStr) -> None:
        self._token = token

    def post(self, urls: Sequence[str]) -> ApiRequest:
        """See ``CdnApi.post``. The answer comes when the purge is finished."""
        (url,) = urls
        headers = {"AccessKey": self._token.get_secret_value()}
        return ApiRequest(f"/purge?{urlencode({'url': url, 'async': 'false'})}", headers, b"")

    def failure(self, reply: ApiResponse, wall_clock: float) -> Failure | None:
        """See ``CdnApi.failure``."""
        if 200 <= reply.status < 300:
            return None
        return _failure(reply, str(_object(reply.body).get("Message", "")), self._token, wall_clock)


def api_of(config: Config) -> CdnApi | None:
    """Return the API of the configured CDN, or None."""
    match config.cdn.kind:
        case "cloudflare":
            return Cloudflare(config.cdn.zone, config.cdn.token)
        case "bunny":
            return Bunny(config.cdn.token)
        case _:
            return None


def _failure(reply: ApiResponse, message: str, token: SecretStr, wall_clock: float) -> Failure:
    reason = f"status {reply.status}: {message}" if message else f"status {reply.status}"
    # If a CDN repeats the request in its answer, the token must not be stored or logged.
    reason = reason.replace(token.get_secret_value(), "***")
    # Too many requests, a refused token, a failing proxy: any other URL would fail too.
    concerns_all = reply.status in (401, 403, 407, 408, 429) or not 400 <= reply.status < 500
    wait = retry_after(reply.headers.get("retry-after"), wall_clock)
    return Failure(ascii(reason)[1:-1][:MAX_REASON], is_refusal=not concerns_all, wait=wait)


def _object(body: bytes) -> dict[str, object]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _errors(envelope: Mapping[str, object]) -> str:
    """The codes and messages in the body of an answer of Cloudflare."""
    errors = envelope.get("errors")
    return "; ".join(
        f"{error.get('code')} {error.get('message')}"
        for error in (errors if isinstance(errors, list) else ())
        if isinstance(error, dict)
    )

"""The CDNs' APIs: which request purges which URLs, and what an answer means. Pure.

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
"""Characters kept of what a CDN says."""


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A POST.

    Attributes:
        headers: with the token; in no ``repr``.
    """

    target: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """The answer to one.

    Attributes:
        headers: by lower-case name.
        body: its first bytes.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """URLs that were not purged.

    Attributes:
        reason: for the operator; without the token.
        is_refusal: other URLs may well be accepted.
        wait: seconds that the CDN asks to wait; 0: it does not say.
    """

    reason: str
    is_refusal: bool = False
    wait: float = 0.0


class CdnApi(Protocol):
    """What one CDN understands.

    Attributes:
        origin: where it is asked.
        batch: URLs in one request.
    """

    origin: Origin
    batch: int

    def post(self, urls: Sequence[str]) -> ApiRequest:
        """The request that purges ``urls``, at most ``batch``."""
        ...

    def failure(self, reply: ApiResponse, wall_clock: float) -> Failure | None:
        """What an answer means; None: they are purged. Total: any answer will do."""
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
        """See ``CdnApi.failure``. A 200 says in its envelope whether it was one."""
        envelope = _object(reply.body)
        if reply.status == 200 and envelope.get("success") is True:
            return None
        return _failure(reply, _errors(envelope), self._token, wall_clock)


class Bunny:
    """``POST /purge?url=``, a URL at a time."""

    origin = Origin("https", "api.bunny.net", 443)
    batch = 1

    def __init__(self, token: SecretStr) -> None:
        self._token = token

    def post(self, urls: Sequence[str]) -> ApiRequest:
        """See ``CdnApi.post``. Answered when the purge is done, not when it is begun."""
        (url,) = urls
        headers = {"AccessKey": self._token.get_secret_value()}
        return ApiRequest(f"/purge?{urlencode({'url': url, 'async': 'false'})}", headers, b"")

    def failure(self, reply: ApiResponse, wall_clock: float) -> Failure | None:
        """See ``CdnApi.failure``."""
        if 200 <= reply.status < 300:
            return None
        return _failure(reply, str(_object(reply.body).get("Message", "")), self._token, wall_clock)


def api_of(config: Config) -> CdnApi | None:
    """The configured CDN, or None."""
    match config.cdn.kind:
        case "cloudflare":
            return Cloudflare(config.cdn.zone, config.cdn.token)
        case "bunny":
            return Bunny(config.cdn.token)
        case _:
            return None


def _failure(reply: ApiResponse, message: str, token: SecretStr, wall_clock: float) -> Failure:
    reason = f"status {reply.status}: {message}" if message else f"status {reply.status}"
    # A CDN that repeats what it was sent must not have the token kept or logged.
    reason = reason.replace(token.get_secret_value(), "***")
    # Too many requests, a token that is not accepted, a proxy between: that would meet any URL.
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
    """Codes and messages of Cloudflare's envelope."""
    errors = envelope.get("errors")
    return "; ".join(
        f"{error.get('code')} {error.get('message')}"
        for error in (errors if isinstance(errors, list) else ())
        if isinstance(error, dict)
    )

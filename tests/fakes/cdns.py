"""The CDNs' purge APIs, as they are published.

Cloudflare: https://developers.cloudflare.com/api/resources/cache/methods/purge/ and, for limits,
https://developers.cloudflare.com/cache/how-to/purge-cache/
bunny.net: https://docs.bunny.net/reference/purgepublic_indexpost and
https://docs.bunny.net/docs/cdn-api-purge-rate-limits
"""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import urlsplit

import trio

from tests.fakes.network import Request, Response, Site

ZONE = "0123456789abcdef" * 2
TOKEN = "s3cret-t0ken"


class _Bucket:
    """Token bucket: a burst, and so many more a second."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = self._left = burst
        self._rate = rate
        self._at = 0.0

    def take(self) -> float:
        """0, or the seconds until there is one more."""
        now = trio.current_time()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


class FakeCdn(Site):
    """What both have in common.

    Attributes:
        purged: URLs, in order.
        limited: how many requests were refused as too many.
    """

    def __init__(self, host: str, burst: float, rate: float) -> None:
        super().__init__(host)
        self.purged: list[str] = []
        self.limited = 0
        self._bucket = _Bucket(burst, rate)

    def wait(self) -> int:
        """Seconds for ``Retry-After``, or 0."""
        seconds = math.ceil(self._bucket.take())
        self.limited += seconds > 0
        return seconds


class FakeCloudflare(FakeCdn):
    """One zone, of ``hosts``; with a limit far below the published 800 URLs a second, to meet it.

    Attributes:
        refuses_urls: with this in them.
    """

    def __init__(self, *hosts: str) -> None:
        super().__init__("api.cloudflare.com", 25, 5)
        self._hosts = hosts
        self.refuses_urls: str | None = None

    def answer(self, request: Request) -> Response:
        """See ``Site.answer``."""
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _envelope(403, 10000, "Authentication error")
        if request.path != f"/client/v4/zones/{ZONE}/purge_cache" or request.method != "POST":
            return _envelope(404, 7003, f"Could not route to {request.path}")
        if seconds := self.wait():
            limit = _envelope(429, 971, "Please wait and consider throttling your request speed")
            return Response(429, limit.body, (*limit.headers, ("Retry-After", str(seconds))))
        assert request.headers["content-type"] == "application/json"
        files = json.loads(request.body)["files"]
        if not 1 <= len(files) <= 100:
            return _envelope(400, 1094, "You may only purge 100 files at a time")
        for url in files:
            if urlsplit(url).hostname not in self._hosts:
                return _envelope(400, 1107, f"Unable to purge {url}, which is not of this zone")
            if self.refuses_urls and self.refuses_urls in url:
                return _envelope(400, 1107, f"Unable to purge {url}, which is not a valid URL")
        self.purged += files
        return _envelope(200)


class FakeBunny(FakeCdn):
    """An account."""

    def __init__(self) -> None:
        super().__init__("api.bunny.net", 120, 5)

    def answer(self, request: Request) -> Response:
        """See ``Site.answer``."""
        if request.headers.get("accesskey") != TOKEN:
            return Response(401, b'{"Message":"Authorization has been denied for this request."}')
        if request.path != "/purge" or request.method != "POST":
            return Response(404)
        if seconds := self.wait():
            return Response(429, b"", (("Retry-After", str(seconds)),))
        self.purged.append(request.query["url"])
        return Response(200)


def _envelope(status: int, code: int = 0, message: str = "") -> Response:
    value: dict[str, Any] = {
        "success": status == 200,
        "errors": [{"code": code, "message": message}] if code else [],
        "messages": [],
        "result": {"id": ZONE} if status == 200 else None,
    }
    return Response(status, json.dumps(value).encode(), (("Content-Type", "application/json"),))

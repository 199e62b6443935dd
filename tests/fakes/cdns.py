"""The CDNs: what they keep of an origin, and their purge APIs, as they are published.

Cloudflare: https://developers.cloudflare.com/api/resources/cache/methods/purge/ and, for limits,
https://developers.cloudflare.com/cache/how-to/purge-cache/; its cache key has the Origin header:
https://developers.cloudflare.com/cache/how-to/cache-keys/
bunny.net: https://docs.bunny.net/cdn/purge-cache, https://docs.bunny.net/reference/purgepublic_indexpost
and https://docs.bunny.net/docs/cdn-api-purge-rate-limits
CloudFront: https://docs.aws.amazon.com/cloudfront/latest/APIReference/API_CreateInvalidation.html,
https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/InvalidationLimits.html
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

import trio
from pydantic import SecretStr

from proxy.moderation.cdn.sigv4 import Credentials, signed_headers
from tests.fakes.network import Request, Response, Site

ZONE = "0123456789abcdef" * 2
PULL_ZONE = "4711"
DISTRIBUTION = "E2EXAMPLE9Z"
TOKEN = "s3cret-t0ken"
KEY_ID = "AKIDEXAMPLE0000000"
BASE = "https://img.example"

SETTINGS: dict[str, dict[str, Any]] = {
    "cloudflare": {"kind": "cloudflare", "zone": ZONE, "token": TOKEN},
    "bunny": {"kind": "bunny", "zone": PULL_ZONE, "token": TOKEN},
    "cloudfront": {
        "kind": "cloudfront",
        "zone": DISTRIBUTION,
        "token": TOKEN,
        "key_id": KEY_ID,
    },
}
"""The section ``[cdn]`` for each."""


class Reply(Protocol):
    """What an origin answers; ``headers`` by lower-case name."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> dict[str, str]: ...

    @property
    def body(self) -> bytes: ...


Ask = Callable[..., Awaitable[Reply]]
"""Asks the origin: ``ask(target, *headers, method=…)``."""


@dataclass(frozen=True)
class Copy:
    """What a CDN keeps.

    Attributes:
        url: as the client wrote it, with the query.
        asked_with: the values of the request headers that are part of the key.
        tags: in lower case.
        expires: on Trio's clock.
    """

    url: str
    asked_with: tuple[tuple[str, str], ...]
    tags: frozenset[str]
    expires: float
    reply: Reply | None = None


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
    """What the three have in common: a shared cache (RFC 9111), and an API with a limit.

    Attributes:
        tag_field: the header of an answer with its tags.
        key_headers: of a request, part of every key.
        copies: what is kept.
        purged: what purges named, in order.
        limited: how many requests were refused as too many.
        ask: the origin.
    """

    tag_field = "cache-tag"
    key_headers: tuple[str, ...] = ()

    def __init__(self, host: str, burst: float, rate: float) -> None:
        super().__init__(host)
        self.copies: list[Copy] = []
        self.purged: list[str] = []
        self.limited = 0
        self.ask: Ask | None = None
        self._vary: dict[str, tuple[str, ...]] = {}
        self._bucket = _Bucket(burst, rate)

    # A client asks.

    async def get(self, target: str, *headers: tuple[str, str], method: str = "GET") -> Reply:
        """What a client gets of ``BASE`` + ``target``: a copy, or what the origin answers now."""
        url = BASE + target
        sent = {name.lower(): value for name, value in headers}
        now = trio.current_time()
        for copy in self.copies:
            if (copy.url, copy.asked_with) == (url, self._key(url, sent)) and copy.expires > now:
                assert copy.reply is not None
                return copy.reply
        assert self.ask is not None, "no origin"
        # A HEAD becomes a GET at the origin, so that there is something to keep.
        reply = await self.ask(target, *headers, method="GET")
        self.keep(url, reply.headers, sent, reply)
        return reply

    def keep(
        self,
        url: str,
        headers: dict[str, str],
        sent: dict[str, str] | None = None,
        reply: Reply | None = None,
    ) -> None:
        """Keep an answer, if its headers allow it."""
        seconds = _shared_lifetime(headers.get("cache-control", ""))
        if not seconds:
            return
        self._vary[url] = tuple(re.findall(r"[a-z-]+", headers.get("vary", "").lower()))
        tags = frozenset(re.findall(r"[^\s,]+", headers.get(self.tag_field, "").lower()))
        expires = trio.current_time() + seconds
        self.copies.append(Copy(url, self._key(url, sent or {}), tags, expires, reply))

    def _key(self, url: str, sent: dict[str, str]) -> tuple[tuple[str, str], ...]:
        names = (*self.key_headers, *self._vary.get(url, ()))
        return tuple((name, sent.get(name, "")) for name in names)

    # A purge.

    def forget(self, name: str, is_named: Callable[[Copy], bool]) -> None:
        """Remove the copies that a purge of ``name`` names."""
        self.purged.append(name)
        self.copies = [copy for copy in self.copies if not is_named(copy)]

    def forget_tag(self, tag: str) -> None:
        """Remove the copies with a tag; no CDN that says so tells cases apart."""
        self.forget(tag, lambda copy: tag.lower() in copy.tags)

    def lift_limits(self) -> None:
        """Refuse nothing as too much."""
        self._bucket = _Bucket(math.inf, 1)

    def wait(self) -> int:
        """Seconds for ``Retry-After``, or 0."""
        seconds = math.ceil(self._bucket.take())
        self.limited += seconds > 0
        return seconds


def _shared_lifetime(control: str) -> int:
    """Seconds that a shared cache may keep an answer (RFC 9111, section 4.2.1)."""
    if not control or re.search(r"no-store|private", control):
        return 0
    found = re.search(r"s-maxage=(\d+)", control) or re.search(r"max-age=(\d+)", control)
    return int(found[1]) if found else 0


class FakeCloudflare(FakeCdn):
    """One zone of the free plan.

    Attributes:
        refused_name: what is refused, and all that is sent with it.
    """

    key_headers = ("origin",)

    def __init__(self, *hosts: str) -> None:
        super().__init__("api.cloudflare.com", 25, 5 / 60)
        self._urls = _Bucket(800, 800)
        self._hosts = hosts or ("img.example",)
        self.refused_name: str | None = None

    def answer(self, request: Request) -> Response:
        """See ``Site.answer``."""
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _envelope(403, 10000, "Authentication error")
        if request.path != f"/client/v4/zones/{ZONE}/purge_cache" or request.method != "POST":
            return _envelope(404, 7003, f"Could not route to {request.path}")
        assert request.headers["content-type"] == "application/json"
        ((kind, names),) = json.loads(request.body).items()
        if not 1 <= len(names) <= 100:
            return _envelope(400, 1094, "You may only purge 100 files at a time")
        # The limit of URLs is far away.
        if kind == "tags" and (seconds := self.wait()):
            limit = _envelope(429, 971, "Please wait and consider throttling your request speed")
            return Response(429, limit.body, (*limit.headers, ("Retry-After", str(seconds))))
        if self.refused_name and self.refused_name in request.body.decode():
            return _envelope(400, 1107, f"Unable to purge {self.refused_name}")
        for name in names:
            if kind == "tags":
                assert 1 <= len(name) <= 1024
                self.forget_tag(name)
            else:
                assert kind == "files"
                refused = self._purge_file(name)
                if refused is not None:
                    return refused
        return _envelope(200)

    def _purge_file(self, file: Any) -> Response | None:
        url, origin = file, ""
        if isinstance(file, dict):
            url, origin = file["url"], file["headers"]["Origin"]
        if urlsplit(url).hostname not in self._hosts:
            return _envelope(400, 1107, f"Unable to purge {url}, which is not of this zone")
        asked_with = ("origin", origin)
        self.forget(url, lambda copy: copy.url == url and asked_with in copy.asked_with)
        return None


class FakeBunny(FakeCdn):
    """An account with one pull zone, whose cache tells queries apart."""

    tag_field = "cdn-tag"

    def __init__(self) -> None:
        super().__init__("api.bunny.net", 120, 5)

    def answer(self, request: Request) -> Response:
        """See ``Site.answer``."""
        if request.headers.get("accesskey") != TOKEN:
            return Response(401, b'{"Message":"Authorization has been denied for this request."}')
        by_tag = request.path == f"/pullzone/{PULL_ZONE}/purgeCache"
        if not (by_tag or request.path == "/purge") or request.method != "POST":
            return Response(404)
        if seconds := self.wait():
            return Response(429, b"", (("Retry-After", str(seconds)),))
        if by_tag:
            # Without a tag the whole zone would be purged.
            self.forget_tag(json.loads(request.body)["CacheTag"])
            return Response(204)
        url = request.query["url"]
        self.forget(url, lambda copy: copy.url == url)
        return Response(200)


IN_PROGRESS_SECONDS = 20.0
MAX_ITEMS, MAX_WILDCARDS = 3000, 15


class FakeCloudFront(FakeCdn):
    """A distribution that reads tags in ``Cache-Tag``; its key has the query and ``Origin``.

    An invalidation counts as in progress for a while; its copies are gone at once.
    """

    key_headers = ("origin",)

    def __init__(self) -> None:
        super().__init__("cloudfront.amazonaws.com", math.inf, 1)
        self._in_progress: list[tuple[float, int, int]] = []
        self._references: set[str] = set()
        self._in_progress_seconds = IN_PROGRESS_SECONDS

    def answer(self, request: Request) -> Response:
        """See ``Site.answer``."""
        if not self._is_signed(request):
            return _aws_error(403, "SignatureDoesNotMatch", "The signature does not match.")
        target = f"/2020-05-31/distribution/{DISTRIBUTION}/invalidation"
        if request.path != target or request.method != "POST":
            return _aws_error(404, "NoSuchDistribution", "The distribution does not exist.")
        text = request.body.decode()
        items = re.findall(r"<Path>([^<]*)</Path>", text)
        (quantity,) = re.findall(r"<Quantity>(\d+)</Quantity>", text)
        (reference,) = re.findall(r"<CallerReference>([^<]+)</CallerReference>", text)
        if int(quantity) != len(items) or not items:
            return _aws_error(400, "InconsistentQuantities", "Quantity and Items do not match.")
        if reference in self._references:
            return Response(201)
        wildcards = sum(item.endswith("*") for item in items)
        if not self._takes(len(items) - wildcards, wildcards):
            self.limited += 1
            return _aws_error(
                400, "TooManyInvalidationsInProgress", "Your request exceeds a limit."
            )
        self._references.add(reference)
        for item in items:
            self._invalidate(item)
        return Response(201, b"<Invalidation/>")

    def lift_limits(self) -> None:
        """See ``FakeCdn.lift_limits``."""
        self._in_progress_seconds = 0.0

    def _takes(self, items: int, wildcards: int) -> bool:
        now = trio.current_time()
        self._in_progress = [each for each in self._in_progress if each[0] > now]
        self._in_progress.append((now + self._in_progress_seconds, items, wildcards))
        takes = (
            sum(each[1] for each in self._in_progress) <= MAX_ITEMS
            and sum(each[2] for each in self._in_progress) <= MAX_WILDCARDS
        )
        if not takes:
            self._in_progress.pop()
        return takes

    def _invalidate(self, item: str) -> None:
        if item.startswith("#"):
            self.forget_tag(item[1:])
        elif item.endswith("*"):
            self.forget(item, lambda copy: copy.url.startswith(BASE + item[:-1]))
        else:
            self.forget(item, lambda copy: copy.url == BASE + item)

    def _is_signed(self, request: Request) -> bool:
        """What was sent is what was signed. ``test_sigv4`` has published examples of the rules."""
        stamp = request.headers.get("x-amz-date", "")
        if not re.fullmatch(r"\d{8}T\d{6}Z", stamp):
            return False
        expected = signed_headers(
            Credentials(KEY_ID, SecretStr(TOKEN), "us-east-1", "cloudfront"),
            self.host,
            request.target,
            {"Content-Type": request.headers.get("content-type", "")},
            request.body,
            _epoch(stamp),
        )
        return request.headers.get("authorization") == expected["Authorization"]


def _epoch(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


CDNS: dict[str, Callable[[], FakeCdn]] = {
    "cloudflare": FakeCloudflare,
    "bunny": FakeBunny,
    "cloudfront": FakeCloudFront,
}


def _envelope(status: int, code: int = 0, message: str = "") -> Response:
    value: dict[str, Any] = {
        "success": status == 200,
        "errors": [{"code": code, "message": message}] if code else [],
        "messages": [],
        "result": {"id": ZONE} if status == 200 else None,
    }
    return Response(status, json.dumps(value).encode(), (("Content-Type", "application/json"),))


def _aws_error(status: int, code: str, message: str) -> Response:
    body = (
        '<?xml version="1.0"?><ErrorResponse xmlns="http://cloudfront.amazonaws.com/doc/2020-05-31/">'
        f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
        "<RequestId>0</RequestId></ErrorResponse>"
    )
    return Response(status, body.encode(), (("Content-Type", "text/xml"),))

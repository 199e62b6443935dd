"""Answers requests for images and blobs, independent of the web framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import structlog
import trio

from proxy.errors import Busy, ImageProxyError, ResultTooCostly, ResultTooLarge
from proxy.model.formats import Format
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.preset_table import PresetTable
from proxy.observability.repeats import Repeats
from proxy.service import Service
from proxy.shared.current import Current
from proxy.urls import parse_blob_path, parse_image_path, parse_poster_path
from proxy.web.caching import Caching
from proxy.web.conditional import is_any, none_match
from proxy.web.ranges import Wanted, in_range
from proxy.web.responses import (
    HttpResponse,
    PendingResponse,
    blob_response,
    error_response,
    image_response,
    not_modified,
)
from proxy.web.slow_clients import LARGE, PIECE, TRANSFERS

PARSED = 4096
"""Size of the LRU cache of parsed paths: about 1 KB each, only valid paths."""

LOGGED = 300
"""Characters of a path that are logged."""

USUAL = (400, 404)
"""Errors that every crawler causes: lines at ``info``."""

Timings = Mapping[str, float]

NO_TIMINGS: Timings = {}

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Asked:
    """A request, for its log line and its metrics.

    Attributes:
        began: the start time on Trio's clock.
        preset: None for a blob.
    """

    path: str
    began: float
    preset: str | None = None


class _Grammar:
    """Paths as one table of presets reads them; those of valid requests are remembered."""

    def __init__(self, table: PresetTable) -> None:
        self.table = table
        presets = table.by_name
        self.image_key = lru_cache(PARSED)(partial(parse_image_path, presets))
        self.poster_key = lru_cache(PARSED)(partial(parse_poster_path, presets, table.poster))


class Responder:
    """Answers requests with a service. Never raises, except on cancellation.

    Args:
        presets: an answer is by those that were in force when its request came.
        caching: what caches are told of an answer.

    Attributes:
        service: None if no service runs: starting, ended, or crashed and about to start again.
        draining: this process will end.
    """

    def __init__(self, presets: Current[PresetTable], caching: Caching) -> None:
        self._caching = caching
        self._failures = Repeats()
        self._grammar = presets.derived(_Grammar)
        self.service: Service | None = None
        self.draining = False

    def not_ready_because(self) -> str | None:
        """Return why this process should get no traffic now, or None."""
        if self.draining:
            return "draining"
        if self.service is None:
            return "starting"
        if self.service.blocks.problem is not None:
            return f"blocks cannot be read: {self.service.blocks.problem}"
        health = self.service.cache_health
        if health.problem is not None and not health.is_full:
            return f"cache unusable: {health.problem}"
        return None

    def degraded_because(self) -> str | None:
        """Return in one line what a process that serves does without now, or None."""
        if self.service is None:
            return None
        found = []
        health = self.service.cache_health
        if health.is_full:
            found.append(f"the cache takes no more: {health.problem}")
        if self.service.is_without_store:
            found.append("the shared store fails, and is left alone")
        return f"degraded: {'; '.join(found)}" if found else None

    def image(
        self, path: str, if_none_match: str | None, chosen: Format | None = None
    ) -> HttpResponse | PendingResponse:
        """Answer a GET for ``/img/...`` or ``/info/...``, percent-decoded once.

        Immediately if no wait is needed.

        Args:
            chosen: the format to answer in, if ``path`` names none. A result that it cannot hold
                is answered in the source's format.
        """
        grammar = self._grammar()
        return self._picture(path, if_none_match, grammar, grammar.image_key, chosen)

    def poster(self, path: str, if_none_match: str | None) -> HttpResponse | PendingResponse:
        """Answer a GET for ``/vid/...``, like ``image``."""
        grammar = self._grammar()
        return self._picture(path, if_none_match, grammar, grammar.poster_key)

    def blob(
        self, path: str, if_none_match: str | None, asked_range: Wanted | None = None
    ) -> HttpResponse | PendingResponse:
        """Answer a GET for ``/blob/...``, like ``image``, perhaps with a part of it."""
        asked = _Asked(path, trio.current_time())
        try:
            service = self._service()
            key = parse_blob_path(path)
            etag = f'"{key.cid}"'
            if if_none_match is not None and _names(if_none_match, etag):
                return self._unmodified(asked, service, key, etag)
            work = partial(self._get_blob, service, key, asked_range)
            return partial(self._answer_later, asked, work)
        except Exception as failure:
            return self._failed(asked, failure)

    def _picture(
        self,
        path: str,
        if_none_match: str | None,
        grammar: _Grammar,
        parse: Callable[[str], ImageKey],
        chosen: Format | None = None,
    ) -> HttpResponse | PendingResponse:
        asked = _Asked(path, trio.current_time(), preset="none")
        try:
            service = self._service()
            key = parse(path if chosen is None else f"{path}@{chosen.value}")
            asked.preset = key.preset
            if if_none_match is not None and _names(if_none_match, key.etag):
                return self._unmodified(asked, service, key.blob, key.etag)
            image = service.hit(key)
            if image is not None and if_none_match is not None and is_any(if_none_match):
                return self._answered(asked, not_modified(key.blob, key.etag, self._caching))
            if image is None:
                keys = (key,) if chosen is None else (key, parse(path))
                work = partial(self._get_image, service, grammar.table, keys, if_none_match)
                return partial(self._answer_later, asked, work)
            return self._answered(asked, image_response(key, image, self._caching), image.cache)
        except Exception as failure:
            return self._failed(asked, failure)

    def _unmodified(
        self, asked: _Asked, service: Service, blob: BlobKey, etag: str
    ) -> HttpResponse | PendingResponse:
        """Answer 304, if the blob may be served."""
        if service.gate.check(blob):
            return self._answered(asked, not_modified(blob, etag, self._caching))
        return partial(self._answer_later, asked, partial(self._confirm, service, blob, etag))

    async def _answer_later(
        self, asked: _Asked, work: Callable[[], Awaitable[tuple[HttpResponse, str, Timings]]]
    ) -> HttpResponse:
        try:
            # Before anything is fetched or made for an answer that could not be sent.
            self._check_room(PIECE if asked.preset is not None else LARGE + 1)
            return self._answered(asked, *await work())
        except Exception as failure:
            return self._failed(asked, failure)

    def _service(self) -> Service:
        if self.service is None:
            raise Busy("the service is not running")
        return self.service

    def _answered(
        self,
        asked: _Asked,
        answer: HttpResponse,
        state: str = "none",
        timings: Timings = NO_TIMINGS,
    ) -> HttpResponse:
        if answer.body:
            self._check_room(len(answer.body), answer.body)
        ms = self._count(asked, answer, state)
        more = {}
        if timings:
            more["timings"] = {name: round(took * 1000, 1) for name, took in timings.items()}
        log.info(
            "request",
            cache=state,
            bytes=len(answer.body),
            path=asked.path[:LOGGED],
            status=answer.status,
            ms=ms,
            **more,
        )
        return answer

    def _check_room(self, length: int, body: bytes | None = None) -> None:
        """Raise ``Busy`` if slow clients leave no room for an answer."""
        try:
            TRANSFERS.check(length, body)
        except Busy:
            if self.service is not None:
                self.service.metrics.rejected.labels("send").inc()
            raise

    def _failed(self, asked: _Asked, failure: Exception) -> HttpResponse:
        error = as_ours(failure)
        answer = error_response(error)
        self.tell_failure(error, asked.path, self._count(asked, answer, "none"))
        return answer

    def tell_failure(self, error: ImageProxyError, path: str, ms: float) -> None:
        """Log a request that failed.

        What fails at a host, or for want of our own capacity, is one line a minute; at ``debug``
        there are all of them.
        """
        fields: dict[str, object] = {"error": type(error).__name__, "cause": str(error)}
        if error.host:
            fields["host"] = error.host
        fields |= {"path": path[:LOGGED], "status": error.status, "ms": ms}
        if error.status in USUAL:
            # Asked wrongly, or not there: nothing that an operator can mend.
            log.info("request", **fields)
        elif error.status <= 500:
            log.warning("request", **fields)
        else:
            key, now = error.host or type(error).__name__, trio.current_time()
            self._failures.write(key, now, log.warning, log.debug, "request", **fields)

    def _count(self, asked: _Asked, answer: HttpResponse, state: str) -> float:
        """Count an image request in the metrics; return its milliseconds, for the log line."""
        seconds = trio.current_time() - asked.began
        if self.service is not None and asked.preset is not None:
            self.service.metrics.answered(asked.preset, answer.status, state, seconds)
        return round(seconds * 1000, 1)

    async def _get_image(
        self,
        service: Service,
        presets: PresetTable,
        keys: Sequence[ImageKey],
        if_none_match: str | None,
    ) -> tuple[HttpResponse, str, Timings]:
        """Answer with the first of ``keys``; if its format cannot hold the result, with the next.

        Also with the next if the result in the first format costs too much.
        """
        key, *others = keys
        try:
            image = await service.get(key, presets.of(key))
        except (ResultTooLarge, ResultTooCostly):
            if not others:
                raise
            if if_none_match is not None and _names(if_none_match, others[0].etag):
                return await self._confirm(service, key.blob, others[0].etag)
            return await self._get_image(service, presets, others, if_none_match)
        if image.cache == "hit" and if_none_match is not None and is_any(if_none_match):
            return not_modified(key.blob, key.etag, self._caching), "none", NO_TIMINGS
        return image_response(key, image, self._caching), image.cache, image.timings

    async def _get_blob(
        self, service: Service, key: BlobKey, asked_range: Wanted | None
    ) -> tuple[HttpResponse, str, Timings]:
        answer = blob_response(key, await service.get_blob(key), self._caching)
        if asked_range is not None:
            answer = in_range(answer, asked_range)
        return answer, "none", NO_TIMINGS

    async def _confirm(
        self, service: Service, blob: BlobKey, etag: str
    ) -> tuple[HttpResponse, str, Timings]:
        await service.gate.permit(blob)
        return not_modified(blob, etag, self._caching), "none", NO_TIMINGS


def _names(if_none_match: str, etag: str) -> bool:
    """Whether the client has the representation of ``etag``, in the cache or not.

    ``*`` says nothing of that: it matches what exists (RFC 9110, section 13.1.2), and that is what
    the cache has. Originals are not in the cache.
    """
    return not is_any(if_none_match) and not none_match(if_none_match, etag)


def as_ours(failure: Exception) -> ImageProxyError:
    """Return our own errors unchanged; log a defect with its traceback, and make it a 500."""
    if isinstance(failure, ImageProxyError):
        return failure
    log.error("defect", exc_info=failure)
    return ImageProxyError(f"{type(failure).__name__}: {failure}")

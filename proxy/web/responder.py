"""From a request for an image or a blob to its answer: rules without a framework."""

from __future__ import annotations

import structlog
import trio

from proxy.errors import Busy, ImageProxyError
from proxy.service import Service
from proxy.urls import parse_blob_path, parse_image_path
from proxy.web.answers import (
    Answer,
    blob_answer,
    error_answer,
    image_answer,
    not_modified,
)
from proxy.web.conditional import none_match

log = structlog.get_logger(__name__)


class Responder:
    """Answers requests from a service. Never raises, but for cancellation.

    Attributes:
        service: None while there is none: starting, ended, or crashed and about to start again.
        draining: this process will end.
    """

    def __init__(self) -> None:
        self.service: Service | None = None
        self.draining = False

    def not_ready_because(self) -> str | None:
        """Why no traffic should come here now, or None."""
        if self.draining:
            return "draining"
        if self.service is None:
            return "starting"
        if self.service.blocks.problem is not None:
            return f"blocks cannot be read: {self.service.blocks.problem}"
        if self.service.upkeep.problem is not None:
            return f"cache unusable: {self.service.upkeep.problem}"
        return None

    async def image(self, path: str, if_none_match: str | None) -> Answer:
        """Answer a GET for ``/img/...``, percent-decoded once."""
        began = trio.current_time()
        preset = state = "none"
        error: ImageProxyError | None = None
        try:
            service = self._service()
            key = parse_image_path(service.config.presets, path)
            preset = key.preset
            if none_match(if_none_match, key.etag):
                image = await service.get(key)
                state = image.cache
                answer = image_answer(key, image)
            else:
                await service.permission.permit(key.blob)
                answer = not_modified(key.etag)
        except Exception as failure:
            error = _as_ours(failure)
            answer = error_answer(error)
        self._note(path, answer, error, trio.current_time() - began, preset, state)
        return answer

    async def blob(self, path: str, if_none_match: str | None) -> Answer:
        """Answer a GET for ``/blob/...``, percent-decoded once."""
        began = trio.current_time()
        error: ImageProxyError | None = None
        try:
            service = self._service()
            key = parse_blob_path(path)
            if none_match(if_none_match, f'"{key.cid}"'):
                answer = blob_answer(key, await service.get_blob(key))
            else:
                await service.permission.permit(key)
                answer = not_modified(f'"{key.cid}"')
        except Exception as failure:
            error = _as_ours(failure)
            answer = error_answer(error)
        self._note(path, answer, error, trio.current_time() - began)
        return answer

    def _service(self) -> Service:
        if self.service is None:
            raise Busy("the service is not running")
        return self.service

    def _note(
        self,
        path: str,
        answer: Answer,
        error: ImageProxyError | None,
        seconds: float,
        preset: str | None = None,
        state: str = "none",
    ) -> None:
        """One log line a request; metrics for images."""
        if self.service is not None and preset is not None:
            metrics = self.service.metrics
            metrics.requests.labels(preset, str(answer.status), state).inc()
            metrics.request_duration.labels(state).observe(seconds)
        fields = {"path": path[:300], "status": answer.status, "ms": round(seconds * 1000, 1)}
        if error is None:
            log.info("request", cache=state, bytes=len(answer.body), **fields)
        else:
            log.warning("request", error=type(error).__name__, cause=str(error), **fields)


def _as_ours(failure: Exception) -> ImageProxyError:
    """Our own errors as they are; a defect is logged with its traceback and becomes a 500."""
    if isinstance(failure, ImageProxyError):
        return failure
    log.error("defect", exc_info=failure)
    return ImageProxyError(f"{type(failure).__name__}: {failure}")

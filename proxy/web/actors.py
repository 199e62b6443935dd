"""Serves ``/avatar/{actor}``, ``/banner/{actor}``, and the look-ups of the page."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import structlog
import trio
from quart import Blueprint, Response, request

from proxy.config import Config
from proxy.errors import Busy
from proxy.model.keys import BlobKey, Kind, image_key
from proxy.service import Service
from proxy.urls import image_url, parse_actor_path
from proxy.web.asgi import quart_response
from proxy.web.responder import LOGGED, Responder, as_ours
from proxy.web.responses import HttpResponse, error_response, json_response, redirect

log = structlog.get_logger(__name__)


def actor_routes(config: Config, responder: Responder) -> Blueprint:
    """Routes by handle or DID; no routes if the proxy is not enabled."""
    routes = Blueprint("actors", __name__)
    if not config.server.enabled:
        return routes
    base = config.server.cdn_url or config.server.base_url
    configured: dict[Kind, str] = {
        "avatar": config.actors.avatar_preset,
        "banner": config.actors.banner_preset,
    }

    async def answered(work: Callable[[Service], Awaitable[HttpResponse]]) -> Response:
        began = trio.current_time()
        line, more = log.info, {}
        try:
            if responder.service is None:
                raise Busy("the service is not running")
            answer = await work(responder.service)
        except Exception as failure:
            error = as_ours(failure)
            answer = error_response(error)
            line, more = log.warning, {"error": type(error).__name__, "cause": str(error)}
        ms = round((trio.current_time() - began) * 1000, 1)
        line("request", **more, path=request.path[:LOGGED], status=answer.status, ms=ms)
        return quart_response(answer)

    async def redirected(service: Service, path: str) -> HttpResponse:
        actors = service.actors
        key = parse_actor_path(config.presets, path, allow_test=actors.allow_test)
        blob = await actors.picture(key.actor, key.kind, service.gate.permit)
        preset = key.preset or configured[key.kind]
        image = image_key(config.presets, preset, blob.did, blob.cid, key.format)
        return redirect(image_url(image, base), max_age=config.actors.ttl)

    async def counted(kind: Kind, rest: str) -> Response:
        service, outcome = responder.service, "failed"
        try:
            response = await answered(lambda service: redirected(service, f"/{kind}/{rest}"))
            outcome = _OUTCOMES.get(response.status_code, outcome)
            return response
        except trio.Cancelled:
            outcome = "cancelled"
            raise
        finally:
            if service is not None:
                service.metrics.actor_requests.labels(kind, outcome).inc()

    @routes.get("/avatar/<path:rest>")
    async def avatar(rest: str) -> Response:
        return await counted("avatar", rest)

    @routes.get("/banner/<path:rest>")
    async def banner(rest: str) -> Response:
        return await counted("banner", rest)

    @routes.get("/lookup")
    async def look_up() -> Response:
        async def work(service: Service) -> HttpResponse:
            found = await service.actors.look_up(request.args.get("q", ""))
            pictures = [
                {"cid": picture.cid, "name": picture.name, "alt": picture.alt}
                for picture in found.pictures
                if not service.gate.refuses(BlobKey(found.did, picture.cid))
            ]
            answer = {"did": found.did, "profile_of": found.profile_of, "pictures": pictures}
            return json_response(json.dumps(answer))

        return await answered(work)

    return routes


_OUTCOMES = {302: "found", 400: "invalid", 404: "absent", 503: "busy"}
"""Label values of ``imageproxy_actor_requests_total``; any other status is ``failed``."""

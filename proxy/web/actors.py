"""Serves ``/avatar/{actor}``, ``/banner/{actor}``, and the look-ups of the page."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import structlog
import trio
from quart import Blueprint, Response, request
from werkzeug.routing import PathConverter

from proxy.config import Config
from proxy.errors import Busy, ImageProxyError, NoAvatar
from proxy.imaging.drawn import draw
from proxy.model.identifiers import Did, cid_of
from proxy.model.keys import ActorKey, Kind, image_key
from proxy.model.preset_table import PresetTable
from proxy.service import Service
from proxy.shared.current import Current
from proxy.urls import image_url, parse_actor_path
from proxy.web.asgi import quart_response
from proxy.web.caching import caching_of
from proxy.web.conditional import none_match
from proxy.web.found import as_json
from proxy.web.responder import LOGGED, Responder, as_ours
from proxy.web.responses import (
    HttpResponse,
    error_response,
    image_response,
    json_response,
    not_modified,
    redirect,
)
from proxy.web.shareable import private, purges_by_url

log = structlog.get_logger(__name__)


class RestOfPath(PathConverter):
    """All of a path that is left: the framework's own ends at a line feed."""

    part_isolating = False
    regex = r"(?:.|\n)+?"


def actor_routes(config: Config, presets: Current[PresetTable], responder: Responder) -> Blueprint:
    """Routes by handle or DID; no routes if the proxy is not enabled."""
    routes = Blueprint("actors", __name__)
    if not config.server.enabled:
        return routes
    base = config.server.public_base
    caching = caching_of(config)

    async def answered(work: Callable[[Service], Awaitable[HttpResponse]]) -> Response:
        began = trio.current_time()

        def took() -> float:
            return round((trio.current_time() - began) * 1000, 1)

        try:
            if responder.service is None:
                raise Busy("the service is not running")
            answer = await work(responder.service)
        except Exception as failure:
            error = as_ours(failure)
            responder.tell_failure(error, request.path, took())
            return quart_response(error_response(error))
        log.info("request", path=request.path[:LOGGED], status=answer.status, ms=took())
        return quart_response(answer)

    async def redirected(service: Service, path: str) -> HttpResponse:
        actors = service.actors
        table = presets.now
        key = parse_actor_path(table.by_name, path, own_names=actors.own_names)
        try:
            blob = await actors.picture(key.actor, key.kind, service.gate.permit)
        except NoAvatar as missing:
            return await drawn(service, table, key, missing)
        preset = key.preset or (table.avatar if key.kind == "avatar" else table.banner)
        image = image_key(table.by_name, preset, blob.did, blob.cid, key.format)
        found = redirect(image_url(image, base), blob, max_age=config.actors.ttl, caching=caching)
        return private(found) if purges_by_url(config) else found

    async def drawn(
        service: Service, table: PresetTable, key: ActorKey, missing: NoAvatar
    ) -> HttpResponse:
        """Answer with a picture made from the DID, if so configured; caches keep it briefly."""
        settings = config.actors
        if settings.fallback == "none":
            raise missing
        did = await service.actors.find(key.actor)
        letter = await initial(service, did, key.actor) if settings.fallback == "initials" else ""
        source = draw(did, letter)
        preset = key.preset or table.avatar
        image = image_key(table.by_name, preset, did, cid_of(source), key.format)
        is_refused = missing.__cause__ is not None or service.gate.refuses(image.blob)
        if is_refused and not settings.fallback_blocked:
            raise missing
        briefly = replace(caching, browser=round(settings.ttl), shared=None)
        if not none_match(request.headers.get("If-None-Match", ""), image.etag):
            found = not_modified(image.blob, image.etag, briefly)
        else:
            made = await service.get_drawn(image, table.of(image), source)
            found = image_response(image, made, briefly)
        return private(found) if purges_by_url(config) else found

    async def initial(service: Service, did: Did, actor: str) -> str:
        """The first letter of a handle; empty if the account has none, or not in time."""
        if actor != did:
            return actor[0]
        handle = None
        with trio.move_on_after(HANDLE_SECONDS), suppress(ImageProxyError):
            handle = await service.actors.handle_of(did)
        return handle[0] if handle else ""

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

    @routes.get("/avatar/<rest:rest>")
    async def avatar(rest: str) -> Response:
        return await counted("avatar", rest)

    @routes.get("/banner/<rest:rest>")
    async def banner(rest: str) -> Response:
        return await counted("banner", rest)

    @routes.get("/lookup")
    async def look_up() -> Response:
        async def work(service: Service) -> HttpResponse:
            found = await service.actors.look_up(request.args.get("q", ""))
            return json_response(json.dumps(as_json(found, service.gate.refuses)))

        return await answered(work)

    return routes


HANDLE_SECONDS = 2.0
"""How long a picture of an account waits for its handle."""

_OUTCOMES = {200: "drawn", 304: "drawn", 302: "found", 400: "invalid", 404: "absent", 503: "busy"}
"""Label values of ``imageproxy_actor_requests_total``; any other status is ``failed``."""

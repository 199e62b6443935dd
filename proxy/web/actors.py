"""``/avatar/{actor}`` and ``/banner/{actor}``, and what the page looks up."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import structlog
import trio
from quart import Blueprint, Response, request

from proxy.actors import Kind
from proxy.config import Config
from proxy.errors import Busy, ImageProxyError
from proxy.service import Service
from proxy.urls import BlobKey, image_key, image_url
from proxy.web.answers import Answer, error_answer, json_answer, redirect
from proxy.web.responder import Responder
from proxy.web.response import as_response

log = structlog.get_logger(__name__)


def actor_routes(config: Config, responder: Responder) -> Blueprint:
    """Routes by handle or DID; none where the proxy is not enabled."""
    routes = Blueprint("actors", __name__)
    if not config.server.enabled:
        return routes
    base = config.server.cdn_url or config.server.base_url

    async def answered(work: Callable[[Service], Awaitable[Answer]]) -> Response:
        began = trio.current_time()
        cause = ""
        try:
            if responder.service is None:
                raise Busy("the service is not running")
            answer = await work(responder.service)
        except ImageProxyError as error:
            answer = error_answer(error)
            cause = f"{type(error).__name__}: {error}"
        took = round((trio.current_time() - began) * 1000, 1)
        log.info("request", path=request.path[:300], status=answer.status, ms=took, cause=cause)
        return as_response(answer)

    async def redirected(service: Service, actor: str, kind: Kind, preset: str) -> Answer:
        blob = await service.actors.picture(await service.actors.find(actor), kind)
        await service.permission.permit(blob)
        key = image_key(config.presets, preset, blob.did, blob.cid)
        return redirect(image_url(key, base), max_age=config.actors.ttl)

    @routes.get("/avatar/<actor>")
    async def avatar(actor: str) -> Response:
        return await answered(
            lambda service: redirected(service, actor, "avatar", config.actors.avatar_preset)
        )

    @routes.get("/banner/<actor>")
    async def banner(actor: str) -> Response:
        return await answered(
            lambda service: redirected(service, actor, "banner", config.actors.banner_preset)
        )

    @routes.get("/lookup")
    async def look_up() -> Response:
        async def work(service: Service) -> Answer:
            found = await service.actors.look_up(request.args.get("q", ""))
            pictures = [
                {"cid": picture.cid, "name": picture.name, "alt": picture.alt}
                for picture in found.pictures
                if not service.permission.refuses(BlobKey(found.did, picture.cid))
            ]
            return json_answer(json.dumps({"did": found.did, "pictures": pictures}))

        return await answered(work)

    return routes

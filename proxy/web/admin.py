"""The operator's routes: purge, and blocks."""

from __future__ import annotations

import hmac
import json
import sqlite3
from dataclasses import asdict
from typing import Any

import structlog
from quart import Blueprint, Response, abort, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from proxy.cache.base import Selection
from proxy.config import Config
from proxy.errors import InvalidRequest
from proxy.identifiers import parse_cid, parse_did
from proxy.service import Service
from proxy.web.responder import Responder

log = structlog.get_logger(__name__)

Json = dict[str, Any]


def admin_routes(config: Config, responder: Responder) -> Blueprint:
    """Routes below ``/admin``; none where no token is configured."""
    routes = Blueprint("admin", __name__, url_prefix="/admin")
    token = config.server.admin_token.get_secret_value()
    if not token:
        return routes

    @routes.before_request
    async def authorize() -> None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise Unauthorized(www_authenticate=WWWAuthenticate("bearer"))

    @routes.after_request
    async def keep_out_of_caches(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        return response

    def service() -> Service:
        if responder.service is None:
            abort(503)
        return responder.service

    @routes.post("/purge")
    async def purge() -> Json:
        body = await _body()
        removed = (await service().purge(_selection(body))).entries
        log.info("purged", did=body.get("did"), cid=body.get("cid"), removed=removed)
        return {"removed": removed}

    @routes.get("/blocks")
    async def list_blocks() -> Json:
        return {"blocks": [asdict(block) for block in await service().blocks.list()]}

    @routes.post("/blocks")
    async def add_block() -> Json:
        body = await _body()
        reason = body.get("reason", "")
        if not (isinstance(reason, str) and _is_encodable(reason)):
            abort(400)
        removed = await service().block(_selection(body), reason)
        log.info("blocked", did=body.get("did"), cid=body.get("cid"), removed=removed)
        return {"removed": removed}

    @routes.delete("/blocks")
    async def lift_block() -> Json:
        body = await _body()
        lifted = await service().blocks.remove(_selection(body))
        log.info("block lifted", did=body.get("did"), cid=body.get("cid"), lifted=lifted)
        return {"lifted": lifted}

    @routes.errorhandler(sqlite3.Error)
    @routes.errorhandler(OSError)
    async def store_failed(error: Exception) -> tuple[Json, int]:
        log.error("admin request failed", error=str(error))
        return {"error": "the store could not be written"}, 503

    return routes


async def _body() -> Json:
    try:
        body = json.loads(await request.get_data())
    except (ValueError, RecursionError):
        abort(400)
    if not isinstance(body, dict) or not body.keys() <= {"did", "cid", "reason"}:
        abort(400)
    return body


def _is_encodable(text: str) -> bool:
    """Whether it has no lone surrogate, which JSON can escape and nobody can keep."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _selection(body: Json) -> Selection:
    did, cid = body.get("did"), body.get("cid")
    try:
        return Selection(
            None if did is None else parse_did(str(did)),
            None if cid is None else parse_cid(str(cid)),
        )
    except (InvalidRequest, ValueError):
        abort(400)

"""The purge calls of Porxie, so that a service that calls it can call this one instead.

Their names, bodies and authentication are those of its Lexicons since 0.2.0.
"""

from __future__ import annotations

import sqlite3

import orjson
import structlog
from quart import Blueprint, Response, abort, g, request

from proxy.errors import InvalidRequest
from proxy.model.identifiers import parse_cid, parse_did
from proxy.model.selection import Selection
from proxy.moderation.interface import NotInForce
from proxy.web.admin_access import AdminAccess, counted, log_refusal
from proxy.web.responder import Responder

log = structlog.get_logger(__name__)


class BadInput(Exception):
    """The input of a call is invalid; the message says why."""


def porxie_routes(access: AdminAccess, responder: Responder) -> Blueprint:
    """Routes below ``/xrpc/dev.blooym.porxie.cache``; none if no token is configured."""
    routes = Blueprint("porxie", __name__, url_prefix="/xrpc")
    if not access.is_open:
        return routes

    @routes.before_request
    async def authorize() -> None:
        g.by = access.name_of_caller("basic")

    @routes.after_request
    async def count_and_keep_out_of_caches(response: Response) -> Response:
        return counted(response, responder)

    async def purge(selection: Selection) -> dict[str, object]:
        if responder.service is None:
            abort(503)
        await responder.service.moderator.purge(selection, by=g.by)
        return {}

    @routes.post("/dev.blooym.porxie.cache.purgeActor")
    async def purge_actor() -> dict[str, object]:
        return await purge(Selection(did=parse_did(await _input("did"))))

    @routes.post("/dev.blooym.porxie.cache.purgeBlob")
    async def purge_blob() -> dict[str, object]:
        return await purge(Selection(cid=parse_cid(await _input("cid"))))

    @routes.errorhandler(InvalidRequest)
    @routes.errorhandler(BadInput)
    async def bad_input(error: Exception) -> tuple[dict[str, str], int]:
        log_refusal(400, str(error), by=g.by)
        return {"error": "InvalidRequest", "message": str(error)}, 400

    @routes.errorhandler(NotInForce)
    @routes.errorhandler(sqlite3.Error)
    @routes.errorhandler(OSError)
    async def not_done(error: Exception) -> tuple[dict[str, str], int]:
        log.error("admin request failed", error=str(error))
        return {"error": "InternalServerError", "message": "the purge is not finished"}, 503

    return routes


async def _input(name: str) -> str:
    """Return a parameter: in the JSON body by the Lexicon, in the query by Porxie's README."""
    data = await request.get_data()
    if not data and name in request.args:
        return request.args[name]
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BadInput("the body is not JSON") from None
    match body:
        case {**found} if isinstance(found.get(name), str):
            return str(found[name])
    raise BadInput(f"{name} is missing")

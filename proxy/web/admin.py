"""The operator's routes: state, purge, blocks, and what a moderator asks before deciding."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict

import structlog
from quart import Blueprint, Response, abort, g, request

from proxy.moderation.interface import NotInForce
from proxy.moderation.moderator import Moderator
from proxy.observability.process_snapshot import ProcessSnapshot
from proxy.observability.state import state_of
from proxy.service import Service
from proxy.web.admin_access import AdminAccess, counted, log_refusal
from proxy.web.admin_input import BadInput, Json, decision
from proxy.web.admin_look import add_looks
from proxy.web.responder import Responder

log = structlog.get_logger(__name__)


def admin_routes(
    access: AdminAccess,
    responder: Responder,
    snapshots: Callable[[], Awaitable[Sequence[ProcessSnapshot]]],
) -> Blueprint:
    """Routes below ``/admin``; no routes if no token is configured.

    Args:
        snapshots: returns those of all processes of this server.
    """
    routes = Blueprint("admin", __name__, url_prefix="/admin")
    if not access.is_open:
        return routes

    @routes.before_request
    async def authorize() -> None:
        g.by = access.name_of_caller("bearer")

    @routes.after_request
    async def count_and_keep_out_of_caches(response: Response) -> Response:
        return counted(response, responder)

    def service() -> Service:
        if responder.service is None:
            abort(503)
        return responder.service

    def moderator() -> Moderator:
        return service().moderator

    add_looks(routes, service)

    @routes.get("/state")
    async def show_state() -> Json:
        service()
        return asdict(state_of(await snapshots()))

    @routes.post("/purge")
    async def purge() -> Json:
        selection, reason = await decision()
        return {"removed": await moderator().purge(selection, by=g.by, reason=reason)}

    @routes.post("/blocks")
    async def add_block() -> Json:
        selection, reason = await decision()
        return {"removed": await moderator().block(selection, by=g.by, reason=reason)}

    @routes.delete("/blocks")
    async def lift_block() -> Json:
        selection, reason = await decision()
        return {"lifted": await moderator().lift_any(selection, by=g.by, reason=reason)}

    @routes.errorhandler(BadInput)
    async def bad_input(error: BadInput) -> tuple[Json, int]:
        log_refusal(400, str(error), by=g.by)
        return {"error": str(error)}, 400

    @routes.errorhandler(NotInForce)
    async def not_in_force(error: NotInForce) -> tuple[Json, int]:
        log.error("admin request is not in force everywhere", error=str(error))
        return {"error": str(error)}, 503

    @routes.errorhandler(sqlite3.Error)
    @routes.errorhandler(OSError)
    async def store_failed(error: Exception) -> tuple[Json, int]:
        log.error("admin request failed", error=str(error))
        did = "read" if request.method == "GET" else "written"
        return {"error": f"the store could not be {did}"}, 503

    return routes

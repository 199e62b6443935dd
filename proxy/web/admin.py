"""The operator's routes: purge, and blocks."""

from __future__ import annotations

import hmac
import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import structlog
import trio
from quart import Blueprint, Response, abort, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import TooManyRequests, Unauthorized

from proxy.config import Config
from proxy.errors import InvalidRequest
from proxy.model.identifiers import parse_cid, parse_did
from proxy.model.selection import Selection
from proxy.moderation.interface import NotInForce
from proxy.moderation.moderator import Moderator
from proxy.moderation.store import ADMIN, Block, ModerationStore
from proxy.web.failed_tokens import FailedTokens
from proxy.web.responder import LOGGED, Responder

MAX_REASON = 1000
"""Characters of a reason."""

log = structlog.get_logger(__name__)

Json = dict[str, Any]


def admin_routes(config: Config, responder: Responder) -> Blueprint:
    """Routes below ``/admin``; no routes if no token is configured."""
    routes = Blueprint("admin", __name__, url_prefix="/admin")
    tokens = _tokens(config)
    if not tokens:
        return routes
    failed = FailedTokens()

    @routes.before_request
    async def authorize() -> None:
        address, now = _address(), trio.current_time()
        if (seconds := failed.wait(address, now)) is not None:
            raise TooManyRequests(retry_after=seconds)
        header = request.headers.get("Authorization", "")
        scheme, _, given = header.partition(" ")
        name = _name_of(given.strip(), tokens)
        if scheme.lower() != "bearer" or name is None:
            cause = "no bearer token" if scheme.lower() != "bearer" else "a token that is nobody's"
            if header and failed.add(address, now):
                cause += f"; {address} has to wait"
            _log_refusal(401, cause)
            raise Unauthorized(www_authenticate=WWWAuthenticate("bearer"))
        g.by = name

    @routes.after_request
    async def count_and_keep_out_of_caches(response: Response) -> Response:
        if responder.service is not None:
            responder.service.metrics.admin_requests.labels(str(response.status_code)).inc()
        response.headers["Cache-Control"] = "no-store"
        return response

    def moderator() -> Moderator:
        if responder.service is None:
            abort(503)
        return responder.service.moderator

    @routes.post("/purge")
    async def purge() -> Json:
        selection, reason = await _decision()
        return {"removed": await moderator().purge(selection, by=g.by, reason=reason)}

    @routes.get("/blocks")
    async def list_blocks() -> Response:
        store = moderator().store
        # Read the first page before the answer begins: a failure must give an error response.
        first = await trio.to_thread.run_sync(store.blocks_after, 0)
        response = Response(_listing(store, first), content_type="application/json")
        response.timeout = None  # a million blocks take longer than the usual limit
        return response

    @routes.post("/blocks")
    async def add_block() -> Json:
        selection, reason = await _decision()
        return {"removed": await moderator().block(selection, by=g.by, reason=reason)}

    @routes.delete("/blocks")
    async def lift_block() -> Json:
        selection, reason = await _decision()
        return {"lifted": await moderator().lift_any(selection, by=g.by, reason=reason)}

    @routes.errorhandler(BadBody)
    async def bad_body(error: BadBody) -> tuple[Json, int]:
        _log_refusal(400, str(error), by=g.by)
        return {"error": str(error)}, 400

    @routes.errorhandler(NotInForce)
    async def not_in_force(error: NotInForce) -> tuple[Json, int]:
        log.error("admin request is not in force everywhere", error=str(error))
        return {"error": str(error)}, 503

    @routes.errorhandler(sqlite3.Error)
    @routes.errorhandler(OSError)
    async def store_failed(error: Exception) -> tuple[Json, int]:
        log.error("admin request failed", error=str(error))
        return {"error": "the store could not be written"}, 503

    return routes


class BadBody(Exception):
    """The body of a request is invalid; the message says why."""


def _address() -> str:
    """Return the address of the client, or of the reverse proxy that passes its requests on."""
    client = request.scope.get("client")
    return client[0] if client else ""


def _log_refusal(status: int, cause: str, **more: str) -> None:
    """Log a refused request, without the header, which may contain part of a token."""
    log.warning(
        "admin request refused",
        method=request.method,
        path=request.path[:LOGGED],
        status=status,
        cause=cause,
        **more,
    )


def _tokens(config: Config) -> list[tuple[str, bytes]]:
    named = [(ADMIN, config.server.admin_token), *config.server.admin_tokens.items()]
    values = [(name, token.get_secret_value().encode()) for name, token in named]
    return [(name, token) for name, token in values if token]


def _name_of(given: str, tokens: list[tuple[str, bytes]]) -> str | None:
    """Return the name of the token's owner. Every token is compared, in constant time."""
    found = [name for name, token in tokens if hmac.compare_digest(given.encode(), token)]
    return found[0] if found else None


async def _listing(store: ModerationStore, page: list[Block]) -> AsyncIterator[str]:
    """Yield the JSON of all blocks page by page; there may be a million."""
    yield '{"blocks":['
    is_first = True
    while page:
        for block in page:
            yield ("" if is_first else ",") + json.dumps(_as_json(block))
            is_first = False
        page = await trio.to_thread.run_sync(store.blocks_after, page[-1].id)
    yield "]}\n"


def _as_json(block: Block) -> Json:
    return {name: value for name, value in asdict(block).items() if name != "id"}


async def _decision() -> tuple[Selection, str]:
    body = await _body()
    reason = body.get("reason", "")
    if not (isinstance(reason, str) and _is_encodable(reason)):
        raise BadBody("reason must be a text")
    if len(reason) > MAX_REASON:
        raise BadBody(f"reason must have at most {MAX_REASON} characters")
    return _selection(body), reason


async def _body() -> Json:
    try:
        body = json.loads(await request.get_data())
    except (ValueError, RecursionError):
        raise BadBody("the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadBody("the body must be an object")
    if unknown := sorted(body.keys() - {"did", "cid", "reason"}):
        raise BadBody(f"unknown key {unknown[0][:64]!a}; known: did, cid, reason")
    return body


def _is_encodable(text: str) -> bool:
    """Whether ``text`` has no lone surrogate, which JSON can escape but UTF-8 cannot encode."""
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
    except InvalidRequest as error:
        raise BadBody(str(error)) from None
    except ValueError:
        raise BadBody("give did, cid, or both") from None

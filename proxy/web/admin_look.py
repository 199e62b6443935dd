"""The operator's routes that change nothing: blocks, the audit, and what a moderator looks up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict

import structlog
import trio
from quart import Blueprint, Response

from proxy.accounts.profiles import Profiles
from proxy.accounts.record_contents import Picture
from proxy.errors import ImageProxyError, InvalidCid
from proxy.model.identifiers import parse_cid
from proxy.model.references import parse_reference, visible
from proxy.moderation.decision_store import MAX_ID, Block, DecisionStore
from proxy.service import Service
from proxy.web.admin_input import Json, number_in, query, selection_in_query
from proxy.web.responses import retry_after

DECISIONS, MOST_DECISIONS = 50, 500
"""How many decisions a page of the audit has, and may have."""

HANDLE_SECONDS = 3.0
"""How long a look-up by DID waits for the handle, whose domain the account has chosen."""

log = structlog.get_logger(__name__)


def add_looks(routes: Blueprint, service: Callable[[], Service]) -> None:
    """Add the routes to those below ``/admin``.

    Args:
        service: returns the one that runs, or aborts the request.
    """

    @routes.get("/blocks")
    async def list_blocks() -> Response:
        store = service().moderator.store
        # Read the first page before the answer begins: a failure must give an error response.
        first = await trio.to_thread.run_sync(store.blocks_after, 0)
        response = Response(_listing(store, first), content_type="application/json")
        response.timeout = None  # a million blocks take longer than the usual limit
        return response

    @routes.get("/check")
    async def check() -> Json:
        selection = selection_in_query()
        store = service().moderator.store
        blocks = await trio.to_thread.run_sync(store.blocks_of, selection)
        return {"blocked": bool(blocks), "blocks": [_as_json(each) for each in blocks]}

    @routes.get("/audit")
    async def audit() -> Json:
        given = query("limit", "before")
        limit = number_in(given, "limit", DECISIONS, MOST_DECISIONS)
        before = number_in(given, "before", MAX_ID, MAX_ID)
        store = service().moderator.store
        # One more says whether there is another page.
        found = await trio.to_thread.run_sync(store.audit, limit + 1, before)
        page = found[::-1][:limit]
        return {
            "decisions": [asdict(each) for each in page],
            "before": page[-1].id if len(found) > limit else None,
        }

    @routes.get("/lookup")
    async def look_up() -> Json:
        return await _looked_up(service().actors, query("q").get("q", ""))

    @routes.errorhandler(ImageProxyError)
    async def not_found(error: ImageProxyError) -> tuple[Json, int, dict[str, str]]:
        _log(error)
        return {"error": error.public_message}, error.status, dict(retry_after(error))


async def _looked_up(actors: Profiles, text: str) -> Json:
    """Return what a moderator may decide about: blocked pictures and accounts that are gone too.

    Raises:
        ImageProxyError: ``text`` names no account and no picture, or its account is not found.
    """
    try:
        cid = parse_cid(visible(text))
    except InvalidCid:
        reference = parse_reference(text, own_names=actors.own_names)
    else:
        return _as_found(None, None, [Picture(cid, "blob")])
    did = await actors.find(reference.actor)
    pictures, problem = [], None
    try:
        pictures = (await actors.look_up(text)).of_owner
    except ImageProxyError as error:
        _log(error)
        problem = error.public_message
    handle = None if reference.actor == did else reference.actor
    if handle is None:
        with trio.move_on_after(HANDLE_SECONDS):
            handle = await actors.handle_of(did)
    return _as_found(did, handle, pictures, problem)


def _as_found(
    did: str | None, handle: str | None, pictures: list[Picture], problem: str | None = None
) -> Json:
    listed = [asdict(each) for each in pictures]
    return {"did": did, "handle": handle, "pictures": listed, "problem": problem}


def _log(error: ImageProxyError) -> None:
    log.warning("admin look-up failed", error=type(error).__name__, cause=str(error))


async def _listing(store: DecisionStore, page: list[Block]) -> AsyncIterator[str]:
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

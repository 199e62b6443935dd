"""Reads what a request of the operator's routes asks for: a JSON object, or a query."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from quart import request

from proxy.errors import InvalidRequest
from proxy.model.identifiers import parse_cid, parse_did
from proxy.model.selection import Selection

MAX_REASON = 1000
"""Characters of a reason."""

Json = dict[str, Any]


class BadInput(Exception):
    """The body or the query of a request is invalid; the message says why."""


async def decision() -> tuple[Selection, str]:
    """Read what the body of the request under way selects, and the reason.

    Raises:
        BadInput: it is invalid.
    """
    body = await _body()
    reason = body.get("reason", "")
    if not (isinstance(reason, str) and _is_encodable(reason)):
        raise BadInput("reason must be a text")
    if len(reason) > MAX_REASON:
        raise BadInput(f"reason must have at most {MAX_REASON} characters")
    return _selection(body), reason


def selection_in_query() -> Selection:
    """Read what the query of the request under way selects. Raises as ``decision`` does."""
    return _selection(query("did", "cid"))


def query(*known: str) -> Mapping[str, str]:
    """Return the query of the request under way.

    Raises:
        BadInput: it has a key that is not ``known``, or one twice.
    """
    given = request.args
    _refuse_others(given, known)
    if twice := [name for name in given if len(given.getlist(name)) > 1]:
        raise BadInput(f"{twice[0]} is given twice")
    return given


def number_in(values: Mapping[str, str], name: str, default: int, most: int) -> int:
    """Return a number from 1 to ``most``, or ``default`` where it is not given.

    Raises:
        BadInput: it is anything else.
    """
    text = values.get(name, str(default))
    # A text with more digits than the largest number has is not parsed.
    number = int(text) if text.isdecimal() and len(text) <= len(str(most)) else 0
    if not 1 <= number <= most:
        raise BadInput(f"{name} must be a number from 1 to {most}")
    return number


async def _body() -> Json:
    try:
        body = json.loads(await request.get_data())
    except (ValueError, RecursionError):
        raise BadInput("the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadInput("the body must be an object")
    _refuse_others(body, ("did", "cid", "reason"))
    return body


def _refuse_others(given: Collection[str], known: Collection[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise BadInput(f"unknown key {unknown[0][:64]!a}; known: {', '.join(known)}")


def _is_encodable(text: str) -> bool:
    """Whether ``text`` has no lone surrogate, which JSON can escape but UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _selection(given: Mapping[str, Any]) -> Selection:
    did, cid = given.get("did"), given.get("cid")
    try:
        return Selection(
            None if did is None else parse_did(str(did)),
            None if cid is None else parse_cid(str(cid)),
        )
    except InvalidRequest as error:
        raise BadInput(str(error)) from None
    except ValueError:
        raise BadInput("give did, cid, or both") from None

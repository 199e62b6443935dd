"""Events about accounts, from a Jetstream or a relay. Pure, total."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from proxy.errors import InvalidDid
from proxy.model.identifiers import Did, parse_did
from proxy.moderation.feeds.event_frames import MAX_SEQ, BadFrame, Message, seq_of

Kind = Literal["jetstream", "relay"]


@dataclass(frozen=True, slots=True)
class AccountEvent:
    """Something happened to an account or its identity.

    Attributes:
        did: None if it is not a DID that is served here.
        cursor: where the stream goes on after it.
        inactive: why it is not active, such as ``deleted`` ("" where that is not said); None
            where it is active, or the event is about its identity.
    """

    did: Did | None
    cursor: int
    inactive: str | None = None


def of_relay(message: Message) -> AccountEvent | int:
    """The event of a ``com.atproto.sync.subscribeRepos`` message; of any other, its cursor alone.

    Raises:
        BadFrame: a field is missing or of another type.
    """
    cursor = seq_of(message.body)
    if message.type == "#account":
        return _account(message.body, cursor)
    if message.type == "#identity":
        return AccountEvent(_did(message.body), cursor)
    return cursor


def of_jetstream(text: str | bytes) -> AccountEvent | int:
    """The event of a Jetstream message; of a commit, its cursor alone.

    Raises:
        BadFrame: not JSON, or a field is missing or of another type.
    """
    event, cursor = jetstream_event(text)
    kind = event.get("kind")
    if kind == "identity":
        return AccountEvent(_did(event), cursor)
    if kind == "account":
        account = event.get("account")
        if not isinstance(account, dict):
            raise BadFrame("an account event without an account")
        return _account({**account, "did": event.get("did")}, cursor)
    return cursor


def jetstream_event(text: str | bytes) -> tuple[dict[str, Any], int]:
    """A Jetstream message, and the cursor behind it.

    Raises:
        BadFrame: not JSON, or without a time.
    """
    try:
        event: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"not JSON: {error}") from None
    if not isinstance(event, dict):
        raise BadFrame("no object")
    cursor = event.get("time_us")
    if not isinstance(cursor, int) or isinstance(cursor, bool) or not 0 < cursor < MAX_SEQ:
        raise BadFrame("an event without a time")
    return event, cursor


def _account(fields: dict[str, Any], cursor: int) -> AccountEvent:
    # atproto, Account Hosting: `active` decides, also over a status that is not known.
    active = fields.get("active")
    if not isinstance(active, bool):
        raise BadFrame("an account event that does not say whether it is active")
    status = fields.get("status")
    reason = status[:64] if isinstance(status, str) else ""
    return AccountEvent(_did(fields), cursor, None if active else reason)


def _did(fields: dict[str, Any]) -> Did | None:
    did = fields.get("did")
    if not isinstance(did, str):
        raise BadFrame("an event without a DID")
    try:
        return parse_did(did)
    except InvalidDid:
        return None

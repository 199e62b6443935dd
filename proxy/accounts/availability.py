"""Asks a PDS about an account, where its answer about a blob or a record is unclear."""

from __future__ import annotations

from contextlib import suppress

import trio

from proxy.accounts.pds_answers import Verdict, parsed, verdict_of
from proxy.accounts.xrpc import query
from proxy.egress.errors import EgressError
from proxy.egress.gateway import FetchSettings, Gateway
from proxy.egress.guarded_get import Response
from proxy.model.identifiers import Did

MAX_ANSWER = 64 * 1024
"""The limit for an answer, in bytes: a description has the DID document and some NSIDs."""

GONE = frozenset({"takendown", "suspended", "deleted", "deactivated"})
"""States of an inactive account that serves nothing. The others of the Lexicon, ``desynchronized``
and ``throttled``, are a relay's troubles."""


async def settled_verdict(
    gateway: Gateway,
    settings: FetchSettings,
    pds: str,
    did: Did,
    answer: Response,
    *,
    began: float,
) -> Verdict:
    """What an answer other than a 200 says: never ``UNCLEAR``.

    An unclear one counts as absent if the PDS says that it does not serve the account, and has
    failed otherwise.

    Args:
        began: when the PDS was first asked, on Trio's clock. ``fetch.timeout`` is for all
            questions together; without a clear answer by then it has failed.
    """
    verdict = verdict_of(answer.status, answer.body)
    if verdict is not Verdict.UNCLEAR:
        return verdict
    is_gone = False
    with trio.move_on_at(began + settings.timeout):
        is_gone = await _is_gone(gateway, settings, pds, did)
    return Verdict.ABSENT if is_gone else Verdict.FAILED


async def _is_gone(gateway: Gateway, settings: FetchSettings, pds: str, did: Did) -> bool:
    """Whether the PDS says so. Without a clear answer to the first question it is asked another."""
    for method, parameter, judge in (
        ("com.atproto.sync.getRepoStatus", "did", gone_by_status),
        ("com.atproto.repo.describeRepo", "repo", gone_by_description),
    ):
        with suppress(EgressError):
            answer = await query(
                gateway, settings, pds, method, {parameter: did}, max_bytes=MAX_ANSWER
            )
            is_gone = judge(did, answer.status, answer.body)
            if is_gone is not None:
                return is_gone
    return False


def gone_by_status(did: Did, status: int, body: bytes) -> bool | None:
    """Whether an answer of getRepoStatus says that an account is gone; None: it does not say.

    A 404 may be of a server that does not know the method, with or without an error name: only what
    its body says of the account counts. Pure, total.
    """
    if status == 200:
        account = parsed(body) or {}
        active, state = account.get("active"), account.get("status")
        if account.get("did") != did or not isinstance(active, bool):
            return None
        return True if not active and state in GONE else (False if active else None)
    return True if verdict_of(400 if status == 404 else status, body) is Verdict.ABSENT else None


def gone_by_description(did: Did, status: int, body: bytes) -> bool | None:
    """The same for an answer of describeRepo. Pure, total."""
    if status == 200:
        return False if (parsed(body) or {}).get("did") == did else None
    return True if verdict_of(status, body) is Verdict.ABSENT else None

"""The table of what a PDS's answer says about a blob, a record or an account.

Fetches, records and revalidation all read it, so that what is gone for one is gone for all. Which
PDS gives which answer was read in its source; ``docs/moderation-upstream.md`` shows the table.

Pure, total.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

REFUSALS = frozenset(range(400, 500)) - {401, 429}
"""Statuses whose XRPC error name counts. A 401 is about who asks, a 429 about how often."""


class Verdict(StrEnum):
    """What an answer other than a 200 says."""

    ABSENT = "absent"
    NO_RECORD = "no record"
    UNCLEAR = "unclear"
    """It may mean that the account is gone: ``proxy.accounts.availability`` asks."""
    RATE_LIMITED = "rate limited"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Attributes:
        shown: the status, as the document shows it.
        statuses: those that the row is about.
        name: the XRPC error name that the body must have; empty: any body.
        message: how the XRPC message must begin, in lower case; empty: any body.
        sources: what answers so: an implementation with the file, or a rule.
    """

    shown: str
    statuses: Container[int]
    verdict: Verdict
    sources: tuple[str, ...]
    name: str = ""
    message: str = ""

    def matches(self, status: int, error: XrpcError) -> bool:
        """Whether the row is about an answer."""
        return (
            status in self.statuses
            and (not self.name or self.name == error.name)
            and error.message.lower().startswith(self.message)
        )


LEXICON = "Lexicon `com.atproto.sync.getBlob`"
BLUESKY = "Bluesky's PDS, `bluesky-social/atproto: packages/pds/src/api/com/atproto"
RSKY = "rsky, `blacksky-algorithms/rsky: rsky-pds/src/apis/mod.rs`"
TRANQUIL = "tranquil-pds, `Bogay/tranquil-pds: crates/tranquil-pds/src/sync/util.rs`"
COCOON = "cocoon, `haileyok/cocoon: server/handle_sync_get_blob.go`"
MILLIPDS = "millipds, `DavidBuchanan314/millipds: src/millipds/atproto_sync.py`"
PEGASUS = "Pegasus, `futurGH/pegasus: pegasus/lib/api"
CIRRUS = "cirrus, `ascorbic/cirrus: packages/pds/src/xrpc/sync.ts`"

ROWS = (
    Row(
        "4xx, 500",
        REFUSALS | {500},
        Verdict.NO_RECORD,
        (f"{BLUESKY}/repo/getRecord.ts`", RSKY, f"{PEGASUS}/repo/getRecord.ml`, with a 500"),
        name="RecordNotFound",
    ),
    Row(
        "400",
        {400},
        Verdict.NO_RECORD,
        (f"older: {BLUESKY}/repo/getRecord.ts`",),
        message="could not locate record",
    ),
    Row("4xx", REFUSALS, Verdict.ABSENT, (LEXICON, COCOON, RSKY), name="BlobNotFound"),
    Row(
        "4xx",
        REFUSALS,
        Verdict.ABSENT,
        (f"{BLUESKY}/sync/util.ts`", RSKY, TRANQUIL, "arroba, `snarfed/arroba: arroba/server.py`"),
        name="RepoNotFound",
    ),
    Row(
        "4xx",
        REFUSALS,
        Verdict.ABSENT,
        (f"{BLUESKY}/sync/util.ts`", RSKY, TRANQUIL),
        name="RepoTakendown",
    ),
    Row("4xx", REFUSALS, Verdict.ABSENT, (LEXICON,), name="RepoSuspended"),
    Row(
        "4xx",
        REFUSALS,
        Verdict.ABSENT,
        (
            f"{BLUESKY}/sync/util.ts`",
            RSKY,
            TRANQUIL,
            COCOON,
            "arroba, `snarfed/arroba: arroba/server.py`",
        ),
        name="RepoDeactivated",
    ),
    Row(
        "400, 500",
        {400, 500},
        Verdict.ABSENT,
        (f"{BLUESKY}/sync/getBlob.ts`", f"{PEGASUS}/sync/getBlob.ml`, with a 500"),
        message="blob not found",
    ),
    Row(
        "400",
        {400},
        Verdict.ABSENT,
        (f"older: {BLUESKY}/repo/describeRepo.ts`",),
        message="could not find repo",
    ),
    Row(
        "400",
        {400},
        Verdict.ABSENT,
        ("Bridgy Fed, `snarfed/arroba: arroba/xrpc_sync.py`, once without an error name",),
        message="no blob found for cid",
    ),
    Row(
        "404",
        {404},
        Verdict.ABSENT,
        (
            MILLIPDS,
            CIRRUS,
            "tranquil-pds, `Bogay/tranquil-pds: crates/tranquil-pds/src/api/error.rs`",
        ),
    ),
    Row("410", {410}, Verdict.ABSENT, ("RFC 9110, section 15.5.11",)),
    Row("451", {451}, Verdict.ABSENT, ("RFC 7725",)),
    Row(
        "400",
        {400},
        Verdict.UNCLEAR,
        ("cocoon on an unknown account, `haileyok/cocoon: internal/helpers/helpers.go`",),
    ),
    Row("401, 403", {401, 403}, Verdict.UNCLEAR, ("a firewall, or a PDS that closed an account",)),
    Row("429", {429}, Verdict.RATE_LIMITED, ("RFC 6585, section 4",)),
)
"""The first row that matches counts. An answer without a row failed, and says nothing."""


@dataclass(frozen=True, slots=True)
class XrpcError:
    """The error of a body; both are empty if it has none (atproto, HTTP API specification)."""

    name: str = ""
    message: str = ""


def parsed(body: bytes) -> dict[str, Any] | None:
    """The JSON object of a body, or None if it is anything else."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def xrpc_error(body: bytes) -> XrpcError:
    """The XRPC error in a body."""
    value = parsed(body) or {}
    name, message = value.get("error"), value.get("message")
    return XrpcError(
        name if isinstance(name, str) else "", message if isinstance(message, str) else ""
    )


def verdict_of(status: int, body: bytes) -> Verdict:
    """What an answer other than a 200 says, by the table alone."""
    error = xrpc_error(body)
    for row in ROWS:
        if row.matches(status, error):
            return row.verdict
    return Verdict.FAILED

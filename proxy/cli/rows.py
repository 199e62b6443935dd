"""How blocks, decisions and purges are shown: as cells of a table, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from proxy.cli.output import Json

if TYPE_CHECKING:
    from proxy.moderation.cdn.queue import Pending
    from proxy.moderation.decision_store import Block, Decision


def block_document(block: Block) -> Json:
    """The keys of ``GET /admin/blocks``."""
    return {name: value for name, value in asdict(block).items() if name != "id"}


def pending_document(pending: Pending) -> Json:
    return {
        "did": pending.selection.did,
        "cid": pending.selection.cid,
        "queued_at": pending.queued_at,
        "failures": pending.failures,
        "failed_at": pending.failed_at or None,
        "error": pending.error,
    }


def block_cells(block: Block) -> Sequence[str]:
    at = utc(block.created_at)
    return at, block.did or "*", block.cid or "*", block.by, line(block.reason)


def pending_cells(pending: Pending) -> Sequence[str]:
    what = pending.selection
    return utc(pending.queued_at), what.did or "*", what.cid or "*", describe_pending(pending)


def describe_pending(pending: Pending) -> str:
    if not pending.failed_at:
        return "waits"
    how = f"refused {pending.failures} x, last" if pending.failures else "failed"
    return f"{how} at {utc(pending.failed_at)}: {pending.error}"


def decision_cells(each: Decision) -> Sequence[str]:
    removed = "-" if each.removed is None else str(each.removed)
    what = (each.action, each.did or "*", each.cid or "*")
    return utc(each.at), each.by, *what, removed, line(each.reason)


def utc(seconds: float) -> str:
    """Format a time by RFC 3339, section 5.6."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def line(text: str) -> str:
    """Put ``text`` on one line, without characters that control a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)

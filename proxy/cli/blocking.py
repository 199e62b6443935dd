"""``imageproxy blocks``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click

from proxy.cli.common import (
    Context,
    decide,
    in_folder,
    in_words,
    refuse,
    selection_of,
    user,
    with_cache,
    with_config,
)
from proxy.errors import InvalidRequest
from proxy.model.identifiers import parse_cid, parse_did
from proxy.model.selection import Selection
from proxy.moderation.backups import back_up, back_up_today
from proxy.moderation.cdn.queue import CdnQueue, Pending
from proxy.moderation.restore import CannotRestore, restore
from proxy.moderation.store import Block, Decision
from proxy.shared.printable import printable
from proxy.wiring import coordination_of, moderation_database_of, moderation_store_of


@click.group()
def blocks() -> None:
    """Block owners, blobs, and pairs of them."""


@blocks.command("list")
@click.option("--pending-cdn", is_flag=True, help="What the CDN has yet to forget, instead.")
@with_config
def blocks_list(context: Context, pending_cdn: bool) -> None:
    """Print the blocks, oldest first."""
    settings = context.load()
    with in_folder(settings):
        if pending_cdn:
            with closing(CdnQueue(moderation_database_of(settings))) as queue:
                is_made = moderation_store_of(settings).is_made()
                waiting = map(_pending_row, queue.all() if is_made else ())
                _print_rows("queued  owner  blob  state", waiting, "nothing waits")
        else:
            with closing(moderation_store_of(settings)) as store:
                rows = map(_block_row, store.blocks())
                header = "when  owner  blob  who  why"
                _print_rows(header, rows, f"no blocks in {settings.cache.path}")


def _print_rows(header: str, rows: Iterable[str], otherwise: str) -> None:
    """Print rows below a header. Without rows, say so on stderr: stdout carries only rows."""
    is_empty = True
    for row in rows:
        if is_empty:
            click.echo(header)
        is_empty = False
        click.echo(printable(row.rstrip()))
    if is_empty:
        click.echo(otherwise, err=True)


def _block_row(block: Block) -> str:
    what = f"{block.did or '*'}  {block.cid or '*'}"
    return f"{_at(block.created_at)}  {what}  {block.by}  {_line(block.reason)}"


def _pending_row(pending: Pending) -> str:
    return f"{_at(pending.queued_at)}  {_describe(pending)}"


def _describe(pending: Pending) -> str:
    blob = f"{pending.blob.did}  {pending.blob.cid}"
    if not pending.failures:
        return f"{blob}  waits"
    at = _at(pending.failed_at)
    return f"{blob}  failed {pending.failures} x, last at {at}: {pending.error}"


@blocks.command("add")
@click.option("--did")
@click.option("--cid")
@click.option("--reason", default="", help="Of those in the file, for lines without one.")
@click.option(
    "--file",
    "file_list",
    type=click.File("r", encoding="utf-8", errors="replace"),
    help="Many: a line is DID, CID, or DID CID, then # and a reason; - is standard input.",
)
@with_config
def blocks_add(
    context: Context, did: str | None, cid: str | None, reason: str, file_list: TextIO | None
) -> None:
    """Block, and purge the cached entries. On return, every running server applies it."""
    settings = context.load()
    folder = settings.cache.path
    if file_list is None:
        selection = selection_of(did, cid)
        removed, in_force = decide(
            settings, lambda it: it.block(selection, by=user(), reason=reason)
        )
        click.echo(f"blocked in {folder}; {removed} cached entries removed; {in_force}")
        return
    if did is not None or cid is not None:
        raise click.UsageError("give --file, or --did and --cid")
    entries = list(_read_blocks(file_list, reason))
    with click.progressbar(length=len(entries), label="blocking", file=sys.stderr) as bar:
        removed, in_force = decide(
            settings, lambda it: it.block_all(entries, by=user(), on_kept=bar.update)
        )
    click.echo(f"{len(entries)} blocked in {folder}; {removed} cached entries removed; {in_force}")


@blocks.command("remove")
@click.option("--did")
@click.option("--cid")
@click.option("--reason", default="")
@with_config
def blocks_remove(context: Context, did: str | None, cid: str | None, reason: str) -> None:
    """Lift a block, no matter who asked for it."""
    settings, selection = context.load(), selection_of(did, cid)
    lifted, in_force = decide(settings, lambda it: it.lift_any(selection, by=user(), reason=reason))
    what = f"lifted in {settings.cache.path}; {in_force}"
    click.echo(what if lifted else f"there was no such block in {settings.cache.path}")
    sys.exit(0 if lifted else 1)


@blocks.command("audit")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@with_config
def blocks_audit(context: Context, limit: int) -> None:
    """Print the last decisions, oldest first."""
    settings = context.load()
    with in_folder(settings):
        with closing(moderation_store_of(settings)) as store:
            rows = map(_decision_row, store.audit(limit))
        header = "when  who  what  owner  blob  entries removed  why"
        _print_rows(header, rows, f"no decisions in {settings.cache.path}")


@blocks.command("backup")
@click.argument(
    "target", metavar="[FILE]", type=click.Path(dir_okay=False, path_type=Path), required=False
)
@with_config
def blocks_backup(context: Context, target: Path | None) -> None:
    """Copy the blocks and their audit to FILE, while servers run.

    Without FILE, make the copy of today in the cache folder, as servers do each day.
    """
    settings = context.load()
    with in_folder(settings):
        store = moderation_store_of(settings)
        with closing(store):
            count = sum(1 for _ in store.blocks())
        if target is None:
            target = back_up_today(store.path, time.time())
        else:
            back_up(store.path, target)
    click.echo(f"{count} blocks of {settings.cache.path} backed up to {target}")


@blocks.command("restore")
@click.argument(
    "source",
    metavar="[FILE]",
    type=click.Path(dir_okay=False, path_type=Path),
    required=False,
)
@click.option("--empty", is_flag=True, help="Make a store without blocks: nothing was blocked.")
@with_config
def blocks_restore(context: Context, source: Path | None, empty: bool) -> None:
    """Make the store of blocks anew where it is missing or damaged.

    FILE is a copy of it, or the server's log in JSON, whose decisions are repeated. Cached entries
    of what is blocked then are removed.
    """
    if (source is None) is not empty:
        raise click.UsageError("give FILE, or --empty")
    settings = context.load()
    with in_folder(settings, may_be_new=True):
        replicas = coordination_of(settings).replicas()
        with closing(moderation_store_of(settings)) as store:
            try:
                unnamed = restore(store, replicas, source)
            except CannotRestore as error:
                refuse(str(error))
            found = [Selection(each.did, each.cid) for each in store.blocks()]
        removed = with_cache(settings, lambda cache: cache.purge(*found)) if found else 0
    click.echo(
        f"{len(found)} blocks restored in {settings.cache.path}; {removed} cached entries removed;"
        " servers that run take them over within a second"
    )
    if unnamed:
        click.echo(
            f"warning: {unnamed} lines of the log tell of decisions without naming them: repeat"
            " those from their lists (blocks add --file)",
            err=True,
        )
        sys.exit(1)


def _decision_row(each: Decision) -> str:
    removed = "-" if each.removed is None else str(each.removed)
    what = f"{each.action}  {each.did or '*'}  {each.cid or '*'}"
    return f"{_at(each.at)}  {each.by}  {what}  {removed}  {_line(each.reason)}"


def parse_block_line(line: str) -> tuple[Selection, str] | None:
    """Return what a line of a list blocks, and the reason; None for a blank line or a comment.

    Raises:
        InvalidRequest: the line matches none of the forms.
    """
    what, _, reason = line.partition("#")
    match what.split():
        case []:
            return None
        case [did, cid]:
            selection = Selection(parse_did(did), parse_cid(cid))
        case [did] if did.startswith("did:"):
            selection = Selection(did=parse_did(did))
        case [cid]:
            selection = Selection(cid=parse_cid(cid))
        case _:
            raise InvalidRequest(line)
    return selection, reason.strip()


def _read_blocks(lines: Iterable[str], reason: str) -> Iterator[tuple[Selection, str]]:
    for number, line in enumerate(lines, 1):
        try:
            found = parse_block_line(line)
        except InvalidRequest as error:
            mistake = in_words(error, line="DID, CID, or DID CID, then # and a reason")
            raise click.UsageError(f"line {number}: {mistake}") from None
        if found is not None:
            yield found[0], found[1] or reason


def _at(seconds: float) -> str:
    """Format a time by RFC 3339, section 5.6."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _line(text: str) -> str:
    """Put ``text`` on one line, without characters that control a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)

"""``imageproxy blocks``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from proxy.cli.checking import blocks_check
from proxy.cli.common import (
    Context,
    decide,
    in_folder,
    in_force,
    in_words,
    lines_of,
    refuse,
    user,
    with_cache,
    with_config,
)
from proxy.cli.helping import example
from proxy.cli.naming import Name, Named, find, names_of, parse_name, with_names
from proxy.cli.output import Output, with_output
from proxy.cli.rows import (
    block_cells,
    block_document,
    decision_cells,
    pending_cells,
    pending_document,
)
from proxy.errors import InvalidRequest
from proxy.model.identifiers import parse_cid
from proxy.model.references import visible
from proxy.model.selection import Selection
from proxy.shared.printable import printable

if TYPE_CHECKING:
    from proxy.config import Config
    from proxy.moderation.moderator import Moderator


@click.group()
def blocks() -> None:
    """Block owners, blobs, and pairs of them."""


blocks.add_command(blocks_check)


@blocks.command("list", epilog=example("blocks list --json"))
@click.option("--pending-cdn", is_flag=True, help="What the CDN has yet to forget, instead.")
@with_output
@with_config
def blocks_list(context: Context, output: Output, pending_cdn: bool) -> None:
    """Print the blocks, oldest first."""
    from proxy.moderation.cdn.queue import CdnQueue
    from proxy.moderation.configured_store import moderation_database_of, moderation_store_of

    settings = context.load()
    with in_folder(settings):
        if pending_cdn:
            with closing(CdnQueue(moderation_database_of(settings))) as queue:
                is_made = moderation_store_of(settings).is_made()
                output.listing(
                    queue.all() if is_made else (),
                    document=pending_document,
                    header=("queued", "owner", "blob", "state"),
                    cells=pending_cells,
                    otherwise="nothing waits",
                )
        else:
            with closing(moderation_store_of(settings)) as store:
                output.listing(
                    store.blocks(),
                    document=block_document,
                    header=("when", "owner", "blob", "who", "why"),
                    cells=block_cells,
                    otherwise=f"no blocks in {settings.cache.path}",
                )


@blocks.command("add", epilog=example("blocks add alice.example --reason 'court order'"))
@with_names
@click.option(
    "--reason", metavar="TEXT", default="", help="Of those in the file, for lines without one."
)
@click.option(
    "--file",
    "file_list",
    metavar="FILE",
    type=click.File("r", encoding="utf-8", errors="replace"),
    help="Many: a line is ACCOUNT, CID, or ACCOUNT CID, then # and a reason; - is standard input.",
)
@with_output
@with_config
def blocks_add(
    context: Context,
    output: Output,
    names: tuple[str, ...],
    did: str | None,
    cid: str | None,
    reason: str,
    file_list: TextIO | None,
) -> None:
    """Block, and purge the cached entries. On return, every running server applies it.

    WHAT is a DID, a handle or a profile's URL, for all of an account; a CID, for a blob of
    everybody; ACCOUNT/CID or an image's URL, for one blob of one account; or a post's URL, for each
    of its pictures.
    """
    settings = context.load()
    folder = settings.cache.path
    if file_list is None:
        wanted = [(name, reason) for name in names_of(settings, names, did, cid)]
    elif names or did is not None or cid is not None:
        raise click.UsageError("give --file, or what to block")
    else:
        wanted = list(_read_blocks(settings, file_list, reason))

    async def block(moderator: Moderator) -> tuple[list[Named], int]:
        found = await find(settings, wanted)
        entries = [(named.selection, why) for named, why in found]
        with click.progressbar(
            length=len(entries), label="blocking", file=sys.stderr, hidden=file_list is None
        ) as bar:
            removed = await moderator.block_all(entries, by=user(), on_kept=bar.update)
        return [named for named, _ in found], removed

    (blocked, removed), serving = decide(settings, block)
    looked_up = [named for named in blocked if named.name]
    how_many = "" if file_list is None and len(blocked) == 1 else f"{len(blocked)} "
    output.report(
        {
            "folder": str(folder),
            "blocked": len(blocked),
            "removed": removed,
            "processes": serving,
            "names": [named.document() for named in looked_up],
        },
        *(printable(named.told()) for named in looked_up),
        f"{how_many}blocked in {folder}; {removed} cached entries removed; {in_force(serving)}",
    )


@blocks.command("remove", epilog=example("blocks remove alice.example"))
@with_names
@click.option("--reason", metavar="TEXT", default="", help="Why, for the audit.")
@with_output
@with_config
def blocks_remove(
    context: Context,
    output: Output,
    names: tuple[str, ...],
    did: str | None,
    cid: str | None,
    reason: str,
) -> None:
    """Lift blocks, no matter who asked for them. WHAT is as in "blocks add"."""
    settings = context.load()
    folder = settings.cache.path
    wanted = [(name, reason) for name in names_of(settings, names, did, cid)]

    async def lift(moderator: Moderator) -> list[tuple[Named, bool]]:
        return [
            (named, await moderator.lift_any(named.selection, by=user(), reason=why))
            for named, why in await find(settings, wanted)
        ]

    found, serving = decide(settings, lift)
    kept = [named for named, is_lifted in found if not is_lifted]
    lifted = len(found) - len(kept)
    how_many = "" if len(found) == 1 else f"{lifted} "
    lines = [printable(named.told()) for named, is_lifted in found if is_lifted and named.name]
    if lifted:
        lines.append(f"{how_many}lifted in {folder}; {in_force(serving)}")
    lines += [
        f"there was no such block in {folder}{f': {printable(each.told())}' if how_many else ''}"
        for each in kept
    ]
    output.report(
        {
            "folder": str(folder),
            "lifted": lifted,
            "processes": serving,
            "names": [named.document() for named, _ in found if named.name],
        },
        *lines,
    )
    sys.exit(1 if kept else 0)


@blocks.command("audit", epilog=example("blocks audit --limit 20"))
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Decisions, the last ones.",
)
@with_output
@with_config
def blocks_audit(context: Context, output: Output, limit: int) -> None:
    """Print the last decisions, oldest first."""
    from proxy.moderation.configured_store import moderation_store_of

    settings = context.load()
    with in_folder(settings), closing(moderation_store_of(settings)) as store:
        decisions = store.audit(limit)
    output.listing(
        decisions,
        document=asdict,
        header=("when", "who", "what", "owner", "blob", "entries removed", "why"),
        cells=decision_cells,
        otherwise=f"no decisions in {settings.cache.path}",
    )


@blocks.command("backup", epilog=example("blocks backup /srv/backups/blocks.sqlite3"))
@click.argument(
    "target", metavar="[FILE]", type=click.Path(dir_okay=False, path_type=Path), required=False
)
@with_output
@with_config
def blocks_backup(context: Context, output: Output, target: Path | None) -> None:
    """Copy the blocks and their audit to FILE, while servers run.

    Without FILE, make the copy of today in the cache folder, as servers do each day.
    """
    from proxy.moderation.backups import back_up, back_up_today
    from proxy.moderation.configured_store import folder_store_of

    settings = context.load()
    with in_folder(settings):
        _refuse_in_cluster(settings, "pg_dump copies it")
        store = folder_store_of(settings)
        with closing(store):
            count = sum(1 for _ in store.blocks())
        if target is None:
            target = back_up_today(store.path, time.time())
        else:
            back_up(store.path, target)
    folder = settings.cache.path
    output.report(
        {"folder": str(folder), "blocks": count, "file": str(target)},
        f"{count} blocks of {folder} backed up to {target}",
    )


@blocks.command("restore", epilog=example("blocks restore /srv/backups/blocks.sqlite3"))
@click.argument(
    "source",
    metavar="[FILE]",
    type=click.Path(dir_okay=False, path_type=Path),
    required=False,
)
@click.option("--empty", is_flag=True, help="Make a store without blocks: nothing was blocked.")
@with_output
@with_config
def blocks_restore(context: Context, output: Output, source: Path | None, empty: bool) -> None:
    """Make the store of blocks anew where it is missing or damaged.

    FILE is a copy of it, or the server's log in JSON, whose decisions are repeated. Cached entries
    of what is blocked then are removed.
    """
    from proxy.coordination.folder import FolderCoordination
    from proxy.moderation.configured_store import folder_store_of
    from proxy.moderation.restore import CannotRestore, restore

    if (source is None) is not empty:
        raise click.UsageError("give FILE, or --empty")
    settings = context.load()
    with in_folder(settings, may_be_new=True):
        _refuse_in_cluster(settings, "pg_restore restores it")
        replicas = FolderCoordination(settings.cache.path).replicas()
        with closing(folder_store_of(settings)) as store:
            try:
                unnamed = restore(store, replicas, source)
            except CannotRestore as error:
                refuse(str(error))
            found = [Selection(each.did, each.cid) for each in store.blocks()]
        removed = with_cache(settings, lambda cache: cache.purge(*found)) if found else 0
    folder = settings.cache.path
    output.report(
        {"folder": str(folder), "blocks": len(found), "removed": removed, "unnamed": unnamed},
        f"{len(found)} blocks restored in {folder}; {removed} cached entries removed;"
        " servers that run take them over within a second",
    )
    if unnamed:
        click.echo(
            f"warning: {unnamed} lines of the log tell of decisions without naming them: repeat"
            " those from their lists (blocks add --file)",
            err=True,
        )
        sys.exit(1)


def _refuse_in_cluster(settings: Config, instead: str) -> None:
    if settings.cluster.url:
        refuse(f"the blocks are in the database of cluster.database: {instead}")


def parse_block_line(settings: Config, line: str) -> tuple[Name, str] | None:
    """Return what a line of a list blocks, and the reason; None for a blank line or a comment.

    Raises:
        InvalidRequest: the line matches none of the forms.
    """
    what, _, reason = line.partition("#")
    match visible(what).split():
        case []:
            return None
        case [account, cid]:
            name = parse_name(settings, f"{account}/{parse_cid(cid)}")
        case [text]:
            name = parse_name(settings, text)
        case _:
            raise InvalidRequest(line)
    return name, reason.strip()


def _read_blocks(settings: Config, lines: Iterable[str], reason: str) -> Iterator[tuple[Name, str]]:
    for number, line in enumerate(lines_of(lines), 1):
        try:
            found = parse_block_line(settings, line)
        except InvalidRequest as error:
            mistake = in_words(error, line="DID, CID, or DID CID, then # and a reason")
            raise click.UsageError(f"line {number}: {mistake}") from None
        if found is not None:
            yield found[0], found[1] or reason

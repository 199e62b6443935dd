"""``imageproxy cache``."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from proxy.cli.common import (
    Context,
    decide,
    in_force,
    user,
    with_cache,
    with_config,
)
from proxy.cli.helping import example
from proxy.cli.naming import Named, find, names_of, with_names
from proxy.cli.output import Json, Output, aligned, with_output
from proxy.shared.printable import printable

if TYPE_CHECKING:
    from proxy.cache.disk import DiskCache
    from proxy.cache.index import Totals
    from proxy.moderation.moderator import Moderator


@click.group()
def cache() -> None:
    """Inspect and maintain the cache."""


@cache.command("stats", epilog=example("cache stats"))
@with_output
@with_config
def cache_stats(context: Context, output: Output) -> None:
    """Show the size of the cache, by preset."""
    from proxy.cache.disk import DiskCache

    settings = context.load()
    found = sorted(with_cache(settings, DiskCache.by_preset).items())
    most = max((row.bytes for _, row in found), default=0)
    entries = sum(row.entries for _, row in found)
    size = sum(row.bytes for _, row in found)
    rows = [
        (name, f"{row.entries:,}", f"{row.bytes:,}", bar(row.bytes, most, BAR))
        for name, row in found
    ]
    rows.append(("all", f"{entries:,}", f"{size:,}", ""))
    share = f"{size / settings.cache.max_bytes:.1%} of {settings.cache.max_gb:g} GB"
    output.report(
        {
            "folder": str(settings.cache.path),
            "max_bytes": settings.cache.max_bytes,
            "entries": entries,
            "bytes": size,
            "presets": [preset_document(name, row) for name, row in found],
        },
        *aligned(("preset", "entries", "bytes", ""), rows, right=(1, 2)),
        f"{share} in {settings.cache.path}",
    )


def preset_document(name: str, totals: Totals) -> Json:
    preset, _, fingerprint = name.rpartition("-")
    figures = {"entries": totals.entries, "bytes": totals.bytes}
    return {"preset": preset, "fingerprint": fingerprint, **figures}


BAR = 24
"""Columns of the longest bar. Together with the figures, most presets fit in 80 columns."""


def bar(amount: int, most: int, columns: int) -> str:
    """A bar in eighths of a column; every amount above 0 is visible."""
    eighths = max(round(8 * columns * amount / most), 1) if amount else 0
    full, rest = divmod(eighths, 8)
    return "\N{FULL BLOCK}" * full + " ▏▎▍▌▋▊▉"[rest].strip()


@cache.command("purge", epilog=example("cache purge alice.example --reason 'asked by the owner'"))
@with_names
@click.option("--reason", metavar="TEXT", default="", help="Why, for the audit.")
@with_output
@with_config
def cache_purge(
    context: Context,
    output: Output,
    names: tuple[str, ...],
    did: str | None,
    cid: str | None,
    reason: str,
) -> None:
    """Remove the entries of accounts, blobs, or pairs, also from running servers.

    WHAT is as in "blocks add".
    """
    settings = context.load()
    wanted = [(name, reason) for name in names_of(settings, names, did, cid)]

    async def purge(moderator: Moderator) -> tuple[list[Named], int]:
        found = await find(settings, wanted)
        removed = 0
        for named, why in found:
            removed += await moderator.purge(named.selection, by=user(), reason=why)
        return [named for named, _ in found if named.name], removed

    (looked_up, removed), serving = decide(settings, purge)
    folder = settings.cache.path
    output.report(
        {
            "folder": str(folder),
            "removed": removed,
            "processes": serving,
            "names": [named.document() for named in looked_up],
        },
        *(printable(named.told()) for named in looked_up),
        f"{removed} removed from {folder}; {in_force(serving)}",
    )


@cache.command("cleanup", epilog=example("cache cleanup"))
@with_output
@with_config
def cache_cleanup(context: Context, output: Output) -> None:
    """Remove entries that are past their TTL or over the size limit."""
    from proxy.cache.disk import DiskCache

    settings = context.load()
    removed = with_cache(settings, DiskCache.cleanup)
    folder = settings.cache.path
    output.report({"folder": str(folder), "removed": removed}, f"{removed} removed from {folder}")


@cache.command("verify", epilog=example("cache verify --repair"))
@click.option("--repair", is_flag=True, help="Put right what is wrong.")
@with_output
@with_config
def cache_verify(context: Context, output: Output, repair: bool) -> None:
    """Compare the files with the index; exit 1 if anything is wrong and not repaired.

    damaged: not what was written. missing: only in the index. unknown: not in the index.
    foreign: its name is not an entry's. --repair removes damaged and foreign files, and corrects
    the index for the others. --json prints an object for each file, and nothing if none is wrong.
    """

    async def work(disk: DiskCache) -> int:
        wrong = 0
        with click.progressbar(length=1000, label="verifying", file=sys.stderr) as bar:
            async with aclosing(disk.verify(repair=repair)) as parts:
                async for done, found in parts:
                    for what, path in found:
                        output.report(
                            {"wrong": what, "file": str(path), "repaired": repair},
                            f"{what}: {path}",
                        )
                    wrong += len(found)
                    bar.update(round(done * 1000) - bar.pos)
        return wrong

    settings = context.load()
    wrong = with_cache(settings, work)
    repaired = ", repaired" if wrong and repair else ""
    if not output.as_json:
        click.echo(f"{wrong} wrong in {settings.cache.path}{repaired}")
    sys.exit(1 if wrong and not repair else 0)

"""``imageproxy cache``."""

from __future__ import annotations

import sys
from contextlib import aclosing

import click

from proxy.cache.disk import DiskCache
from proxy.cli.common import Context, decide, selection_of, user, with_cache, with_config


@click.group()
def cache() -> None:
    """Inspect and maintain the cache."""


@cache.command("stats")
@with_config
def cache_stats(context: Context) -> None:
    """Show the size of the cache, by preset."""
    settings = context.load()
    rows = with_cache(settings, DiskCache.by_preset)
    width = max([len(name) for name in rows] + [6])
    most = max([row.bytes for row in rows.values()], default=0)
    click.echo(f"{'preset':{width}}  {'entries':>9}  {'bytes':>15}")
    for name, row in sorted(rows.items()):
        figures = f"{name:{width}}  {row.entries:9,}  {row.bytes:15,}"
        click.echo(f"{figures}  {bar(row.bytes, most, BAR)}")
    entries = sum(row.entries for row in rows.values())
    size = sum(row.bytes for row in rows.values())
    click.echo(f"{'all':{width}}  {entries:9,}  {size:15,}")
    share = f"{size / settings.cache.max_bytes:.1%} of {settings.cache.max_gb:g} GB"
    click.echo(f"{share} in {settings.cache.path}")


BAR = 24
"""Columns of the longest bar. Together with the figures, most presets fit in 80 columns."""


def bar(amount: int, most: int, columns: int) -> str:
    """A bar in eighths of a column; every amount above 0 is visible."""
    eighths = max(round(8 * columns * amount / most), 1) if amount else 0
    full, rest = divmod(eighths, 8)
    return "\N{FULL BLOCK}" * full + " ▏▎▍▌▋▊▉"[rest].strip()


@cache.command("purge")
@click.option("--did")
@click.option("--cid")
@click.option("--reason", default="")
@with_config
def cache_purge(context: Context, did: str | None, cid: str | None, reason: str) -> None:
    """Remove the entries of an owner, a blob, or a pair, also from running servers."""
    settings, selection = context.load(), selection_of(did, cid)
    removed, in_force = decide(settings, lambda it: it.purge(selection, by=user(), reason=reason))
    click.echo(f"{removed} removed from {settings.cache.path}; {in_force}")


@cache.command("cleanup")
@with_config
def cache_cleanup(context: Context) -> None:
    """Remove entries that are past their TTL or over the size limit."""
    settings = context.load()
    removed = with_cache(settings, DiskCache.cleanup)
    click.echo(f"{removed} removed from {settings.cache.path}")


@cache.command("verify")
@click.option("--repair", is_flag=True, help="Put right what is wrong.")
@with_config
def cache_verify(context: Context, repair: bool) -> None:
    """Compare the files with the index; exit 1 if anything is wrong and not repaired.

    damaged: not what was written. missing: only in the index. unknown: not in the index.
    foreign: its name is not an entry's. --repair removes damaged and foreign files, and corrects
    the index for the others.
    """

    async def work(disk: DiskCache) -> int:
        wrong = 0
        with click.progressbar(length=1000, label="verifying", file=sys.stderr) as bar:
            async with aclosing(disk.verify(repair=repair)) as parts:
                async for done, found in parts:
                    for what, path in found:
                        click.echo(f"{what}: {path}")
                    wrong += len(found)
                    bar.update(round(done * 1000) - bar.pos)
        return wrong

    settings = context.load()
    wrong = with_cache(settings, work)
    repaired = ", repaired" if wrong and repair else ""
    click.echo(f"{wrong} wrong in {settings.cache.path}{repaired}")
    sys.exit(1 if wrong and not repair else 0)

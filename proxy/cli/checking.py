"""``imageproxy blocks check``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from proxy.cli.caching import preset_document
from proxy.cli.common import Context, mapped_errors, with_cache, with_config
from proxy.cli.helping import example
from proxy.cli.naming import Named, find, names_of, with_names
from proxy.cli.output import Json, Output, with_output
from proxy.cli.rows import block_document, describe_pending, line, pending_document, utc
from proxy.shared.printable import printable

if TYPE_CHECKING:
    from proxy.cache.disk import DiskCache
    from proxy.config import Config
    from proxy.tools.standing import Standing


@click.command("check", epilog=example("blocks check alice.example"))
@with_names
@with_output
@with_config
def blocks_check(
    context: Context,
    output: Output,
    names: tuple[str, ...],
    did: str | None,
    cid: str | None,
) -> None:
    """Tell whether WHAT is blocked, where copies are, and what a request would get.

    WHAT is as in "blocks add". Changes nothing. The exit code is 0, blocked or not.
    """
    from proxy.tools.standing import standing_of

    settings = context.load()
    wanted = [(name, "") for name in names_of(settings, names, did, cid)]

    async def look(disk: DiskCache) -> list[tuple[Named, Standing]]:
        found = await find(settings, wanted)
        return [(named, await standing_of(settings, disk, named.selection)) for named, _ in found]

    with mapped_errors(settings):
        standings = with_cache(settings, look, must_be_meant=True)
    for named, standing in standings:
        output.report(
            _document(settings, named, standing),
            *map(printable, _lines(settings, named, standing)),
        )


def _document(settings: Config, named: Named, standing: Standing) -> Json:
    return {
        **named.document(),
        "folder": str(settings.cache.path),
        "processes": standing.processes,
        "blocked": bool(standing.blocks),
        "blocks": [block_document(block) for block in standing.blocks],
        "within": standing.within,
        "disk": [preset_document(*each) for each in sorted(standing.disk.items())],
        "memory": standing.memory,
        "cdn": settings.cdn.kind or None,
        "pending": [pending_document(each) for each in standing.pending],
        "policy": standing.policy,
        "status": standing.answer.status,
        "because": standing.answer.because,
    }


def _lines(settings: Config, named: Named, standing: Standing) -> Iterator[str]:
    yield named.told()
    for label, text in _facts(settings, standing):
        yield f"  {label:9}  {text}"


def _facts(settings: Config, standing: Standing) -> Iterator[tuple[str, str]]:
    yield "folder", f"{settings.cache.path}, {_processes(standing.processes)}"
    for block in standing.blocks:
        what = f"{block.did or '*'} {block.cid or '*'}"
        why = f": {line(block.reason)}" if block.reason else ""
        yield "blocked", f"{what} by {block.by} since {utc(block.created_at)}{why}"
    if not standing.blocks:
        yield "blocked", "no"
    if standing.within:
        yield "within it", f"{standing.within} blocks of single pictures"
    entries = sum(each.entries for each in standing.disk.values())
    size = sum(each.bytes for each in standing.disk.values())
    presets = sorted({name.rpartition("-")[0] for name in standing.disk})
    there = f"{entries:,} entries, {size:,} bytes: {', '.join(presets)}"
    yield "disk", there if standing.disk else "nothing"
    yield "memory", "nothing" if standing.memory == "none" else "not known"
    if not settings.cdn.kind and not standing.pending:
        yield "CDN", "none is configured"
    elif not standing.pending:
        yield "CDN", "nothing waits to be purged"
    for each in standing.pending:
        what = f"{each.selection.did or '*'} {each.selection.cid or '*'}"
        yield "CDN", f"{what} since {utc(each.queued_at)}: {describe_pending(each)}"
    if standing.policy is not None:
        yield "policy", standing.policy.replace("_", " ")
    answer = standing.answer
    status = "" if answer.status is None else f"{answer.status}, "
    yield "a request", f"{status}{answer.because}"


def _processes(count: int) -> str:
    return "1 process serves from it" if count == 1 else f"{count} processes serve from it"

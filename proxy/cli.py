"""The command line: ``imageproxy``. Exit codes: 0 done, 1 failed, 2 usage or configuration."""

from __future__ import annotations

import getpass
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar
from urllib.parse import unquote, urlsplit

import click
import trio

from proxy import serve as serving
from proxy.cache.base import Selection
from proxy.cache.disk import DiskCache
from proxy.config import Config, ConfigError, Layer, LogSection, load_config, stream_origin
from proxy.doctor.judgement import Level, failed
from proxy.doctor.probes import examine
from proxy.egress.errors import Forbidden
from proxy.egress.gateway import guarded_networks
from proxy.errors import (
    DidUnresolvable,
    ImageProxyError,
    InvalidCid,
    InvalidDid,
    InvalidFormat,
    InvalidHandle,
    InvalidPreset,
    InvalidRequest,
    UpstreamTimeout,
)
from proxy.extras import check_extras
from proxy.formats import OUTPUTS
from proxy.found import owner_beside_root, signs_in
from proxy.identifiers import parse_cid, parse_did
from proxy.log import configure_logging
from proxy.moderation.cdn.queue import CdnQueue, Pending
from proxy.moderation.moderator import Moderator
from proxy.moderation.store import Block, Decision
from proxy.nginx import server_block
from proxy.opening import open_moderator, open_service
from proxy.parts import disk_cache_of, moderation_database_of, moderation_store_of
from proxy.service import Service
from proxy.urls import ImageKey, image_key, image_url, parse_image_path
from proxy.warm import Bookmark, Failures, Tally, Warmer, warm_account, warm_images

T = TypeVar("T")

TELL_SECONDS = 60.0
"""How often a run without an end says how far it has come."""

WARM_LINE = "an image URL or its path, or PRESET DID CID [FORMAT], or DID CID"

WARM_AT_ONCE = 16
"""Images that ``warm`` asks for at once: half of the default fetch workers."""


class _Context:
    """The configuration of this run."""

    def __init__(self, file: Path | None) -> None:
        self.file = file

    def load(self, overrides: Layer | None = None, *, to_serve: bool = False) -> Config:
        """Every mistake is told, and ends the process.

        Args:
            to_serve: also what a service needs beyond right values is looked for.
        """
        try:
            config = load_config(self.file, overrides=overrides)
            if to_serve:
                check_extras(config)
            return config
        except ConfigError as error:
            for mistake in error.mistakes:
                click.echo(f"config: {mistake}", err=True)
            sys.exit(2)


_config_option = click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file; without it IMAGE_PROXY_CONFIG, or the defaults.",
)


def _with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` a ``context`` made from its ``--config`` option."""

    @_config_option
    @wraps(command)
    def wrapper(file: Path | None, **arguments: Any) -> Any:
        return command(context=_Context(file), **arguments)

    return wrapper


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="atproto-imageproxy")
def cli() -> None:
    """An image proxy of the AT Protocol."""


@cli.command()
@click.option("--bind", metavar="HOST:PORT", help="Overrides server.bind.")
@click.option("--workers", type=click.IntRange(min=1), help="Overrides server.workers.")
@_with_config
def serve(context: _Context, bind: str | None, workers: int | None) -> None:
    """Serve under Hypercorn's Trio worker."""
    given = {"bind": bind, "workers": workers}
    server = {key: value for key, value in given.items() if value is not None}
    overrides: Layer = {"server": server} if server else {}
    sys.exit(serving.serve(context.load(overrides, to_serve=True), context.file, overrides))


@cli.group()
def config() -> None:
    """Look at the configuration."""


@config.command("show")
@_with_config
def config_show(context: _Context) -> None:
    """Print the effective configuration, secrets masked."""
    for section, values in context.load().model_dump(mode="json").items():
        for name, value in values.items():
            if isinstance(value, dict):
                click.echo(f"\n[{section}.{name}]")
                for key, inner in value.items():
                    click.echo(f"{key} = {_toml(inner)}")
            else:
                if name == next(iter(values)):
                    click.echo(f"\n[{section}]" if section != "server" else "[server]")
                click.echo(f"{name} = {_toml(value)}")


@config.command("check")
@_with_config
def config_check(context: _Context) -> None:
    """Report every mistake at once, with its key."""
    context.load(to_serve=True)
    click.echo("ok")


@cli.command()
@click.argument("preset")
@click.argument("did")
@click.argument("cid")
@click.option("--format", "format_", metavar="F", help="jpeg, png, webp or avif.")
@_with_config
def url(context: _Context, preset: str, did: str, cid: str, format_: str | None) -> None:
    """Print the public URL of an image."""
    settings = context.load()
    try:
        key = image_key(settings.presets, preset, did, cid, format_)
    except InvalidRequest as error:
        raise click.UsageError(_mistake(error, settings.presets)) from None
    click.echo(image_url(key, settings.server.cdn_url or settings.server.base_url))


@cli.command()
@click.argument("preset")
@click.argument("did")
@click.argument("cid")
@click.option("--format", "format_", metavar="F", help="jpeg, png, webp or avif.")
@click.option(
    "-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="Where to; - is stdout."
)
@_with_config
def fetch(
    context: _Context, preset: str, did: str, cid: str, format_: str | None, output: Path | None
) -> None:
    """Get one image through the whole pipeline, without a server."""
    settings = context.load(to_serve=True)

    async def work(service: Service) -> None:
        image = await service.get_image(preset, did, cid, format_)
        if output == Path("-"):
            sys.stdout.buffer.write(image.data)
        elif output is not None:
            await trio.Path(output).write_bytes(image.data)
        timings = "  ".join(f"{name} {took * 1000:.1f} ms" for name, took in image.timings.items())
        click.echo(
            f"{image.cache}  {image.content_type}  {len(image.data)} bytes  {timings}".rstrip(),
            err=output == Path("-"),
        )

    _with_service(settings, work)


@cli.command()
@click.argument(
    "file_list",
    metavar="[FILE]",
    type=click.File("r", encoding="utf-8", errors="replace"),
    default="-",
)
@click.option("--account", metavar="ACTOR", help="Every blob of a handle or DID, instead of FILE.")
@click.option(
    "--jetstream", metavar="URL", help="New pictures from wss://HOST until it is ended, instead."
)
@click.option(
    "--collection",
    "collections",
    metavar="NSID",
    multiple=True,
    default=["app.bsky.actor.profile"],
    show_default=True,
    help="Of the records that --jetstream follows.",
)
@click.option("--preset", "presets", metavar="NAME", multiple=True, help="Default: all.")
@click.option(
    "--at-once", type=click.IntRange(1, 64), default=4, show_default=True, help="Blobs under way."
)
@click.option(
    "--per-second",
    type=click.FloatRange(0.01, 1000),
    default=10.0,
    show_default=True,
    help="Blobs that are begun in a second.",
)
@click.option("--restart", is_flag=True, help="From the beginning, not from where it ended.")
@_with_config
def warm(
    context: _Context,
    file_list: TextIO,
    account: str | None,
    jetstream: str | None,
    collections: tuple[str, ...],
    presets: tuple[str, ...],
    at_once: int,
    per_second: float,
    restart: bool,
) -> None:
    """Fill the cache from FILE (- is standard input), with what an account has, or what is new.

    A line is an image URL or its path, or PRESET DID CID [FORMAT], or DID CID for every preset.
    Empty lines and lines that begin with # are passed over.

    With --account or --jetstream, a run that was ended goes on where it was, and the options are
    for them alone.
    """
    settings = context.load(to_serve=True)
    unknown = [name for name in presets if name not in settings.presets]
    if unknown:
        raise click.UsageError(_mistake(InvalidPreset(unknown[0]), settings.presets))
    limits = _Limits(presets or tuple(settings.presets), at_once, per_second)
    if account is not None:
        _warm_account(settings, account, limits, restart)
    if jetstream is not None:
        _warm_stream(settings, jetstream, collections, limits)
    keys: list[ImageKey] = []
    for number, line in enumerate(file_list, 1):
        try:
            keys.extend(parse_warm_line(settings, line))
        except InvalidRequest as error:
            mistake = _mistake(error, settings.presets, WARM_LINE)
            raise click.UsageError(f"line {number}: {mistake}") from None
    failures = Failures()

    async def work(service: Service) -> None:
        nonlocal failures
        with click.progressbar(length=len(keys), label="warming", file=sys.stderr) as bar:
            failures = await warm_images(
                service, keys, at_once=WARM_AT_ONCE, on_done=lambda: bar.update(1)
            )

    _with_service(settings, work)
    _tell_failures(failures)
    where = settings.cache.path
    click.echo(f"{len(keys) - len(failures)} of {len(keys)} are cached in {where}")
    sys.exit(1 if len(failures) else 0)


@dataclass(frozen=True)
class _Limits:
    """How a cache is filled: see ``Warmer``."""

    presets: tuple[str, ...]
    at_once: int
    per_second: float

    def warmer(self, service: Service, on_done: Callable[[], None] = lambda: None) -> Warmer:
        return Warmer(
            service,
            self.presets,
            at_once=self.at_once,
            per_second=self.per_second,
            on_done=on_done,
        )


def _warm_account(settings: Config, actor: str, limits: _Limits, restart: bool) -> NoReturn:
    tally = Tally()

    async def work(service: Service) -> None:
        nonlocal tally
        did = await service.actors.find(actor)
        bookmark = Bookmark(settings.cache.path, did, *sorted(limits.presets))
        if restart:
            await bookmark.clear()
        with click.progressbar(length=0, label="warming", file=sys.stderr, show_pos=True) as bar:
            warmer = limits.warmer(service, lambda: bar.update(1))
            tally = warmer.tally

            def more(count: int) -> None:
                bar.length = (bar.length or 0) + count

            await warm_account(service, did, warmer, bookmark, more)

    _with_service(settings, work)
    _tell(settings, tally)


def _warm_stream(
    settings: Config, url: str, collections: tuple[str, ...], limits: _Limits
) -> NoReturn:
    try:
        origin = stream_origin(url)
        # Imported late: what it needs is an extra.
        from proxy.warm_stream import warm_stream
    except Forbidden as error:
        raise click.UsageError(f"--jetstream must be wss://HOST: {error}") from None
    except ImportError as error:
        raise click.UsageError(
            f"--jetstream needs {error.name}; install atproto-imageproxy[moderation]"
        ) from None
    tally = Tally()
    left_out = 0

    def note_left_out() -> None:
        nonlocal left_out
        left_out += 1

    async def until_signalled(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                scope.cancel()

    async def keep_telling() -> None:
        while True:
            await trio.sleep(TELL_SECONDS)
            click.echo(f"{_counts(tally)}, {left_out} left out", err=True)

    async def work(service: Service) -> None:
        nonlocal tally
        warmer = limits.warmer(service)
        tally = warmer.tally
        own = guarded_networks(settings)[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_signalled, nursery.cancel_scope)
            nursery.start_soon(keep_telling)
            click.echo(f"following {origin}", err=True)
            await warm_stream(service, warmer, origin, own, collections, note_left_out)

    _with_service(settings, work)
    _tell(settings, tally)


def _counts(tally: Tally) -> str:
    return (
        f"{tally.made} made, {tally.cached} were cached, {tally.skipped} skipped,"
        f" {tally.failed} failed"
    )


def _tell(settings: Config, tally: Tally) -> NoReturn:
    """Say what has come of it, and end the process."""
    _tell_failures(tally.failures)
    click.echo(f"{_counts(tally)}, in {settings.cache.path}")
    sys.exit(1 if tally.failed else 0)


def _tell_failures(failures: Failures) -> None:
    for line in failures.lines():
        click.echo(line, err=True)
    _point_to_doctor(failures.kinds)


def _point_to_doctor(kinds: Iterable[type[ImageProxyError]]) -> None:
    """Where it may be this machine that cannot reach the others, say what examines it."""
    if any(issubclass(kind, (DidUnresolvable, UpstreamTimeout)) for kind in kinds):
        click.echo('"imageproxy doctor" tells whether it lies on this machine', err=True)


def parse_warm_line(settings: Config, line: str) -> list[ImageKey]:
    """The results that a line of a list asks for.

    Raises:
        InvalidRequest: the line follows none of the forms.
    """
    line = line.strip()
    if not line or line.startswith("#"):
        return []
    if "/img/" in line:
        try:
            path = unquote(urlsplit(line).path)
        except ValueError:  # its host is none
            raise InvalidRequest(line) from None
        return [parse_image_path(settings.presets, path)]
    match line.split():
        case [did, cid]:
            return [image_key(settings.presets, name, did, cid) for name in settings.presets]
        case [preset, did, cid]:
            return [image_key(settings.presets, preset, did, cid)]
        case [preset, did, cid, format_]:
            return [image_key(settings.presets, preset, did, cid, format_)]
        case _:
            raise InvalidRequest(line)


@cli.group()
def cache() -> None:
    """Look after the cache."""


@cache.command("stats")
@_with_config
def cache_stats(context: _Context) -> None:
    """Draw what fills the cache, by preset."""
    settings = context.load()
    rows = _with_cache(settings, DiskCache.by_preset)
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
"""Columns of the longest bar: with the figures before it, most presets fit in 80."""


def bar(amount: int, most: int, columns: int) -> str:
    """A bar in eighths of a column; what is more than nothing shows."""
    eighths = max(round(8 * columns * amount / most), 1) if amount else 0
    full, rest = divmod(eighths, 8)
    return "\N{FULL BLOCK}" * full + " ▏▎▍▌▋▊▉"[rest].strip()


@cache.command("purge")
@click.option("--did")
@click.option("--cid")
@click.option("--reason", default="")
@_with_config
def cache_purge(context: _Context, did: str | None, cid: str | None, reason: str) -> None:
    """Remove the entries of an owner, a blob, or a pair, running servers' too."""
    settings, selection = context.load(), _selection(did, cid)
    removed, obeyed = _decide(settings, lambda it: it.purge(selection, by=_user(), reason=reason))
    click.echo(f"{removed} removed from {settings.cache.path}; {obeyed}")


@cache.command("cleanup")
@_with_config
def cache_cleanup(context: _Context) -> None:
    """Remove what is past its TTL or over the size limit."""
    settings = context.load()
    removed = _with_cache(settings, DiskCache.cleanup)
    click.echo(f"{removed} removed from {settings.cache.path}")


@cache.command("verify")
@click.option("--repair", is_flag=True, help="Put right what is wrong.")
@_with_config
def cache_verify(context: _Context, repair: bool) -> None:
    """Hold files and index against each other; exit 1 when anything is wrong and stays so.

    damaged: not what was written. missing: in the index alone. unknown: not in the index.
    foreign: no entry by its name. --repair removes files, and mends the index for the others.
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
    wrong = _with_cache(settings, work)
    repaired = ", repaired" if wrong and repair else ""
    click.echo(f"{wrong} wrong in {settings.cache.path}{repaired}")
    sys.exit(1 if wrong and not repair else 0)


@cli.command()
@_with_config
def doctor(context: _Context) -> None:
    """Examine this machine, and say how to put right what is wrong; exit 1 when anything fails."""
    settings = context.load(to_serve=True)

    async def run() -> bool:
        findings = []
        async with aclosing(examine(settings)) as found:
            async for finding in found:
                findings.append(finding)
                label = click.style(f"{finding.level:4}", fg=_COLOURS[finding.level])
                click.echo(f"{label}  {finding.name}: {finding.text}")
                if finding.fix:
                    click.echo(f"      fix: {finding.fix}")
        return failed(findings)

    sys.exit(1 if trio.run(run) else 0)


_COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


@cli.group()
def blocks() -> None:
    """Block owners, blobs, and pairs of them."""


@blocks.command("list")
@click.option("--pending-cdn", is_flag=True, help="What the CDN has yet to forget, instead.")
@_with_config
def blocks_list(context: _Context, pending_cdn: bool) -> None:
    """Print the blocks, oldest first."""
    settings = context.load()
    with _in_folder(settings):
        if pending_cdn:
            queue = CdnQueue(moderation_database_of(settings))
            is_there = moderation_store_of(settings).path.exists()
            rows = map(_pending_row, queue.all() if is_there else ())
            _print_rows("queued  owner  blob  state", rows, "nothing waits")
        else:
            rows = map(_block_row, moderation_store_of(settings).blocks())
            header = "when  owner  blob  who  why"
            _print_rows(header, rows, f"no blocks in {settings.cache.path}")


def _print_rows(header: str, rows: Iterable[str], otherwise: str) -> None:
    """Print rows below a header; where there are none, say so, but not to who reads rows."""
    is_empty = True
    for row in rows:
        if is_empty:
            click.echo(header)
        is_empty = False
        click.echo(row.rstrip())
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
@_with_config
def blocks_add(
    context: _Context, did: str | None, cid: str | None, reason: str, file_list: TextIO | None
) -> None:
    """Block, and purge what is cached of it. At return every running server obeys."""
    settings = context.load()
    folder = settings.cache.path
    if file_list is None:
        selection = _selection(did, cid)
        removed, obeyed = _decide(
            settings, lambda it: it.block(selection, by=_user(), reason=reason)
        )
        click.echo(f"blocked in {folder}; {removed} cached entries removed; {obeyed}")
        return
    if did is not None or cid is not None:
        raise click.UsageError("give --file, or --did and --cid")
    entries = list(_read_blocks(file_list, reason))
    with click.progressbar(length=len(entries), label="blocking", file=sys.stderr) as bar:
        removed, obeyed = _decide(
            settings, lambda it: it.block_all(entries, by=_user(), on_kept=bar.update)
        )
    click.echo(f"{len(entries)} blocked in {folder}; {removed} cached entries removed; {obeyed}")


@blocks.command("remove")
@click.option("--did")
@click.option("--cid")
@click.option("--reason", default="")
@_with_config
def blocks_remove(context: _Context, did: str | None, cid: str | None, reason: str) -> None:
    """Lift a block, whoever asked for it."""
    settings, selection = context.load(), _selection(did, cid)
    lifted, obeyed = _decide(settings, lambda it: it.lift_any(selection, by=_user(), reason=reason))
    what = f"lifted in {settings.cache.path}; {obeyed}"
    click.echo(what if lifted else f"there was no such block in {settings.cache.path}")
    sys.exit(0 if lifted else 1)


@cli.command()
@_with_config
def nginx(context: _Context) -> None:
    """Print an nginx server block that serves hits straight from this cache."""
    settings = context.load()
    if not signs_in(settings.cache.path):
        click.echo(f"imageproxy: {_no_cache(settings)}", err=True)
    click.echo(server_block(settings, disk_cache_of(settings).images), nl=False)


@blocks.command("audit")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@_with_config
def blocks_audit(context: _Context, limit: int) -> None:
    """Print the last decisions, oldest first."""
    settings = context.load()
    with _in_folder(settings):
        rows = map(_decision_row, moderation_store_of(settings).audit(limit))
        header = "when  who  what  owner  blob  entries removed  why"
        _print_rows(header, rows, f"no decisions in {settings.cache.path}")


def _decision_row(each: Decision) -> str:
    removed = "-" if each.removed is None else str(each.removed)
    what = f"{each.action}  {each.did or '*'}  {each.cid or '*'}"
    return f"{_at(each.at)}  {each.by}  {what}  {removed}  {_line(each.reason)}"


def parse_block_line(line: str) -> tuple[Selection, str] | None:
    """What a line of a list blocks, and why; None where it has only a comment.

    Raises:
        InvalidRequest: the line follows none of the forms.
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
            mistake = _mistake(error, line="DID, CID, or DID CID, then # and a reason")
            raise click.UsageError(f"line {number}: {mistake}") from None
        if found is not None:
            yield found[0], found[1] or reason


@contextmanager
def _in_folder(settings: Config) -> Iterator[None]:
    """For what is done with a server's cache folder; what fails in it is told with its path."""
    folder = settings.cache.path
    try:
        if not signs_in(folder):
            _refuse(_no_cache(settings))
        _refuse_root(settings)
        yield
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, BrokenPipeError) or str(folder) in str(error):
            raise
        click.echo(f"imageproxy: {folder}: {error}", err=True)
        sys.exit(1)


def _no_cache(settings: Config) -> str:
    return (
        f"{settings.cache.path} is no cache folder: no server has run on it;"
        " give the server's configuration with --config"
    )


def _refuse_root(settings: Config) -> None:
    owner = owner_beside_root(settings.cache.path)
    if owner is not None:
        _refuse(
            f"{settings.cache.path} belongs to {owner}, who could not use the files that root"
            f" makes there; run this as {owner}"
        )


def _refuse(why: str) -> NoReturn:
    click.echo(f"imageproxy: {why}", err=True)
    sys.exit(2)


def _decide(settings: Config, work: Callable[[Moderator], Awaitable[T]]) -> tuple[T, str]:
    """What ``work`` returns, and who obeys it, in words."""

    async def run() -> tuple[T, int]:
        async with open_moderator(settings) as moderator:
            return await work(moderator), await moderator.serving()

    with _in_folder(settings):
        done, serving = trio.run(run)
    if not serving:
        click.echo(f"warning: no server runs on {settings.cache.path}", err=True)
    return done, "1 process obeys" if serving == 1 else f"{serving} processes obey"


def _user() -> str:
    """Who decides, as the audit tells."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # an account without a name
        return f"cli:{os.getuid()}"


def _at(seconds: float) -> str:
    """RFC 3339, section 5.6."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _line(text: str) -> str:
    """On one line, and without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def main() -> None:
    """The console script."""
    # A command says what it did; what serves configures its own.
    configure_logging(LogSection(level="warning"))
    try:
        cli()
    except (OSError, sqlite3.Error) as error:
        click.echo(f"imageproxy: {error}", err=True)
        sys.exit(1)


def _selection(did: str | None, cid: str | None) -> Selection:
    if did is None and cid is None:
        raise click.UsageError("give --did, --cid, or both")
    try:
        return Selection(
            None if did is None else parse_did(did), None if cid is None else parse_cid(cid)
        )
    except InvalidRequest as error:
        raise click.UsageError(_mistake(error)) from None


def _with_cache(settings: Config, work: Callable[[DiskCache], Awaitable[T]]) -> T:
    """Run ``work`` with the disk cache alone, once its index knows every file."""

    async def run() -> T:
        async with aclosing(disk_cache_of(settings)) as disk:
            await disk.make_indexed()
            return await work(disk)

    with _in_folder(settings):
        return trio.run(run)


def _with_service(settings: Config, work: Callable[[Service], Awaitable[None]]) -> None:
    """Run ``work`` with a service of its own; an error of the table ends the process with 1."""
    # A single run cleans nothing up: that would walk the whole cache.
    once = settings.cache.model_copy(update={"cleanup_interval_minutes": 0})
    settings = settings.model_copy(update={"cache": once})
    _refuse_root(settings)

    async def run() -> None:
        async with open_service(settings) as service:
            await work(service)

    try:
        trio.run(run)
    except InvalidRequest as error:
        raise click.UsageError(_mistake(error, settings.presets)) from None
    except ImageProxyError as error:
        click.echo(f"imageproxy: {error.explained}", err=True)
        _point_to_doctor([type(error)])
        sys.exit(1)


_EXPECTED: dict[type[InvalidRequest], str] = {
    InvalidDid: "did:plc:... or did:web:HOST; a handle is no DID",
    InvalidCid: "the CID of a blob, bafkrei... as a rule",
    InvalidHandle: "a handle such as alice.example, or a DID",
    InvalidFormat: ", ".join(format_.value for format_ in OUTPUTS),
}


def _mistake(error: InvalidRequest, presets: Iterable[str] = (), line: str = "") -> str:
    """What a client is told, and what is right.

    Args:
        presets: names of the configuration.
        line: what a line of a list looks like.
    """
    if isinstance(error, InvalidPreset):
        return f"{error.public_message}; expected one of {', '.join(presets)}"
    if type(error) in _EXPECTED:
        return f"{error.public_message}: {error}; expected {_EXPECTED[type(error)]}"
    return f"{error.public_message}; expected {line}" if line else error.public_message


def _toml(value: object) -> str:
    # JSON's strings are TOML's but for two: TOML knows no surrogate pairs, and wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

"""``imageproxy warm``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TextIO
from urllib.parse import unquote, urlsplit

import click
import trio

from proxy.cli.common import Context, in_words, point_to_doctor, with_config, with_service
from proxy.config import Config, stream_origin
from proxy.egress.errors import Forbidden
from proxy.egress.gateway import guarded_networks
from proxy.errors import InvalidPreset, InvalidRequest
from proxy.model.keys import ImageKey, image_key
from proxy.service import Service
from proxy.shared.printable import printable
from proxy.tools.warm import Bookmark, Failures, Tally, Warmer, warm_account, warm_images
from proxy.urls import parse_image_path

TELL_SECONDS = 60.0
"""Seconds between progress lines of a run without an end."""

WARM_LINE = "an image URL or its path, or PRESET DID CID [FORMAT], or DID CID"

WARM_AT_ONCE = 16
"""Images that ``warm`` requests concurrently: half of the default fetch workers."""


@click.command()
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
@with_config
def warm(
    context: Context,
    file_list: TextIO,
    account: str | None,
    jetstream: str | None,
    collections: tuple[str, ...],
    presets: tuple[str, ...],
    at_once: int,
    per_second: float,
    restart: bool,
) -> None:
    """Fill the cache from FILE (- is standard input), from an account, or with new pictures.

    A line is an image URL or its path, or PRESET DID CID [FORMAT], or DID CID for every preset.
    Empty lines and lines that begin with # are skipped.

    With --account or --jetstream, an interrupted run continues where it stopped. The options
    apply only to these two.
    """
    settings = context.load(to_serve=True)
    unknown = [name for name in presets if name not in settings.presets]
    if unknown:
        raise click.UsageError(in_words(InvalidPreset(unknown[0]), settings.presets))
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
            mistake = in_words(error, settings.presets, WARM_LINE)
            raise click.UsageError(f"line {number}: {mistake}") from None
    failures = Failures()

    async def work(service: Service) -> None:
        nonlocal failures
        with click.progressbar(length=len(keys), label="warming", file=sys.stderr) as bar:
            failures = await warm_images(
                service, keys, at_once=WARM_AT_ONCE, on_done=lambda: bar.update(1)
            )

    with_service(settings, work)
    _tell_failures(failures)
    where = settings.cache.path
    click.echo(f"{len(keys) - len(failures)} of {len(keys)} are cached in {where}")
    sys.exit(1 if len(failures) else 0)


@dataclass(frozen=True)
class _Limits:
    """The limits for filling the cache: see ``Warmer``."""

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

    with_service(settings, work)
    _tell(settings, tally)


def _warm_stream(
    settings: Config, url: str, collections: tuple[str, ...], limits: _Limits
) -> NoReturn:
    try:
        origin = stream_origin(url)
        # Imported late: its packages are an optional extra.
        from proxy.tools.warm_stream import warm_stream
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
        own = guarded_networks(settings.fetch)[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_signalled, nursery.cancel_scope)
            nursery.start_soon(keep_telling)
            click.echo(f"following {origin}", err=True)
            await warm_stream(service, warmer, origin, own, collections, note_left_out)

    with_service(settings, work)
    _tell(settings, tally)


def _counts(tally: Tally) -> str:
    return (
        f"{tally.made} made, {tally.cached} were cached, {tally.skipped} skipped,"
        f" {tally.failed} failed"
    )


def _tell(settings: Config, tally: Tally) -> NoReturn:
    """Print the outcome, and end the process."""
    _tell_failures(tally.failures)
    click.echo(f"{_counts(tally)}, in {settings.cache.path}")
    sys.exit(1 if tally.failed else 0)


def _tell_failures(failures: Failures) -> None:
    for line in failures.lines():
        click.echo(printable(line), err=True)
    point_to_doctor(failures.kinds)


def parse_warm_line(settings: Config, line: str) -> list[ImageKey]:
    """Return the keys of the results that a line of a list asks for.

    Raises:
        InvalidRequest: the line matches none of the forms.
    """
    line = line.strip()
    if not line or line.startswith("#"):
        return []
    if "/img/" in line:
        try:
            path = unquote(urlsplit(line).path)
        except ValueError:  # its host is invalid
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

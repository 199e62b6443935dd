"""``imageproxy warm``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, TextIO
from urllib.parse import unquote, urlsplit

import click

from proxy.cli.common import (
    Context,
    in_folder,
    in_words,
    lines_of,
    mapped_errors,
    point_to_doctor,
    with_cache,
    with_config,
    with_service,
)
from proxy.cli.helping import complete_preset, example
from proxy.cli.naming import dids_of
from proxy.cli.output import Json, Output, with_output
from proxy.errors import InvalidHandle, InvalidPreset, InvalidRequest
from proxy.model.identifiers import Did, parse_handle
from proxy.model.keys import BlobKey, ImageKey, image_key
from proxy.model.references import visible
from proxy.shared.printable import printable

if TYPE_CHECKING:
    import trio
    from click._termui_impl import ProgressBar

    from proxy.config import Config
    from proxy.observability.metrics import Metrics
    from proxy.service import Service
    from proxy.tools.warm import Failures, Tally, Warmer
    from proxy.tools.warm_room import Lost

TELL_SECONDS = 60.0
"""Seconds between progress lines of a run without an end."""

WARM_LINE = (
    "the URL of an image (/img/), its description (/info/) or a poster (/vid/) or its path,"
    " or PRESET DID CID [FORMAT], or DID CID"
)

WARM_AT_ONCE = 16
"""Images that ``warm`` requests concurrently: half of the default fetch workers."""


@click.command(epilog=example("warm --account alice.example --preset avatar"))
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
@click.option(
    "--preset",
    "presets",
    metavar="NAME",
    multiple=True,
    help="Default: all.",
    shell_complete=complete_preset,
)
@click.option(
    "--at-once",
    metavar="N",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Blobs under way.",
)
@click.option(
    "--per-second",
    metavar="N",
    type=click.FloatRange(0.01, 1000),
    default=10.0,
    show_default=True,
    help="Blobs that are begun in a second.",
)
@click.option("--restart", is_flag=True, help="From the beginning, not from where it ended.")
@with_output
@with_config
def warm(
    context: Context,
    output: Output,
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

    A line is the URL of an image, of its description (/info/) or of a video's poster, or its path;
    or PRESET DID CID [FORMAT], or DID CID for every preset. A DID may be a handle.

    Empty lines and lines that begin with # are skipped. Exit 1 if something that was asked for was
    not made, or not kept.

    With --account or --jetstream, an interrupted run continues where it stopped. The options
    apply only to these two.
    """
    settings = context.load(to_serve=True)
    unknown = [name for name in presets if name not in settings.presets]
    if unknown:
        raise click.UsageError(in_words(InvalidPreset(unknown[0]), settings.presets))
    limits = _Limits(presets or tuple(settings.presets), at_once, per_second)
    if account is not None:
        _warm_account(settings, output, account, limits, restart)
    if jetstream is not None:
        _warm_stream(settings, output, jetstream, collections, limits)
    _warm_list(settings, output, file_list)


def _warm_list(settings: Config, output: Output, file_list: TextIO) -> NoReturn:
    from proxy.tools.warm import Tally, warm_images

    keys: list[ImageKey] = []
    if file_list.isatty():
        click.echo(f"reading lines, each {WARM_LINE}; Ctrl-D ends the list", err=True)
    lines = list(lines_of(file_list))
    with mapped_errors(settings):
        dids = dids_of(settings, handles_in(settings, lines))
    for number, line in enumerate(lines, 1):
        try:
            keys.extend(parse_warm_line(settings, line, dids))
        except InvalidRequest as error:
            mistake = in_words(error, settings.presets, WARM_LINE)
            raise click.UsageError(f"line {number}: {mistake}") from None
    for why in _lacks(settings, keys):
        click.echo(f"warning: {why}", err=True)
    tally, kept = Tally(), _Kept(settings)

    async def work(service: Service) -> None:
        nonlocal tally
        kept.metrics = service.metrics
        with _bar("images", len(keys)) as bar:
            tally = await warm_images(
                service,
                keys,
                at_once=WARM_AT_ONCE,
                on_done=lambda: bar.update(1),
                on_present=kept.keys.append,
            )

    with_service(settings, work)
    # Each image was asked for by its name: one that is skipped was asked for in vain.
    _tell(settings, output, tally, kept.lost(), images=len(keys), may_skip=False)


def _bar(unit: str, length: int) -> ProgressBar[int]:
    return click.progressbar(length=length, label=f"warming {unit}", file=sys.stderr, show_pos=True)


def _lacks(settings: Config, keys: list[ImageKey]) -> list[str]:
    """Why the cache will not keep all results of a list; none if it will, or nobody can say."""
    from proxy.cache.disk import DiskCache
    from proxy.tools.existing_folder import signs_in
    from proxy.tools.warm_room import expected_bytes, is_kept, lacks
    from proxy.wiring import disk_cache_of

    settings_of, folder = settings.cache, settings.cache.path
    images = disk_cache_of(settings).images
    with suppress(OSError):  # the run itself will tell
        known = with_cache(settings, DiskCache.by_preset) if signs_in(folder) else {}
        new = [key for key in keys if not is_kept(images, key)]
        needed = expected_bytes(new, settings.preset_table, known)
        return list(
            lacks(folder, needed, max_bytes=settings_of.max_bytes, max_gb=settings_of.max_gb)
        )
    return []


class _Kept:
    """The results that there were, of which the cache may not have kept all."""

    def __init__(self, settings: Config) -> None:
        self._settings = settings
        self.keys: list[ImageKey] = []
        self.metrics: Metrics | None = None

    def lost(self) -> Lost:
        """What is lost, once the service has ended."""
        from proxy.tools.warm_room import Lost, lost_of
        from proxy.wiring import disk_cache_of

        if self.metrics is None:
            return Lost()
        with in_folder(self._settings, may_be_new=True):
            return lost_of(disk_cache_of(self._settings).images, self.keys, self.metrics)


@dataclass(frozen=True)
class _Limits:
    """The limits for filling the cache: see ``Warmer``."""

    presets: tuple[str, ...]
    at_once: int
    per_second: float

    def warmer(
        self,
        service: Service,
        on_done: Callable[[], None] = lambda: None,
        on_present: Callable[[BlobKey], None] = lambda blob: None,
    ) -> Warmer:
        from proxy.tools.warm import Warmer

        return Warmer(
            service,
            self.presets,
            at_once=self.at_once,
            per_second=self.per_second,
            on_done=on_done,
            on_present=on_present,
        )


def _warm_account(
    settings: Config, output: Output, actor: str, limits: _Limits, restart: bool
) -> NoReturn:
    from proxy.tools.warm import Bookmark, Tally, warm_account

    tally, kept = Tally(), _Kept(settings)

    def on_present(blob: BlobKey) -> None:
        kept.keys += [image_key(settings.presets, each, *blob) for each in limits.presets]

    async def work(service: Service) -> None:
        nonlocal tally
        kept.metrics = service.metrics
        did = await service.actors.find(actor)
        bookmark = Bookmark(settings.cache.path, did, *sorted(limits.presets))
        if restart:
            await bookmark.clear()
        with _bar("blobs", 0) as bar:
            warmer = limits.warmer(service, lambda: bar.update(1), on_present)
            tally = warmer.tally

            def more(count: int) -> None:
                bar.length = (bar.length or 0) + count

            await warm_account(service, did, warmer, bookmark, more)

    with_service(settings, work)
    _tell(settings, output, tally, kept.lost())


def _warm_stream(
    settings: Config, output: Output, url: str, collections: tuple[str, ...], limits: _Limits
) -> NoReturn:
    import trio

    from proxy.config import stream_origin
    from proxy.egress.errors import Forbidden
    from proxy.egress.gateway import guarded_networks
    from proxy.tools.warm import Tally
    from proxy.tools.warm_room import Lost

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
    # What is evicted meanwhile is older than what came: a stream has no end to be kept whole.
    _tell(settings, output, tally, Lost())


def _counts(tally: Tally) -> str:
    return (
        f"{tally.made} made, {tally.cached} were cached, {tally.skipped} skipped,"
        f" {tally.failed} failed"
    )


def _tell(
    settings: Config,
    output: Output,
    tally: Tally,
    lost: Lost,
    *,
    images: int | None = None,
    may_skip: bool = True,
) -> NoReturn:
    """Print the outcome, and end the process.

    Args:
        images: how many a list names; None: there is no list.
        may_skip: whether skipping something is no failure.
    """
    folder = settings.cache.path
    if not output.as_json:
        for heading, found in (("skipped: ", tally.skips), ("", tally.failures)):
            for line in found.lines(heading):
                click.echo(printable(line), err=True)
    point_to_doctor(tally.failures.kinds)
    lines = [f"{_counts(tally)}, in {folder}"]
    if lost.evicted:
        lines.append(f"{lost.evicted} images not kept: evicted, as cache.max_gb is full")
    if lost.unwritten:
        lines.append(f"{lost.unwritten} images not kept: the cache could not write them")
    output.report(
        {
            "folder": str(folder),
            **({} if images is None else {"images": images}),
            "made": tally.made,
            "cached": tally.cached,
            "skipped": tally.skipped,
            "failed": tally.failed,
            "evicted": lost.evicted,
            "unwritten": lost.unwritten,
            "skips": _reasons(tally.skips),
            "reasons": _reasons(tally.failures),
        },
        *lines,
    )
    sys.exit(1 if tally.failed or lost or (tally.skipped and not may_skip) else 0)


def _reasons(failures: Failures) -> list[Json]:
    """Each reason, how many results failed for it, and the URLs of the first of them."""
    return [
        {"reason": reason, "count": count, "urls": names}
        for reason, count, names in failures.reasons()
    ]


def handles_in(settings: Config, lines: Iterable[str]) -> list[str]:
    """The handles that lines of a list have in the place of a DID, each once. Total."""
    own_names = settings.fetch.allow_private_hosts
    found: dict[str, None] = {}
    for line in lines:
        match visible(line).split():
            case [first, *_] if first.startswith("#") or _is_url(line):
                pass
            case [actor, _] | [_, actor, _] | [_, actor, _, _]:
                with suppress(InvalidHandle):  # a DID; or the line is refused where it is parsed
                    parse_handle(actor.removeprefix("@"), own_names=own_names)
                    found[actor] = None
    return list(found)


def _is_url(line: str) -> bool:
    return any(each in line for each in ("/img/", "/vid/", "/info/"))


def _below_bases(settings: Config, path: str) -> str:
    """``path`` without that of the URL, or the path, that public URLs stand behind."""
    server = settings.server
    for base in (server.cdn_url, server.base_url, server.root_path):
        above = unquote(urlsplit(base).path)
        if above and path.startswith(f"{above}/"):
            return path.removeprefix(above)
    return path


def parse_warm_line(
    settings: Config, line: str, dids: Mapping[str, Did] = MappingProxyType({})
) -> list[ImageKey]:
    """Return the keys of the results that a line of a list asks for.

    Args:
        dids: those of the handles in the list.

    Raises:
        InvalidRequest: the line matches none of the forms.
    """
    from proxy.urls import parse_image_path, parse_poster_path

    line = visible(line)
    if not line or line.startswith("#"):
        return []
    if _is_url(line):
        try:
            path = _below_bases(settings, unquote(urlsplit(line).path))
        except ValueError:  # its host is invalid
            raise InvalidRequest(line) from None
        if path.startswith("/vid/"):
            return [parse_poster_path(settings.presets, settings.video.preset, path)]
        return [parse_image_path(settings.presets, path)]
    match line.split():
        case [actor, cid]:
            did = dids.get(actor, actor)
            return [image_key(settings.presets, name, did, cid) for name in settings.presets]
        case [preset, actor, cid]:
            return [image_key(settings.presets, preset, dids.get(actor, actor), cid)]
        case [preset, actor, cid, format_]:
            return [image_key(settings.presets, preset, dids.get(actor, actor), cid, format_)]
        case _:
            raise InvalidRequest(line)

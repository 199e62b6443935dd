"""``imageproxy serve``, and the commands that need no cache folder of a server."""

from __future__ import annotations

import sys
from contextlib import aclosing
from pathlib import Path

import click
import trio

from proxy.cli.common import Context, in_words, no_cache, with_config, with_service
from proxy.config import Layer
from proxy.errors import InvalidRequest
from proxy.model.keys import image_key
from proxy.service import Service
from proxy.serving import serve as serving
from proxy.tools.doctor.checks import Level, failed
from proxy.tools.doctor.probes import examine
from proxy.tools.existing_folder import signs_in
from proxy.tools.nginx import server_block
from proxy.urls import image_url
from proxy.wiring import disk_cache_of

_COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--bind", metavar="HOST:PORT", help="Overrides server.bind.")
@click.option("--workers", type=click.IntRange(min=1), help="Overrides server.workers.")
@with_config
def serve(context: Context, bind: str | None, workers: int | None) -> None:
    """Serve under Hypercorn's Trio worker."""
    given = {"bind": bind, "workers": workers}
    server = {key: value for key, value in given.items() if value is not None}
    overrides: Layer = {"server": server} if server else {}
    sys.exit(serving.serve(context.load(overrides, to_serve=True), context.file, overrides))


@click.command()
@click.argument("preset")
@click.argument("did")
@click.argument("cid")
@click.option("--format", "format_", metavar="F", help="jpeg, png, webp or avif.")
@with_config
def url(context: Context, preset: str, did: str, cid: str, format_: str | None) -> None:
    """Print the public URL of an image."""
    settings = context.load()
    try:
        key = image_key(settings.presets, preset, did, cid, format_)
    except InvalidRequest as error:
        raise click.UsageError(in_words(error, settings.presets)) from None
    click.echo(image_url(key, settings.server.cdn_url or settings.server.base_url))


@click.command()
@click.argument("preset")
@click.argument("did")
@click.argument("cid")
@click.option("--format", "format_", metavar="F", help="jpeg, png, webp or avif.")
@click.option(
    "-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="Where to; - is stdout."
)
@with_config
def fetch(
    context: Context, preset: str, did: str, cid: str, format_: str | None, output: Path | None
) -> None:
    """Fetch one image through the whole pipeline, without a server."""
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

    with_service(settings, work)


@click.command()
@with_config
def nginx(context: Context) -> None:
    """Print an nginx server block that serves hits straight from this cache."""
    settings = context.load()
    if not signs_in(settings.cache.path):
        click.echo(f"imageproxy: {no_cache(settings)}", err=True)
    click.echo(server_block(settings, disk_cache_of(settings).images), nl=False)


@click.command()
@with_config
def doctor(context: Context) -> None:
    """Check this machine, and say how to fix each problem; exit 1 if any check fails."""
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

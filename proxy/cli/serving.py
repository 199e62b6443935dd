"""``imageproxy serve``, and the commands that need no cache folder of a server."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.common import Context, mapped_errors, no_cache, refuse, with_config, with_service
from proxy.cli.helping import SettingOption, WithSettings, complete_format, complete_preset, example
from proxy.cli.naming import dids_of
from proxy.cli.output import Output, with_output
from proxy.model.references import visible

if TYPE_CHECKING:
    from proxy.config import Layer
    from proxy.service import Service
    from proxy.tools.doctor.checks import Level

_COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


_CID = "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe"
"""That of the examples."""


@click.command(cls=WithSettings, epilog=example("serve --bind 0.0.0.0:8080 --workers 2"))
@click.option("--bind", metavar="HOST:PORT", cls=SettingOption, setting="server.bind")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    cls=SettingOption,
    setting="server.workers",
)
@with_config
def serve(context: Context, bind: str | None, workers: int | None) -> None:
    """Serve under Hypercorn's Trio worker."""
    with _held_hangups():
        _serve(context, bind, workers)


@contextmanager
def _held_hangups() -> Iterator[None]:
    """Have SIGHUP wait until the server hears it: a start takes seconds, and it would end it.

    Where there is a terminal, its end still ends a start.
    """
    if any(map(os.isatty, range(3))):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(context: Context, bind: str | None, workers: int | None) -> None:
    # What imports leave behind, half a megabyte, is not worth the looks at all that they make: not
    # while they run, and not in the collection before the server listens.
    gc.disable()
    import structlog

    from proxy.config import origins
    from proxy.serving import serve as serving

    gc.freeze()
    gc.enable()
    given = {"bind": bind, "workers": workers}
    server = {key: value for key, value in given.items() if value is not None}
    overrides: Layer = {"server": server} if server else {}
    settings = context.load(overrides, to_serve=True)
    for (section, *rest), origin in origins(context.file).items():
        if origin.over and not (section == "server" and rest[0] in server):
            key = ".".join(map(str, (section, *rest)))
            structlog.get_logger(__name__).warning(
                "the environment is used, not the file",
                key=key,
                variable=origin.name,
                file=origin.over,
            )
    sys.exit(serving.serve(settings, context.file, overrides))


_with_format = click.option(
    "--format",
    "format_",
    metavar="F",
    help="jpeg, png, webp or avif.",
    shell_complete=complete_format,
)


@click.command(epilog=example(f"url avatar alice.example {_CID} --format webp"))
@click.argument("preset", shell_complete=complete_preset)
@click.argument("did")
@click.argument("cid")
@_with_format
@with_config
def url(context: Context, preset: str, did: str, cid: str, format_: str | None) -> None:
    """Print the public URL of an image. DID may be a handle, which is then looked up."""
    from proxy.model.keys import image_key
    from proxy.urls import image_url

    settings = context.load(logs=False)
    with mapped_errors(settings):
        did, cid = visible(did), visible(cid)
        if not did.startswith("did:"):
            context.log_warnings()
            did = dids_of(settings, [did])[did]
        key = image_key(settings.presets, preset, did, cid, format_)
    click.echo(image_url(key, settings.server.public_base))


@click.command(epilog=example(f"fetch avatar alice.example {_CID} -o avatar.jpg"))
@click.argument("preset", shell_complete=complete_preset)
@click.argument("did")
@click.argument("cid")
@_with_format
@click.option(
    "-o",
    "target",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to; - is stdout.",
)
@with_output
@with_config
def fetch(
    context: Context,
    output: Output,
    preset: str,
    did: str,
    cid: str,
    format_: str | None,
    target: Path | None,
) -> None:
    """Fetch one image through the whole pipeline, without a server. DID may be a handle."""
    import trio

    settings = context.load(to_serve=True)

    async def work(service: Service) -> None:
        image = await service.get_image(
            preset, await service.actors.find(did), visible(cid), format_
        )
        if target == Path("-"):
            sys.stdout.buffer.write(image.data)
        elif target is not None:
            await trio.Path(target).write_bytes(image.data)
        timings = "  ".join(f"{name} {took * 1000:.1f} ms" for name, took in image.timings.items())
        output.report(
            {
                "cache": image.cache,
                "content_type": image.content_type,
                "bytes": len(image.data),
                "timings": dict(image.timings),
            },
            f"{image.cache}  {image.content_type}  {len(image.data)} bytes  {timings}".rstrip(),
            err=target == Path("-"),
        )

    with_service(settings, work)


@click.command(epilog=example(f"info alice.example {_CID}"))
@click.argument("did")
@click.argument("cid")
@with_output
@with_config
def info(context: Context, output: Output, did: str, cid: str) -> None:
    """Print size, type, placeholder and colour of a picture. DID may be a handle."""
    settings = context.load(to_serve=True)

    async def work(service: Service) -> None:
        told = (await service.get_info(await service.actors.find(did), visible(cid))).model_dump()
        width = max(map(len, told))
        output.report(
            told,
            "\n".join(
                f"{name:{width}}  {str(value).lower() if isinstance(value, bool) else value}"
                for name, value in told.items()
            ),
        )

    with_service(settings, work)


def _nodes(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    from proxy.tools.balancer.nodes import parse_nodes

    try:
        return None if value is None else parse_nodes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


_NODES = "HOST:PORT,HOST:PORT"


@click.command(
    epilog=example("nginx --config /etc/imageproxy.toml > /etc/nginx/sites-enabled/imageproxy")
)
@click.option(
    "--nodes", callback=_nodes, metavar=_NODES, help="Print a balancer before these nodes instead."
)
@with_config
def nginx(context: Context, nodes: tuple[str, ...] | None) -> None:
    """Print an nginx server block that serves hits straight from this cache."""
    from proxy.tools.balancer.nginx import nginx_balancer
    from proxy.tools.existing_folder import signs_in
    from proxy.tools.nginx import server_block
    from proxy.wiring import served_folder

    settings = context.load()
    if nodes is not None:
        click.echo(nginx_balancer(settings, nodes), nl=False)
        return
    if not signs_in(settings.cache.path):
        click.echo(f"imageproxy: {no_cache(settings)}", err=True)
    try:
        block = server_block(settings, served_folder(settings))
    except ValueError as error:
        refuse(str(error))
    click.echo(block, nl=False)


@click.command(epilog=example("haproxy --nodes 10.0.0.1:8080,10.0.0.2:8080"))
@click.option("--nodes", callback=_nodes, metavar=_NODES, required=True, help="The nodes.")
@with_config
def haproxy(context: Context, nodes: tuple[str, ...]) -> None:
    """Print an HAProxy configuration that gives each picture one of several nodes."""
    from proxy.tools.balancer.haproxy import haproxy_balancer

    click.echo(haproxy_balancer(context.load(), nodes), nl=False)


@click.command(epilog=example("doctor --config /etc/imageproxy.toml"))
@with_output
@with_config
def doctor(context: Context, output: Output) -> None:
    """Check this machine, and say how to fix each problem; exit 1 if any check fails."""
    import trio

    from proxy.tools.doctor.checks import failed
    from proxy.tools.doctor.probes import examine

    settings = context.load(to_serve=True)

    async def run() -> bool:
        findings = []
        async with aclosing(examine(settings)) as found:
            async for finding in found:
                findings.append(finding)
                label = click.style(f"{finding.level:4}", fg=_COLOURS[finding.level])
                lines = [f"{label}  {finding.name}: {finding.text}"]
                if finding.fix:
                    lines.append(f"      fix: {finding.fix}")
                output.report(asdict(finding), *lines)
        return failed(findings)

    sys.exit(1 if trio.run(run) else 0)

"""``imageproxy top``."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from proxy.cli.common import Context, refuse, with_config
from proxy.cli.helping import example
from proxy.cli.output import Output, with_output

if TYPE_CHECKING:
    from proxy.config import Config
    from proxy.tools.top.figures import Figures


def _place(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    from proxy.tools.top.server import checked_place

    try:
        return None if value is None else checked_place(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _token(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    from pydantic import SecretStr

    from proxy.config import checked_admin_token

    try:
        return None if value is None else checked_admin_token(SecretStr(value)).get_secret_value()
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(epilog=example("top --url http://127.0.0.1:8080"))
@click.option(
    "--url",
    callback=_place,
    metavar="URL",
    help="The server; without it that of server.bind. unix:/PATH too.",
)
@click.option(
    "--token",
    callback=_token,
    metavar="TOKEN",
    help="An operator's, for hosts; without it that of server.admin_token, which others of this"
    " machine cannot read.",
)
@click.option("--once", is_flag=True, help="End after one refresh.")
@with_output
@with_config
def top(context: Context, output: Output, url: str | None, token: str | None, once: bool) -> None:
    """Watch a running server: requests, queues, memory, slow hosts.

    On a terminal a screen that q ends. Elsewhere, and with --json or --once, a line every 2
    seconds.
    """
    settings = context.load()
    place = url or str(_own_place(settings))
    token = token if token is not None else _own_token(settings)
    is_screen = sys.stdout.isatty() and not (once or output.as_json)
    if is_screen and os.environ.get("TERM", "dumb") != "dumb":
        _on_screen(place, token)
    else:
        _in_lines(output, place, token, once=once)


def _own_place(settings: Config) -> str:
    from proxy.shared.binds import UnixBind

    bind = settings.server.binds[0]
    return str(bind) if isinstance(bind, UnixBind) else f"http://{bind.reached_at}"


def _own_token(settings: Config) -> str:
    server = settings.server
    tokens = [server.admin_token, *server.admin_tokens.values()]
    return next((value for each in tokens if (value := each.get_secret_value())), "")


def _on_screen(place: str, token: str) -> None:
    import trio

    from proxy.tools.top.server import NoAnswer, Refused, asked_server
    from proxy.tools.top.watch import until_told, watch

    try:
        from rich.console import Console

        from proxy.tools.top.screen import Screen, keys_at_once, until_q
    except ImportError:
        refuse(
            "a screen needs rich: install atproto-imageproxy[top]; for lines without it, use"
            " imageproxy top | cat"
        )

    async def run() -> None:
        screen = Screen(Console(highlight=False), place)
        async with asked_server(place, token) as server:
            # A mistake is told before the screen is taken.
            await server.scrape()
            await server.state()

            async def show() -> None:
                with keys_at_once(), screen.shown():
                    await watch(server, screen.show, at_once=True, times=None)

            await until_told(show, until_q)

    try:
        trio.run(run)
    except (NoAnswer, Refused) as error:
        _fail(error)


def _in_lines(output: Output, place: str, token: str, *, once: bool) -> None:
    import trio

    from proxy.tools.top.server import NoAnswer, Refused, asked_server
    from proxy.tools.top.watch import until_told, watch
    from proxy.tools.top.words import document, line

    def show(news: Figures | str) -> None:
        if isinstance(news, str):
            click.echo(f"imageproxy: {news}", err=True)
        else:
            at = time.time()
            clock = time.strftime("%H:%M:%S", time.localtime(at))
            output.report(document(news, at), f"{clock} {line(news)}")

    async def run() -> bool:
        async with asked_server(place, token) as server:

            async def work() -> None:
                await watch(server, show, at_once=False, times=1 if once else None)

            return await until_told(work, trio.sleep_forever)

    try:
        ended = trio.run(run)
    except (NoAnswer, Refused) as error:
        _fail(error)
    sys.exit(1 if once and not ended else 0)


def _fail(error: Exception) -> None:
    from proxy.shared.printable import printable

    click.echo(f"imageproxy: {printable(str(error))}", err=True)
    sys.exit(1)

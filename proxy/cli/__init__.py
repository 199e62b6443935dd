"""The command line."""

from __future__ import annotations

import os
import sqlite3
import sys

import click

from proxy.cli.blocking import blocks
from proxy.cli.caching import cache
from proxy.cli.clustering import cluster
from proxy.cli.configuring import config, presets
from proxy.cli.helping import example
from proxy.cli.manual import completion, man
from proxy.cli.serving import doctor, fetch, haproxy, info, nginx, serve, url
from proxy.cli.warming import warm
from proxy.cli.watching import top


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog=example("serve"),
)
@click.version_option(package_name="atproto-imageproxy", prog_name="imageproxy")
def cli() -> None:
    """An image proxy of the AT Protocol."""


for command in (
    serve,
    config,
    presets,
    url,
    fetch,
    info,
    warm,
    cache,
    doctor,
    top,
    blocks,
    cluster,
    nginx,
    haproxy,
    completion,
    man,
):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    _open_closed_streams()
    try:
        cli(obj=_log_warnings)  # as ``Context.log_warnings``
    except (OSError, sqlite3.Error) as error:
        click.echo(f"imageproxy: {error}", err=True)
        sys.exit(1)
    except Exception as error:
        # Imported late: it takes longer than many commands do.
        from proxy.cli.common import mistakes_in
        from proxy.config import ConfigError

        # Of what only its use shows, such as a store that cannot be opened.
        if not isinstance(error, ConfigError):
            raise
        for line in mistakes_in(error):
            click.echo(line, err=True)
        sys.exit(2)


def _open_closed_streams() -> None:
    """Open what this process was started without, standard error above all, to nothing.

    A file that gets such a number would have lines written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _log_warnings() -> None:
    """Have warnings on standard error: commands print their own results.

    ``serve`` configures its own logging.
    """
    from proxy.config import LogSection
    from proxy.observability.log import configure_logging

    configure_logging(LogSection(level="warning"))

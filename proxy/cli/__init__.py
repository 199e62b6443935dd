"""The command line."""

from __future__ import annotations

import sqlite3
import sys

import click

from proxy.cli.blocking import blocks
from proxy.cli.caching import cache
from proxy.cli.configuring import config
from proxy.cli.serving import doctor, fetch, nginx, serve, url
from proxy.cli.warming import warm
from proxy.config import LogSection
from proxy.observability.log import configure_logging


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="atproto-imageproxy")
def cli() -> None:
    """An image proxy of the AT Protocol."""


for command in (serve, config, url, fetch, warm, cache, doctor, blocks, nginx):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    # Commands print their own results; ``serve`` configures its own logging.
    configure_logging(LogSection(level="warning"))
    try:
        cli()
    except (OSError, sqlite3.Error) as error:
        click.echo(f"imageproxy: {error}", err=True)
        sys.exit(1)

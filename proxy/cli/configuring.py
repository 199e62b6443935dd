"""``imageproxy config``."""

from __future__ import annotations

import json

import click

from proxy.cli.common import Context, with_config


@click.group()
def config() -> None:
    """Inspect the configuration."""


@config.command("show")
@with_config
def config_show(context: Context) -> None:
    """Print the effective configuration, with secrets masked."""
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
@with_config
def config_check(context: Context) -> None:
    """Report every mistake at once, with its key."""
    context.load(to_serve=True)
    click.echo("ok")


def _toml(value: object) -> str:
    # JSON strings are TOML strings, with two exceptions: TOML has no surrogate pairs, and
    # requires DEL to be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

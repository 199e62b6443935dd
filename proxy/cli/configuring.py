"""``imageproxy config``, and ``presets``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.common import Context, mistakes_in, with_config
from proxy.cli.helping import example
from proxy.cli.output import Json, Output, aligned, with_output
from proxy.model.formats import OUTPUTS
from proxy.shared.printable import printable

if TYPE_CHECKING:
    from proxy.config import Location, ValueOrigin
    from proxy.model.presets import Preset


@click.group()
def config() -> None:
    """Inspect the configuration."""


@config.command("show", epilog=example("config show"))
@with_output
@with_config
def config_show(context: Context, output: Output) -> None:
    """Print the effective configuration, with secrets masked, and where each value is from.

    What has no comment is the default. A variable that takes the place of another value in the file
    says so. With --json, "sources" has it for every key.
    """
    from proxy.config import leaves, origins

    shown = context.load(logs=False).model_dump(mode="json")
    found = origins(context.file)
    sources = {".".join(map(str, key)): _source(found.get(key)) for key in leaves(shown)}
    output.report({**shown, "sources": sources}, *_toml_lines(shown, _told(found)))


def _source(origin: ValueOrigin | None) -> Json:
    if origin is None:
        return {"from": "default", "over": None}
    return {"from": origin.name, "over": origin.over}


def _told(found: Mapping[Location, ValueOrigin]) -> dict[Location, str]:
    """The comments of values that are not the default."""
    return {
        location: f"{each.name}, over {each.over}" if each.over else each.name
        for location, each in found.items()
    }


def _toml_lines(sections: dict[str, Any], told: Mapping[Location, str]) -> Iterator[str]:
    def line(*location: str, value: object) -> str:
        comment = f"  # {printable(told[location])}" if location in told else ""
        return f"{location[-1]} = {_toml(value)}{comment}"

    for section, values in sections.items():
        for name, value in values.items():
            if isinstance(value, dict):
                yield f"\n[{section}.{name}]"
                for key, inner in value.items():
                    yield line(section, name, key, value=inner)
            else:
                if name == next(iter(values)):
                    yield f"\n[{section}]" if section != "server" else "[server]"
                yield line(section, name, value=value)


@config.command("check", epilog=example("config check --config /etc/imageproxy.toml"))
@with_output
@with_config
def config_check(context: Context, output: Output) -> None:
    """Report every mistake at once, with its key."""
    from proxy.config import ConfigError

    try:
        context.read(to_serve=True)
    except ConfigError as error:
        output.report({"mistakes": error.mistakes}, *mistakes_in(error), err=not output.as_json)
        sys.exit(2)
    output.report({"mistakes": []}, "ok")


@click.command(epilog=example("presets --json > presets.json"))
@with_output
@with_config
def presets(context: Context, output: Output) -> None:
    """Print the presets, variants too. With --json, a file to build URLs from elsewhere."""
    settings = context.load(logs=False)
    output.report(
        {
            "base_url": settings.server.public_base,
            "formats": [each.value for each in OUTPUTS],
            "presets": {name: _layout(preset) for name, preset in settings.presets.items()},
        },
        *aligned(
            ("preset", "width", "height", "fit", "quality", "animated"),
            (_cells(name, preset) for name, preset in settings.presets.items()),
            right=(1, 2, 4),
        ),
    )


def _layout(preset: Preset) -> Json:
    """What a page has to know of a preset."""
    return preset.model_dump(
        mode="json", include={"width", "height", "fit", "quality", "animated", "variants"}
    )


def _cells(name: str, preset: Preset) -> Sequence[str]:
    size = str(preset.width), str(preset.height or "")
    return name, *size, preset.fit, str(preset.quality), "yes" if preset.animated else ""


def _toml(value: object) -> str:
    # JSON strings are TOML strings, with two exceptions: TOML has no surrogate pairs, and
    # requires DEL to be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

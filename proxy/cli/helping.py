"""What ``--help``, the manual page and the completion of a shell say beside click's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from proxy.model.formats import OUTPUTS

if TYPE_CHECKING:
    from click.types import OptionHelpExtra


def example(arguments: str) -> str:
    """The epilog of a command: what one types. ``\\b`` keeps click from filling the lines."""
    return f"\b\nExample:\n  imageproxy {arguments}"


class Setting(NamedTuple):
    """A key of the configuration, as help shows it."""

    key: str
    variable: str
    default: str


def settings() -> Iterator[Setting]:
    """Yield every key but those of presets, in the order of ``config.toml``."""
    from proxy.config import Config, environment_name

    for section, values in Config().model_dump(mode="json").items():
        if section != "presets":
            for key, value in values.items():
                name = environment_name(section, key)
                if isinstance(value, dict):
                    yield Setting(f"{section}.{key}.NAME", f"{name}__NAME", "")
                else:
                    yield Setting(f"{section}.{key}", name, _shown(value))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


class SettingOption(click.Option):
    """An option that overrides a key: its help has the key's variable and default.

    Args:
        setting: the key.
    """

    def __init__(self, names: Sequence[str], *, setting: str, **more: Any) -> None:
        super().__init__(names, help=f"Overrides {setting}.", **more)
        self._setting = setting

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """What stands in brackets behind the help."""
        extra = super().get_help_extra(ctx)
        (found,) = (each for each in settings() if each.key == self._setting)
        return {**extra, "envvars": (found.variable,), "default": found.default}


class WithSettings(click.Command):
    """A command whose help ends with every setting: its variable, its key, and its default."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, and the settings below it."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Settings, by environment or in --config FILE"):
            formatter.write_dl(
                [
                    (each.variable, f"{each.key}{f' = {each.default}' if each.default else ''}")
                    for each in settings()
                ]
            )


def complete_preset(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """The names of the configured presets; those of the default ones if it is wrong."""
    from proxy.config import ConfigError, load_config
    from proxy.model.presets import DEFAULT_PRESETS

    try:
        presets = load_config(context.params.get("file")).presets
    except ConfigError:
        presets = DEFAULT_PRESETS
    return [name for name in presets if name.startswith(incomplete)]


def complete_format(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """The formats that can be asked for."""
    return [each.value for each in OUTPUTS if each.value.startswith(incomplete)]

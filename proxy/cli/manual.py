"""``imageproxy man`` and ``imageproxy completion``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import version

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from proxy.cli.helping import example, settings

PROGRAM = "imageproxy"

COMPLETE = "_IMAGEPROXY_COMPLETE"
"""The variable by which a shell asks: click makes the name from that of the program."""

SHELLS: dict[str, type[ShellComplete]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}

EXIT_CODES = (
    ("0", "done"),
    ("1", "failed, or something that was asked for was not kept"),
    ("2", "wrong usage or configuration"),
)


@click.command(epilog=example("completion bash > /etc/bash_completion.d/imageproxy"))
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options, presets and formats.

    \b
    bash: imageproxy completion bash > /etc/bash_completion.d/imageproxy
    zsh:  imageproxy completion zsh > "${fpath[1]}/_imageproxy"
    fish: imageproxy completion fish > ~/.config/fish/completions/imageproxy.fish
    """
    click.echo(SHELLS[shell](context.find_root().command, {}, PROGRAM, COMPLETE).source(), nl=False)


@click.command(epilog=example("man > /usr/local/share/man/man1/imageproxy.1"))
@click.pass_context
def man(context: click.Context) -> None:
    """Print the manual page, in the format of man(7)."""
    for line in manual_page(context.find_root().command):
        click.echo(line)


def manual_page(root: click.Command) -> Iterator[str]:
    """Yield the lines of the manual page of ``root`` and every command below it."""
    yield f'.TH {PROGRAM.upper()} 1 "" "{PROGRAM} {version("atproto-imageproxy")}" "User Commands"'
    yield from (".SH NAME", f"{PROGRAM} \\- image proxy of the AT Protocol")
    yield from (".SH SYNOPSIS", f".B {PROGRAM}", r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGS\fR]...")
    yield ".SH COMMANDS"
    top = click.Context(root, info_name=PROGRAM)
    for context in _leaves(top):
        yield from _command(context)
    yield ".SH ENVIRONMENT"
    yield from _item("IMAGE_PROXY_CONFIG", "The TOML file, where there is no --config.")
    for each in settings():
        yield from _item(each.variable, f"{each.key}{f' = {each.default}' if each.default else ''}")
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES:
        yield from _item(code, meaning)


def _leaves(context: click.Context) -> Iterator[click.Context]:
    command = context.command
    if not isinstance(command, click.Group):
        yield context
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if found is not None:
            yield from _leaves(click.Context(found, info_name=name, parent=context))


def _command(context: click.Context) -> Iterator[str]:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f".SS {_escaped(usage)}"
    for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        if number:
            yield ".PP"
        yield from _paragraph(paragraph)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            yield from _item(*record)
    if command.epilog:
        yield ".PP"
        yield from _paragraph(command.epilog)


def _paragraph(text: str) -> Iterator[str]:
    if not text.startswith("\b\n"):
        yield _escaped(" ".join(text.split()))
        return
    yield ".nf"
    yield from map(_escaped, text.removeprefix("\b\n").splitlines())
    yield ".fi"


def _item(term: str, text: str) -> Iterator[str]:
    yield from (".TP", rf"\fB{_escaped(term)}\fR", _escaped(text))


def _escaped(text: str) -> str:
    """Escape what roff acts on: backslashes, hyphens, and a dot or quote that begins a line."""
    return re.sub(r"^(?=[.'])", r"\\&", text.replace("\\", r"\e").replace("-", r"\-"))

"""Whether a line that people are told to type is one that our programs take."""

from __future__ import annotations

import re
import shlex

import click

from proxy.cli import cli
from tests.processes import ROOT

RUN = set(re.findall(r"^    (\w+)(?: \| .*)?\)$", (ROOT / "run").read_text(), re.MULTILINE))
"""The commands of ``./run``."""


STANDS_FOR = {"FILE": "-", "N": "2"}


def assert_is_command(arguments: list[str]) -> None:
    """Fail for what the command line would not take. Nothing is run."""
    command: click.Command = cli
    context: click.Context | None = None
    rest = arguments
    while isinstance(command, click.Group):
        context = command.make_context(command.name, list(rest), parent=context)
        _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found
    command.make_context(command.name, list(rest), parent=context)


def check_line(line: str) -> bool:
    """Return whether it is a command of ours. Fail if it is ours and does not exist."""
    words = shlex.split(line.partition(" | ")[0].partition(" > ")[0], comments=True)
    # Names in capitals stand for something; a file has to be one that can be opened.
    words = [STANDS_FOR.get(word, word) for word in words]
    if words[:2] == ["runuser", "-u"]:
        words = words[4:]
    match words:
        case [program, *arguments] if program.rpartition("/")[2] == "imageproxy":
            assert_is_command(arguments)
        case ["./run", "imageproxy", *arguments]:
            assert_is_command(arguments)
        case ["./run", "serve", *arguments]:
            assert_is_command(["serve", *arguments])
        case ["./run", command, *_]:
            assert command in RUN, line
        case _:
            return False
    return True

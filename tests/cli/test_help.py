"""What to type: help, the manual page, and what a shell completes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from proxy.cli import cli
from proxy.cli.helping import settings
from proxy.cli.manual import SHELLS
from proxy.config import Config, load_config
from tests.cli import Run
from tests.cli.test_output import commands
from tests.commands import check_line
from tests.required import skip_unless_required


def need(program: str) -> str:
    """The path of a program; the test is skipped without it."""
    path = shutil.which(program)
    if path is None:
        skip_unless_required(f"{program} is not installed")
    return path or program


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_each_command_has_an_example_that_it_takes(
    run: Run, name: str, command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches help that tells what there is, and not what to type."""
    monkeypatch.chdir(tmp_path)
    shown = run(*name.split(), "--help").stdout
    example = shown.partition("Example:\n")[2].strip().splitlines()[0]
    assert example.startswith(f"imageproxy {name}")
    assert check_line(example)


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_each_option_says_what_it_takes(name: str, command: click.Command) -> None:
    """Catches "INTEGER RANGE", "FILENAME", and an option without a word."""
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts}"
            assert option.is_flag or option.metavar or isinstance(option.type, click.Choice)


def test_the_help_of_serve_has_every_setting_with_its_variable_and_default(run: Run) -> None:
    """Catches a setting that came later, and a variable that is none."""
    shown = " ".join(run("serve", "--help").stdout.split())
    assert "[env var: IMAGE_PROXY_SERVER__BIND; default: 127.0.0.1:8080]" in shown
    assert "IMAGE_PROXY_FETCH__TIMEOUT fetch.timeout = 30" in shown
    named = {tuple(each.key.split(".")[:2]) for each in settings()}
    expected = {
        (section, key)
        for section, values in Config().model_dump().items()
        if section != "presets"
        for key in values
    }
    assert named == expected
    assert all(f"{each.variable} {each.key}" in shown for each in settings())


def test_the_defaults_of_help_are_values_that_the_variables_take() -> None:
    """Catches a default that is shown in a form that the environment does not have."""
    environment = {each.variable: each.default for each in settings() if each.default}
    shown = load_config(environment=environment)
    assert shown == load_config(environment={})


# The manual page


def test_the_manual_page_has_every_command_and_setting(run: Run) -> None:
    """Catches a page of an earlier release."""
    page = run("man").stdout.replace("\\-", "-")
    for name, _ in commands(cli):
        assert f".SS imageproxy {name}" in page
    for each in settings():
        assert each.variable in page


@pytest.mark.parametrize("program", ["man", "mandoc", "groff"])
def test_the_manual_page_renders_without_a_complaint(
    run: Run, program: str, tmp_path: Path
) -> None:
    """Catches what roff acts on, in a sentence that happens to begin with a dot."""
    page = tmp_path / "imageproxy.1"
    page.write_text(run("man").stdout)
    command = {
        "man": ["man", "--warnings", "-l", str(page)],
        "mandoc": ["mandoc", "-Tutf8", "-Wwarning", str(page)],
        "groff": ["groff", "-man", "-ww", "-Tutf8", str(page)],
    }[program]
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    need(program)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    # A page that is made anew by each release needs no date.
    assert re.sub(r".*: missing date, .*\n", "", done.stderr).count("ING:") == 0, done.stderr
    assert done.returncode == 0 or "missing date" in done.stderr
    assert "imageproxy blocks add" in done.stdout
    assert "\\" not in done.stdout.partition("ENVIRONMENT")[0].replace("\\b", "")


# Completion


ASK = {
    "bash": """
        source {script}
        COMP_WORDS=(imageproxy {words}) COMP_CWORD={last}
        _imageproxy_completion imageproxy
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """,
    # The completion system of zsh runs only in a line editor: what it is given is printed.
    "zsh": """
        compdef() {{ }}
        _describe() {{ print -l -- "${{(@P)3}}" }}
        compadd() {{ print -l -- "${{(@P)@[-1]}}" }}
        words=(imageproxy {words}) CURRENT=$(({last} + 1))
        source {script}
        _imageproxy_completion
    """,
    "fish": """
        source {script}
        complete --do-complete "imageproxy {line}"
    """,
}
RUN = {"bash": ["bash", "--norc"], "zsh": ["zsh", "-f"], "fish": ["fish", "--no-config"]}


@pytest.mark.slow
@pytest.mark.parametrize("shell", list(SHELLS))
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("blo", {"blocks"}),
        ("blocks ba", {"backup"}),
        ("warm --acc", {"--account"}),
        ("url avatar_", {"avatar_small", "avatar_thumbnail"}),
        ("url avatar alice.test c --format we", {"webp"}),
    ],
)
def test_a_shell_completes_what_is_begun(
    shell: str, words: str, expected: set[str], run: Run, tmp_path: Path
) -> None:
    """Catches a script of another program name, and a callback that only tests call."""
    need(shell)
    script = tmp_path / f"imageproxy.{shell}"
    script.write_text(run("completion", shell).stdout)
    found = ASK[shell].format(script=script, words=words, last=len(words.split()), line=words)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*RUN[shell], "-c", found],
        capture_output=True,
        text=True,
        env={"PATH": programs, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
    )
    told = {line.partition("\t")[0].partition(":")[0] for line in done.stdout.split("\n")} - {""}
    assert told == expected, done.stderr

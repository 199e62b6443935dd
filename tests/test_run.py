"""``./run``, with programs that only say how they were called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.processes import ROOT


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a ``./run`` whose virtual environment is complete as it is."""
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    for name, script in {"python": "exit 0", "imageproxy": 'printf "%s\\n" "$PWD" "$@"'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    return {**os.environ, "IMAGEPROXY_VENV": str(tmp_path / "venv")}


@pytest.mark.parametrize(
    ("given", "called"),
    [
        (["serve", "--config", "my own.toml"], ["serve", "--config", "my own.toml"]),
        (["imageproxy", "warm", "list"], ["warm", "list"]),
    ],
)
def test_files_are_those_of_the_folder_that_it_is_called_from(
    given: list[str], called: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Catches a script that goes to its own folder, where ``my own.toml`` is not."""
    done = subprocess.run(
        [ROOT / "run", *given], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, [str(tmp_path), *called])


def test_what_it_does_not_know_is_a_mistake(environment: dict[str, str]) -> None:
    command = [str(ROOT / "run"), "nosuch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "./run imageproxy" in done.stderr


def test_it_says_what_it_does_while_it_installs(environment: dict[str, str]) -> None:
    """Catches twenty silent seconds; and the line at every start."""
    command = [str(ROOT / "run"), "imageproxy"]
    for lines in (1, 0):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert len(done.stderr.splitlines()) == lines
        assert done.stderr.startswith("run: installs what requirements/build.txt"[: 99 * lines])


@pytest.fixture
def gate(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """``.ci/run`` on a machine without any of its programs, and with an ``apt-get`` that says what
    it was asked. There is no ``./run`` beside it, so it ends there."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "id"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    (programs / "apt-get").write_text('#!/usr/bin/bash\necho "apt-get $*"\n')
    (programs / "apt-get").chmod(0o755)
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci/run"
    script.write_bytes((ROOT / ".ci/run").read_bytes())
    return ["/usr/bin/bash", str(script)], {"PATH": str(programs)}


@pytest.mark.parametrize(
    ("options", "more", "installs"),
    [([], {}, False), (["--install"], {}, True), ([], {"CI": "true"}, True)],
)
def test_the_gate_installs_only_where_it_may(
    options: list[str],
    more: dict[str, str],
    installs: bool,
    gate: tuple[list[str], dict[str, str]],
) -> None:
    """Catches a script that installs programs on somebody's desk, without a word."""
    command, environment = gate
    ours, theirs = os.openpty()  # somebody sits at a terminal
    try:
        done = subprocess.run(
            [*command, *options],
            env={**environment, **more},
            stdin=theirs,
            capture_output=True,
            text=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode != 0
    assert "chromium" in done.stderr
    assert ("apt-get install" in done.stdout) is installs
    assert ("--install (as root)" in done.stderr) is not installs


@pytest.mark.skipif(os.getuid() != 0, reason="as root alone")
def test_the_gate_installs_for_root_without_a_terminal(
    gate: tuple[list[str], dict[str, str]],
) -> None:
    """Catches a gate that fails on a new machine whose environment does not say that it is a CI."""
    command, environment = gate
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert "installs what is missing" in done.stderr
    assert "apt-get install" in done.stdout

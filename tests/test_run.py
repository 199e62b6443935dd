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

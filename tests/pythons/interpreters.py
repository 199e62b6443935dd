"""Which Pythons pyproject.toml names, and where each is on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from tests.processes import ROOT


def named() -> list[str]:
    """The versions that pyproject.toml says were tested, oldest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pattern = re.compile(r"Programming Language :: Python :: (3\.\d+)")
    found = [match[1] for each in project["classifiers"] if (match := pattern.fullmatch(each))]
    return sorted(found, key=lambda version: int(version.split(".")[1]))


def interpreter(version: str) -> str | None:
    """The path of one on this machine, pyenv's included; None where there is none."""
    names = (f"python{version}", *_found_by_pyenv(version))
    paths = (shutil.which(name) for name in names)
    return next((path for path in paths if path and _says(path, version)), None)


def _found_by_pyenv(version: str) -> list[str]:
    """Where pyenv keeps those that are not the current one."""
    folder = Path.home() / ".pyenv/versions"
    return [str(path / "bin/python") for path in sorted(folder.glob(f"{version}.*"))]


def _says(path: str, version: str) -> bool:
    """Whether an interpreter runs, and is that version."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() == version

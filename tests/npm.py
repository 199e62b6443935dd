"""What tests need from npm: installed once for each content of a lock file."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.processes import cache_folder
from tests.required import skip_unless_required


def need_npm() -> None:
    """Skip the test that runs where there is no Node.js with npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        skip_unless_required("no Node.js with npm here; on Debian: apt install nodejs npm")


def installed(source: Path, name: str) -> Path:
    """The folder with the ``node_modules`` of the ``package-lock.json`` in ``source``.

    Processes that need it at the same time wait for the one that installs.
    """
    digest = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()
    folder = cache_folder() / f"{name}-{digest[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=partial, check=True, capture_output=True)
            partial.rename(folder)
    return folder

"""The tests on every Python that pyproject.toml names, and on the lowest versions it declares.

    ./run pythons [NAME...]

A name is a version, or "lowest"; without names, all of them. The oldest and the newest Python run
the whole suite, the others the quick round. So do the lowest versions of all that is declared, on
the oldest Python. A Python that this machine lacks is taken from the Debian that has it, installed
into a folder (as root). There, tests of the marks "pds", "node", "browser" and "container" are
left out: they hold other programs to what is sent, on the oldest Python. A name of which a test
failed, or which cannot be run, makes the exit code 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from tests.deployed.debian import checkout, copy_of_base, output, run
from tests.processes import ROOT, cache_folder
from tests.pythons.interpreters import interpreter, named
from tests.required import VARIABLE

LOWEST = "lowest"

DEBIANS = {"3.11": "bookworm", "3.13": "trixie", "3.14": "forky"}
"""The release that has a Python; none has 3.12."""

PACKAGES = ("ca-certificates", "python3", "python3-venv", "python3-dev", "gcc", "git", "procps",
            "curl", "nginx-light", "prometheus", "caddy", "haproxy", "docker-compose", "systemd",
            "sqlite3", "postgresql", "zsh", "fish", "mandoc", "man-db", "groff",
            "tinyproxy-bin")  # fmt: skip

_WHOLE = (named()[0], named()[-1])

LEFT_OUT_THERE = "not pds and not node and not browser and not container"

ENTER = """
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount --rbind /sys "$1/sys"
root=$1 && shift
chroot "$root" env -i "$@" || exit $?
"""
"""Runs in namespaces of its own: what it mounts goes with it.

Without ``exec``: the tests must not be process 1, which is sent no signals and inherits orphans.
"""


class Unavailable(Exception):
    """A Python cannot be had here; the message says why, and what to do."""


def main(names: Sequence[str]) -> int:
    """Run the tests of these names, or of all; the exit code."""
    # Where programs for root are, which is not on every PATH.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    known = [*named(), LOWEST]
    if unknown := set(names) - set(known):
        print(f"pythons: no {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    # The whole suite first. Each keeps one processor busy: two at once.
    wanted = sorted(names or known, key=lambda name: name not in _WHOLE)
    with ThreadPoolExecutor(max_workers=2) as threads:
        codes = dict(zip(wanted, threads.map(run_and_tell, wanted), strict=True))
    failed = [name for name, code in codes.items() if code]
    print(f"pythons: failed: {', '.join(failed)}" if failed else "pythons: all passed", flush=True)
    return 1 if failed else 0


def run_and_tell(name: str) -> int:
    """Run the tests of one name; what they print comes at their end, in one piece."""
    print(f"pythons: {name} begins", flush=True)
    with tempfile.TemporaryFile("w+") as told:
        try:
            code = lowest(told) if name == LOWEST else tests_on(name, told)
        except (Unavailable, OSError, subprocess.CalledProcessError) as error:
            notes = getattr(error, "__notes__", [])
            print(error, *notes, sep="\n", file=told)
            code = 1
        told.seek(0)
        print(told.read(), f"pythons: {name} {'failed' if code else 'passed'}", flush=True)
    return code


def tests_on(version: str, told: TextIO) -> int:
    """The exit code of the tests on a Python, from wherever it can be had."""
    options = [] if version in _WHOLE else ["--quick"]
    python = interpreter(version)
    if python is None:
        return tests_in_debian(version, options, told)
    return run_tests(environment_of(python, version), options, told)


def environment_of(python: str, name: str) -> Path:
    """A virtual environment that is kept for the next time; ``./run`` installs into it."""
    made = cache_folder() / f"python-{name}"
    if not (made / "bin/pip").exists():
        subprocess.run([python, "-m", "venv", "--clear", made], check=True)
    return made


def run_tests(environment: Path, options: Sequence[str], told: TextIO) -> int:
    """The exit code of ``./run test`` in a virtual environment."""
    variables = {**os.environ, VARIABLE: "1", "IMAGEPROXY_VENV": str(environment)}
    command = [str(ROOT / "run"), "test", *options]
    return code_of(command, told, env=variables)


def code_of(command: Sequence[str], told: TextIO, **options: Any) -> int:
    """The exit code of a command, which writes to ``told``."""
    return subprocess.run(
        command, check=False, stdout=told, stderr=subprocess.STDOUT, **options
    ).returncode


def tests_in_debian(version: str, options: Sequence[str], told: TextIO) -> int:
    """The exit code of ``./run test`` in a copy of this checkout, in a Debian in a folder."""
    if version not in DEBIANS:
        raise Unavailable(
            f"Python {version} is not on this machine, and no Debian has it: install it,"
            f' as by "pyenv install {version}"'
        )
    if os.geteuid() != 0:
        raise Unavailable(f"Python {version} is not on this machine; as root it comes from Debian")
    with tempfile.TemporaryDirectory() as folder:
        root = copy_of_base(Path(folder), DEBIANS[version], PACKAGES)
        # With its history: a test runs an earlier commit.
        run("git", "clone", "--quiet", "--no-checkout", ROOT, root / "src")
        checkout(root / "src")
        trusted = "/etc/ssl/certs/ca-certificates.crt"
        variables = ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
                     "LANG=C.UTF-8", f"PIP_CERT={trusted}", f"SSL_CERT_FILE={trusted}",
                     f"{VARIABLE}=1"]  # fmt: skip
        entering = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER]
        command = ["/src/run", "test", "-m", LEFT_OUT_THERE, *options]
        inside = [*entering, "sh", str(root), *variables, *command]
        return code_of(inside, told)


def lowest(told: TextIO) -> int:
    """The exit code of the quick round on the lowest versions of all that pyproject.toml has."""
    oldest = named()[0]
    python = interpreter(oldest)
    if python is None:
        raise Unavailable(f"the lowest versions need Python {oldest} on this machine")
    environment = environment_of(python, LOWEST)
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
    output(*pip, "--disable-pip-version-check", "uv>=0.8")
    extras = f"-e{ROOT}[cluster,fast,heic,moderation,otel,video]"
    groups = [f"--group={ROOT / 'pyproject.toml'}:{name}" for name in ("build", "dev")]
    output(environment / "bin/uv", "pip", "install", "--quiet", "--resolution=lowest-direct",
           f"--python={environment / 'bin/python'}", *groups, extras)  # fmt: skip
    # Not ./run, which would install what is locked.
    command = [str(environment / "bin/python"), "-m", "pytest", "--quick"]
    return code_of(command, told, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

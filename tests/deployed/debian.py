"""A Debian in a folder, to install into: what a virtual machine boots, and images are built on."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ROOT, cache_folder

SUITE = "trixie"
"""Its Python is 3.13, that of the image."""

PACKAGES = ("ca-certificates", "python3", "python3-venv", "dbus", "systemd-sysv", "initramfs-tools",
            "linux-image-cloud-amd64", "nginx-light", "sqlite3",
            "curl")  # fmt: skip

SCRIPTS = Path("/usr/share/debootstrap/scripts")

PROGRAMS = ("debootstrap", "buildah", "qemu-system-x86_64", "mke2fs", "unshare", "chroot")


def missing() -> str:
    """Why nothing of this can be run here; empty: it can."""
    if os.geteuid() != 0:
        return "it needs root"
    return " ".join(f"{name} is not installed;" for name in PROGRAMS if not shutil.which(name))


def output(*command: str | Path) -> str:
    """What a command writes to standard output.

    Raises:
        subprocess.CalledProcessError: with the end of what it wrote as a note.
    """
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, done.args)
        error.add_note((done.stdout + done.stderr)[-4000:])
        raise error
    return done.stdout.strip()


def run(*command: str | Path) -> None:
    """As ``output``, for what is done and not for what is said."""
    output(*command)


def base(suite: str = SUITE, packages: Sequence[str] = PACKAGES) -> Path:
    """A Debian with ``packages``, made on first use. Nobody changes it: see ``copy_of_base``."""
    key = hashlib.sha256(repr((suite, packages)).encode()).hexdigest()[:16]
    made = cache_folder() / f"debian-{key}"
    if not made.exists():
        building = made.with_suffix(".partial")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}"]
        # Suites newer than debootstrap are installed as the newest that it knows. Empty: from
        # where it takes Debian by default.
        script = [] if (SCRIPTS / suite).exists() else ["", str(SCRIPTS / "sid")]
        run(*command, suite, building, *script)
        shutil.rmtree(building / "var/cache/apt/archives")
        building.rename(made)
    return made


def copy_of_base(folder: Path, suite: str = SUITE, packages: Sequence[str] = PACKAGES) -> Path:
    """A copy to install into, with this machine's resolver and trust store."""
    root = folder / "root"
    run("cp", "-a", base(suite, packages), root)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    trusted = "etc/ssl/certs/ca-certificates.crt"
    shutil.copy(Path("/", trusted), root / trusted)
    return root


@contextmanager
def entered(root: Path) -> Iterator[Sequence[str]]:
    """The beginning of a command that runs the rest of it in ``root``."""
    run("mount", "-t", "proc", "proc", root / "proc")
    try:
        yield ["chroot", str(root), "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    finally:
        run("umount", root / "proc")


def checkout(folder: Path) -> None:
    """The files of this one, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)

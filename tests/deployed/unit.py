"""The unit of ``deploy/``, installed by what its head says, under systemd in a virtual machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.deployed.debian import copy_of_base, entered, run
from tests.deployed.guest import FAILED, PASSED
from tests.processes import ROOT

UNIT = ROOT / "deploy/imageproxy.service"

BOOTS_WITHIN = 600.0
"""Seconds; one to two minutes are usual where nothing else runs."""

GUEST = """\
[Unit]
Wants=imageproxy.service

[Service]
Type=oneshot
WorkingDirectory=/root/checkout
ExecStart=/opt/imageproxy/bin/python -m tests.deployed.guest
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStopPost=/usr/bin/systemctl poweroff
"""


def check(folder: Path) -> None:
    """Fail where it does not install, or does not serve, restart or stop as promised."""
    root = copy_of_base(folder)
    checkout(root / "root/checkout")
    with entered(root) as begin:
        for line in head():
            # There is no systemd to start it yet.
            line = line.replace("enable --now", "enable")
            run(*begin, "sh", "-ec", f"cd /root/checkout && {line}")
        (root / "etc/systemd/system/guest.service").write_text(GUEST)
        wants = root / "etc/systemd/system/multi-user.target.wants"
        (wants / "guest.service").symlink_to("/etc/systemd/system/guest.service")
    (root / "etc/fstab").write_text("/dev/vda / ext4 rw 0 1\n")
    said = boot(root, folder / "disk")
    print("\n".join(line for line in said.splitlines() if line.startswith(("ok ", FAILED))))
    assert PASSED in said, said[-4000:]


def head() -> list[str]:
    """What the unit says to type before it is installed."""
    return re.findall(r"^#   (.*)$", UNIT.read_text(), re.MULTILINE)


def checkout(folder: Path) -> None:
    """The files of this one, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def boot(root: Path, disk: Path) -> str:
    """What a virtual machine with these files writes to its console, until it is off."""
    run("mke2fs", "-q", "-t", "ext4", "-d", root, disk, "3G")
    (kernel,) = root.glob("boot/vmlinuz-*")
    (initial,) = root.glob("boot/initrd.img-*")
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
            *("-m", "2048", "-nographic", "-no-reboot", "-nic", "none"),
            *("-kernel", kernel, "-initrd", initial),
            *("-append", "root=/dev/vda rw console=ttyS0 quiet mitigations=off"),
            *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=BOOTS_WITHIN,
    )
    return (done.stdout + done.stderr).decode(errors="replace").replace("\r", "")

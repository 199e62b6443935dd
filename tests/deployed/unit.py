"""The unit of ``deploy/``, installed by what its head says, under systemd in a virtual machine."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.deployed.debian import checkout, copy_of_base, entered, run
from tests.deployed.guest import FAILED, PASSED
from tests.processes import ROOT

UNIT = ROOT / "deploy/imageproxy.service"

BOOTS_WITHIN = 900.0
"""Seconds; one to two minutes are usual where nothing else runs."""

GUEST = """\
[Unit]
Wants=imageproxy.service
After=imageproxy.service nginx.service

[Service]
Type=oneshot
WorkingDirectory=/root/checkout
Environment=PYTHON_COLORS=0
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
    assert PASSED in said, said[-16000:]


def head() -> list[str]:
    """What the unit says to type before it is installed."""
    return re.findall(r"^#   (.*)$", UNIT.read_text(), re.MULTILINE)


def boot(root: Path, disk: Path) -> str:
    """What a virtual machine with these files writes to its console, until it is off."""
    run("mke2fs", "-q", "-t", "ext4", "-d", root, disk, "3G")
    (kernel,) = root.glob("boot/vmlinuz-*")
    (initial,) = root.glob("boot/initrd.img-*")
    console = disk.with_name("console")
    with console.open("wb") as writing, suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [
                *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
                *("-m", "2048", "-nographic", "-no-reboot", "-nic", "none"),
                *("-kernel", kernel, "-initrd", initial),
                *("-append", "root=/dev/vda rw console=ttyS0 quiet mitigations=off"),
                *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=BOOTS_WITHIN,
        )
    return console.read_text(errors="replace").replace("\r", "")

"""What this process may use of its machine: CPUs and memory, as its control groups limit them.

Of nested groups each limits what is below it, so the smallest limit along the path holds
(cgroups(7)). Everything here takes the root of a file system, which is another folder in tests.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")

UNIFIED = ("", "unified")
"""Where version 2 is mounted below ``/sys/fs/cgroup``: alone, or beside version 1."""


def cpus_of_this_process(root: Path = ROOT) -> int:
    """How many CPUs this process may use, at least 1; a part of one counts as one.

    The least of its affinity mask, which shows cpusets too, and of the quota of its groups.
    """
    quota = cpu_quota(root)
    return cpus_allowed() if quota is None else max(min(cpus_allowed(), math.ceil(quota)), 1)


def cpus_allowed() -> int:
    """How many CPUs of the machine this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = ROOT) -> float | None:
    """The CPU seconds a second that the control groups allow; None: no limit."""
    return min((each for each in _quotas(root) if each is not None), default=None)


def memory_of_machine() -> int:
    """The bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def boot_of_machine(root: Path = ROOT) -> str:
    """What no two starts of the machine have in common; empty if it does not tell (random(4))."""
    return _read(root / "proc/sys/kernel/random/boot_id")


def memory_limit(root: Path = ROOT) -> int | None:
    """The bytes of memory that the control groups allow; None: no less than the machine has."""
    least = min((each for each in _memory_limits(root) if each is not None), default=None)
    # Version 1 writes a number beyond all memory where there is no limit.
    return least if least is not None and least < memory_of_machine() else None


def memory_of_this_process(root: Path = ROOT) -> int:
    """The bytes of memory that this process may use, at most the machine's."""
    limit = memory_limit(root)
    return memory_of_machine() if limit is None else limit


def quota_of(quota: str, period: str) -> float | None:
    """CPUs of a quota and a period in microseconds. None for ``max``, -1 and what is no number."""
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None


def bytes_of(text: str) -> int | None:
    """A limit in bytes. None for ``max``, -1 and what is no number."""
    return int(text) if text.isdecimal() else None


def _quotas(root: Path) -> Iterator[float | None]:
    for group, version in _groups(root, "cpu"):
        if version == 2:
            quota, _, period = _read(group / "cpu.max").partition(" ")
        else:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        yield quota_of(quota, period)


def _memory_limits(root: Path) -> Iterator[int | None]:
    for group, version in _groups(root, "memory"):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        yield bytes_of(_read(group / name))


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The groups of this process, from its own up to the root, each with its version.

    A container sees its own group as the root of the mount, whatever the path says.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        if not controllers:
            mounts, version = UNIFIED, 2
        elif controller in controllers.split(","):
            mounts, version = (controllers, controller), 1
        else:
            continue
        for mount in dict.fromkeys(mounts):
            for folder in (PurePosixPath(group), *PurePosixPath(group).parents):
                yield root / "sys/fs/cgroup" / mount / str(folder).lstrip("/"), version


def _read(file: Path) -> str:
    """The text of a file without white space around it; empty if it cannot be read."""
    try:
        return os.fsdecode(file.read_bytes()).strip()
    except (OSError, ValueError):
        return ""

"""What control groups allow, read from made files of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.shared.machine import (
    boot_of_machine,
    bytes_of,
    cpu_quota,
    cpus_allowed,
    cpus_of_this_process,
    memory_limit,
    memory_of_machine,
    memory_of_this_process,
    quota_of,
)

MIB = 1 << 20
HUGE = "9223372036854771712"
"""What version 1 writes where there is no limit."""


def made(root: Path, lines: str, files: dict[str, str]) -> Path:
    """A root with the groups of a process, and files below ``/sys/fs/cgroup``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


def version_1(quota: int, *path: str, mount: str = "cpu") -> dict[str, str]:
    folder = "/".join((mount, *path))
    return {
        f"{folder}/cpu.cfs_quota_us": str(quota),
        f"{folder}/cpu.cfs_period_us": "100000",
    }


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "300000 100000"}, 1),
        ("0::/not/to/be/seen\n", {"cpu.max": "200000 100000"}, 2),
        ("4:memory:/a\n2:cpu,cpuacct:/a\n", version_1(-1, "a"), None),
        ("2:cpu,cpuacct:/a\n", version_1(250000, "a"), 2.5),
        ("2:cpu,cpuacct:/a\n", version_1(250000, "a", mount="cpu,cpuacct"), 2.5),
        ("2:cpu:/a/b\n", {**version_1(-1, "a", "b"), **version_1(100000, "a")}, 1),
        ("2:cpu:/docker/0123\n", version_1(100000), 1),
        ("2:cpu:/\n0::/\n", {"unified/cpu.max": "100000 100000"}, 1),
        ("2:cpuset:/a\n", version_1(100000, "a", mount="cpuset"), None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("nonsense\n\n0::/\n", {"cpu.max": ""}, None),
    ],
    ids=[
        "no file",
        "max",
        "its own",
        "its parent's",
        "the least of both",
        "of a container",
        "version 1, none",
        "version 1",
        "version 1, by both names",
        "version 1, its parent's",
        "version 1, of a container",
        "both versions",
        "another controller",
        "no period",
        "nonsense",
    ],
)
def test_the_quota_is_the_smallest_along_the_path(
    lines: str, files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    """Catches a limit of one version, or of an outer group, that nobody reads."""
    assert cpu_quota(made(tmp_path, lines, files)) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [(1, 1), (100_000, 1), (100_001, 2), (10_000_000_000, None)]
)
def test_a_part_of_a_cpu_counts_as_one_and_never_more_than_the_process_may_run_on(
    quota: int, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches no threads for half a CPU, and more threads than CPUs for a large quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    root = made(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000"})
    assert cpus_of_this_process(root) == (expected or 3)
    assert cpus_allowed() == 3


def test_without_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    """Catches a start that fails where there are no control groups."""
    assert cpu_quota(tmp_path) is None
    assert cpus_of_this_process(tmp_path) == cpus_allowed() >= 1
    assert memory_limit(tmp_path) is None
    assert memory_of_this_process(tmp_path) == memory_of_machine()


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/s/p.service\n", {"s/p.service/memory.max": str(512 * MIB)}, 512),
        ("0::/s/p.service\n", {"s/memory.max": str(256 * MIB), "memory.max": "max"}, 256),
        (
            "0::/a/b\n",
            {"a/memory.max": str(256 * MIB), "a/b/memory.max": str(512 * MIB)},
            256,
        ),
        (
            "4:memory:/a\n2:cpu:/a\n",
            {"memory/a/memory.limit_in_bytes": str(128 * MIB)},
            128,
        ),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": HUGE}, None),
        ("4:memory:/docker/0123\n", {"memory/memory.limit_in_bytes": str(64 * MIB)}, 64),
    ],
    ids=[
        "no file",
        "max",
        "its own",
        "its parent's",
        "the least of both",
        "version 1",
        "version 1, none",
        "version 1, of a container",
    ],
)
def test_the_memory_of_a_control_group_counts_not_only_that_of_the_machine(
    lines: str, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    """Catches a container of half a gigabyte that is told that it has the host's memory."""
    root = made(tmp_path, lines, files)
    limit = None if expected is None else expected * MIB
    assert memory_limit(root) == limit
    assert memory_of_this_process(root) == (limit or memory_of_machine())


@pytest.mark.parametrize("text", ["", "max", "-1", "1.5", "0x10", "²"])
def test_what_is_no_number_is_no_limit(text: str) -> None:
    """Catches a file of a later kernel that stops the start."""
    assert bytes_of(text) is None
    assert quota_of(text, "100000") is None
    assert quota_of("100000", text) is None


def test_a_start_of_the_machine_has_a_name_and_none_where_there_is_no_such_file(
    tmp_path: Path,
) -> None:
    """Catches a name that differs at each look, which would have each index made anew."""
    assert boot_of_machine() == boot_of_machine() != ""
    assert boot_of_machine(tmp_path) == ""

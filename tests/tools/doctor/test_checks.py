"""What is judged how, and that nobody is told of a fault without its fix."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from proxy.config import Config
from proxy.shared.binary_size import GIB
from proxy.tools.doctor.checks import (
    AccessTimes,
    Finding,
    failed,
    files_needed,
    judge_access_times,
    judge_blocks,
    judge_clock,
    judge_cpus,
    judge_directory,
    judge_dns,
    judge_files,
    judge_folder,
    judge_index,
    judge_memory,
    judge_owner,
    judge_room,
    judge_sandbox,
    lacks_room,
)
from proxy.tools.doctor.memory_ceiling import ceiling
from proxy.web.open_connections import MAX_CONNECTIONS


def config(**sections: dict[str, Any]) -> Config:
    return Config.model_validate(sections)


def told(finding: Finding) -> str:
    """The level of a finding that is complete: what is not well comes with a fix."""
    assert (finding.fix == "") == (finding.level == "ok")
    assert finding.text
    return finding.level


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (errno.EACCES, "give it to the user"),
        (errno.ENOTDIR, "set cache.path to another"),
        (errno.EROFS, "mount"),
        (errno.ENOSPC, "cache cleanup"),
        (errno.EDQUOT, "cache cleanup"),
    ],
)
def test_a_folder_that_cannot_be_written_fails_with_its_path_its_reason_and_a_fix_for_it(
    code: int, fix: str
) -> None:
    """Catches a full disk whose folder is to be given to another user."""
    for inside in (None, "/srv/cache/processes"):
        error = OSError(code, os.strerror(code), inside)
        finding = judge_folder("/srv/cache", error)
        assert told(finding) == "fail"
        assert finding.text == f"{inside or '/srv/cache'}: {os.strerror(code)}"
        assert fix in finding.fix
        assert lacks_room(error) == (code in (errno.ENOSPC, errno.EDQUOT))


def test_a_folder_that_is_not_there_may_be_the_wrong_one() -> None:
    """Catches an "ok" for a folder that no server will look at."""
    assert told(judge_folder("/srv/cache", None)) == "ok"
    finding = judge_folder("/srv/cache", None, is_there=False)
    assert told(finding) == "warn"
    assert "--config" in finding.fix


def test_root_is_told_that_it_cannot_judge_for_another_user() -> None:
    finding = judge_owner("/srv/cache", "imageproxy")
    assert told(finding) == "warn"
    assert "imageproxy" in finding.fix


@pytest.mark.parametrize("judge", [judge_blocks, judge_index])
def test_an_unusable_database_fails_and_a_missing_one_does_not(judge: Any) -> None:
    for is_there in (False, True):
        assert told(judge("/srv/cache/x", None, is_there=is_there)) == "ok"
    finding = judge("/srv/cache/x", "/srv/cache/x: damaged", is_there=True)
    assert told(finding) == "fail"
    assert "/srv/cache/x: damaged" in finding.text


@pytest.mark.parametrize(
    ("free", "kept", "level"),
    [(10, 0, "ok"), (0, 10, "ok"), (4, 6, "ok"), (4, 5, "warn"), (0, 0, "warn")],
)
def test_what_the_cache_already_keeps_counts_as_its_room(free: int, kept: int, level: str) -> None:
    """Catches a warning about every cache that is full, as it should be."""
    assert told(judge_room(free * GIB, kept * GIB, 10 * GIB)) == level


def test_the_fix_for_a_small_disk_is_a_limit_that_then_passes() -> None:
    finding = judge_room(int(7.99 * GIB), 0, 10 * GIB)
    assert "cache.max_gb below 7.9" in finding.fix
    assert told(judge_room(int(7.99 * GIB), 0, int(7.9 * GIB))) == "ok"


def test_the_fix_for_a_full_disk_is_not_a_limit_of_0() -> None:
    """Catches "set cache.max_gb below 0", which the configuration refuses."""
    finding = judge_room(GIB // 20, 0, 10 * GIB)
    assert told(finding) == "warn"
    assert "max_gb" not in finding.fix


@pytest.mark.parametrize(
    ("skew", "level"),
    [(0, "ok"), (-30, "ok"), (31, "warn"), (-31, "warn"), (301, "fail"), (-301, "fail")],
)
def test_a_clock_is_wrong_in_both_directions(skew: float, level: str) -> None:
    """Catches a comparison without the absolute value."""
    assert told(judge_clock(skew)) == level


def test_a_clock_that_could_not_be_compared_is_not_called_right() -> None:
    assert told(judge_clock(None)) == "warn"


@pytest.mark.parametrize(("error", "level"), [(None, "ok"), ("unknown name", "fail")])
def test_a_name_that_does_not_resolve_fails(error: str | None, level: str) -> None:
    assert told(judge_dns("plc.example", error)) == level


@pytest.mark.parametrize(
    ("status", "level"),
    [(200, "ok"), (404, "ok"), (429, "fail"), (500, "fail"), (503, "fail"), (None, "fail")],
)
def test_a_directory_of_another_make_may_not_know_the_path_but_must_answer(
    status: int | None, level: str
) -> None:
    assert told(judge_directory("https://plc.example", status, "refused")) == level


@pytest.mark.parametrize(
    ("isolation", "missing", "error", "level"),
    [
        ("sandbox", (), None, "ok"),
        ("sandbox", ("seccomp (no)",), None, "warn"),
        ("sandbox", (), "SIGKILL", "fail"),
        ("thread", (), None, "warn"),
    ],
)
def test_a_sandbox_with_parts_missing_is_told_and_one_that_does_not_start_fails(
    isolation: str, missing: tuple[str, ...], error: str | None, level: str
) -> None:
    finding = judge_sandbox(isolation, missing, error)
    assert told(finding) == level
    assert all(part in finding.text for part in missing)


@pytest.mark.parametrize(
    ("found", "level"), [("strictatime", "ok"), ("relatime", "ok"), ("noatime", "warn")]
)
def test_a_mount_that_notes_no_reads_is_told(found: AccessTimes, level: str) -> None:
    assert told(judge_access_times(found)) == level


def test_files_are_judged_by_the_configuration_and_not_by_a_constant() -> None:
    few = files_needed(config(fetch={"workers": 1, "per_host": 1}, process={"threads": 1}), 64)
    many = files_needed(config(fetch={"workers": 1000, "per_host": 1}, process={"threads": 1}), 64)
    # Blobs, handles and the documents of did:web have as many consumers each; videos at most four.
    assert many - few == 3 * 999 + 3
    # By processor where the configuration leaves it to the machine.
    assert files_needed(config(), 64) - files_needed(config(), 1) == 2 * 63
    assert told(judge_files(many + MAX_CONNECTIONS, many)) == "ok"
    assert told(judge_files(many + MAX_CONNECTIONS - 1, many)) == "warn"
    assert told(judge_files(many, many)) == "fail"


def test_the_ordinary_limit_of_a_login_is_told_for_the_default_configuration() -> None:
    """Catches a check that finds 1024 enough for a thousand clients and everything else."""
    assert told(judge_files(1024, files_needed(Config(), 2))) == "warn"


def test_cpus_are_told_with_the_quota_and_more_threads_than_cpus_are_a_warning() -> None:
    """Catches a container whose quota is not told, and 64 threads on the two CPUs that it has."""
    found = judge_cpus(0, allowed=64, quota=1.5, cpus=2)
    assert told(found) == "ok"
    assert "2 transforms" in found.text
    assert "64 CPUs" in found.text
    assert "1.5" in found.text
    assert told(judge_cpus(64, allowed=64, quota=1.5, cpus=2)) == "warn"
    assert "control group" not in judge_cpus(0, allowed=4, quota=None, cpus=4).text


def test_little_memory_is_not_told_as_none() -> None:
    """Catches "0.0 GiB" for a cache of 10 MB."""
    assert "0.01 GiB" in judge_room(free=12 << 20, kept=0, limit=10 << 20).text


def test_a_budget_of_transforms_that_memory_cuts_is_told() -> None:
    """Catches a picture that fails in a small container, with no word of why."""
    finding = judge_memory(Config(), 2, 2 * GIB)
    assert told(finding) == "warn"
    assert "transforms get 1.4" in finding.text
    assert "transforms" not in judge_memory(Config(), 2, 64 * GIB).text


def test_memory_is_judged_for_all_processes_together() -> None:
    one, two = config(server={"workers": 1}), config(server={"workers": 2})
    most = ceiling(one, 2)
    assert told(judge_memory(one, 2, most)) == "ok"
    assert told(judge_memory(one, 2, most - 1)) == "warn"
    assert told(judge_memory(two, 2, most)) == "warn"
    assert told(judge_memory(one, 2, GIB // 4)) == "fail"


def test_a_warning_does_not_fail_the_whole_and_a_failure_does() -> None:
    warning, failure = judge_clock(None), judge_dns("plc.example", "no")
    assert not failed([warning])
    assert failed([warning, failure])
    assert not failed([])

"""What the seccomp profiles of container runtimes leave of the sandbox, and that doctor says so."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.container_profile import DEFAULT, LIBRARY
from tests.processes import ROOT
from tests.required import skip_unless_required

pytestmark = pytest.mark.container

Profile = dict[str, Any]


@pytest.fixture
def profile() -> Profile:
    """That of containers-common."""
    try:
        ctypes.CDLL(LIBRARY)
        found: Profile = json.loads(DEFAULT.read_text())
    except OSError as error:
        skip_unless_required(f"no profile or no libseccomp here: {error}")
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the sandbox has no filter for this machine")
    return found


@pytest.fixture
def sandbox(tmp_path: Path) -> Callable[[Profile | None], str]:
    """What doctor says of the sandbox under a profile, or under none."""

    def found(profile: Profile | None) -> str:
        command = [sys.executable, "-m", "proxy", "doctor", "--json"]
        if profile is not None:
            file = tmp_path / "profile.json"
            file.write_text(json.dumps(profile))
            command = [sys.executable, "-m", "tests.container_profile", str(file), *command]
        environment = {
            **os.environ,
            "IMAGE_PROXY_CACHE__PATH": str(tmp_path),
            "IMAGE_PROXY_IDENTITY__PLC_URL": "http://127.0.0.1:9",
        }
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        findings = [json.loads(line) for line in done.stdout.splitlines()]
        assert findings, done.stderr
        (text,) = (each["text"] for each in findings if each["name"] == "sandbox")
        return str(text)

    return found


def without(profile: Profile, *names: str) -> Profile:
    """A profile that does not allow some system calls."""
    rules = [
        {**rule, "names": [name for name in rule["names"] if name not in names]}
        for rule in profile["syscalls"]
    ]
    return {**profile, "syscalls": rules}


def test_the_default_profile_of_containers_takes_nothing_from_the_sandbox(
    profile: Profile, sandbox: Callable[[Profile | None], str]
) -> None:
    """Catches a part that needs a system call which containers are not given."""
    assert sandbox(profile) == sandbox(None)


def test_doctor_names_the_parts_that_a_stricter_profile_takes_away(
    profile: Profile, sandbox: Callable[[Profile | None], str]
) -> None:
    """Catches a sandbox that passes for whole where the runtime refuses what it is made of."""
    landlock = ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")
    found = sandbox(without(profile, "unshare", *landlock))
    for part in ("thread limit", "Landlock for files", "Landlock for TCP", "Landlock for signals"):
        assert part in found

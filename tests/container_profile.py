"""Runs a command under a seccomp profile of containers, as a container runtime would apply it.

    python -m tests.container_profile PROFILE COMMAND...

PROFILE is in the format of containers-common and Docker. Its rules for capabilities are left out:
the containers that we describe have none.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

DEFAULT = Path("/usr/share/containers/seccomp.json")
"""Of containers-common: what Podman, CRI-O and Buildah confine containers with (RuntimeDefault)."""

LIBRARY = "libseccomp.so.2"

# seccomp.h of libseccomp.
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_COMPARISONS = ("", "NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_SET_NO_NEW_PRIVS = 38

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("other", ctypes.c_uint64),
    )


def apply(profile: dict[str, Any]) -> None:
    """Confine this process for good; OSError where that fails."""
    library = ctypes.CDLL(LIBRARY)
    library.seccomp_init.restype = ctypes.c_void_p
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    for rule in profile["syscalls"]:
        action = _action(rule["action"], rule.get("errnoRet"))
        if action == default or not _applies(rule):
            continue
        wanted = [_comparison(each) for each in rule.get("args") or ()]
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number >= 0:  # else it is of another architecture
                comparisons = (_Comparison * len(wanted))(*wanted)
                code = library.seccomp_rule_add_array(
                    context, ctypes.c_uint32(action), number, len(wanted), comparisons
                )
                _check(code)
    ctypes.CDLL(None).prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _check(library.seccomp_load(context))


def _check(code: int) -> None:
    if code < 0:
        raise OSError(-code, os.strerror(-code))


def _action(name: str, number: int | None) -> int:
    if name == "SCMP_ACT_ALLOW":
        return _ALLOW
    assert name == "SCMP_ACT_ERRNO", name
    return _ERRNO | (errno.EPERM if number is None else number)


def _applies(rule: dict[str, Any]) -> bool:
    """Whether a rule is for this architecture, and for a container without capabilities."""
    architecture = _ARCHITECTURES[platform.machine()]
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    here = architecture in (includes.get("arches") or (architecture,))
    return here and not includes.get("caps") and architecture not in (excludes.get("arches") or ())


def _comparison(given: dict[str, Any]) -> _Comparison:
    operator = _COMPARISONS.index(given["op"].removeprefix("SCMP_CMP_"))
    return _Comparison(given["index"], operator, given["value"], given.get("valueTwo", 0))


def main() -> None:
    """Become the command."""
    file, *command = sys.argv[1:]
    apply(json.loads(Path(file).read_text()))
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()

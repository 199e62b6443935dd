"""The sandbox of a worker: it gives up files, network, processes and memory before its first job.

Each part works alone: if the platform lacks one, the others still apply, and the caller gets its
name. Numbers and layouts are from the kernel's headers, which are named beside them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one worker over its whole life.

    Attributes:
        memory: bytes of private memory in addition to what the process already has.
        cpu: seconds of CPU time.
        threads: threads that may run beside the first one.
    """

    memory: int
    cpu: int
    threads: int = 0


def confine(limits: Limits) -> list[str]:
    """Give up, permanently, every right that is not needed to transform a picture.

    Call it in a process with one thread, after all imports: no file can be opened afterwards.

    Returns:
        The parts that this platform lacks, each with the reason; empty if all apply.
    """
    missing: list[str] = []
    for name, part in _PARTS.items():
        try:
            part(limits)
        except OSError as error:
            missing.append(f"{name} ({error.strerror})")
    return missing


def data_size() -> int:
    """Return the bytes of private memory of this process, as RLIMIT_DATA counts them."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


def _limit_memory(limits: Limits) -> None:
    _require_linux()  # macOS accepts RLIMIT_DATA but does not enforce it
    size = data_size() + limits.memory
    # Not RLIMIT_AS: it also counts mapped files, and address space that is reserved but unused.
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


_STACK = 8 << 20
"""Bytes, what Linux sets by default. RLIMIT_DATA does not count the stack."""


def _limit_rest(limits: Limits) -> None:
    bounds = {
        resource.RLIMIT_STACK: _STACK,
        resource.RLIMIT_CPU: limits.cpu,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,  # a core file would contain users' pictures
        resource.RLIMIT_NOFILE: 0,  # files that are already open stay open
    }
    for kind, bound in bounds.items():
        _lower(kind, bound)


def _lower(kind: int, bound: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        bound = min(bound, hard)
    resource.setrlimit(kind, (bound, bound))


_NEW_USER_NAMESPACE = 0x10000000  # CLONE_NEWUSER, linux/sched.h


def _limit_threads(limits: Limits) -> None:
    """Bound the threads of this process, where it may have any: else seccomp refuses them all.

    RLIMIT_NPROC counts the threads of a user. In a user namespace of its own the process is alone
    in that count. Before Linux 5.14 it was not, and the limit could refuse every thread.
    """
    if limits.threads == 0:
        return
    if not has_count_by_namespace(os.uname().release):
        raise OSError(errno.EOPNOTSUPP, "Linux 5.14 is needed")
    is_root = os.getuid() == 0  # in the namespace nobody is
    _libc_call("unshare", _NEW_USER_NAMESPACE)
    _lower(resource.RLIMIT_NPROC, 1 + limits.threads)
    if is_root:
        raise OSError(errno.EPERM, "the kernel does not count root's threads")


def has_count_by_namespace(release: str) -> bool:
    """Whether a kernel of this release ("6.1.0-13-amd64") counts threads by user namespace."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is not None and tuple(map(int, numbers.groups())) >= (5, 14)


class _CapabilityHeader(ctypes.Structure):
    """struct __user_cap_header_struct (linux/capability.h); process 0 is the calling one."""

    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


_CAPABILITY_VERSION_3 = 0x20080522


def _drop_capabilities(_: Limits) -> None:
    """Give up root's capabilities, and those that a new user namespace brought."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()  # two struct __user_cap_data_struct
    _libc_call("capset", ctypes.byref(header), none)


# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def _forbid_new_privileges(_: Limits) -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _end_with_parent(_: Limits) -> None:
    """Have the kernel kill this process when its parent ends, which alone can wait for it."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _hide_memory(_: Limits) -> None:
    """Forbid other processes of this user to attach to this one, or to read its /proc/PID/mem."""
    _prctl(_PR_SET_DUMPABLE, 0)


# Landlock (linux/landlock.h). Its system call numbers are the same on every architecture.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # rights by ABI; 16 from ABI 5 on
_NET_BIND_TCP, _NET_CONNECT_TCP = 1, 2  # ABI 4
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2  # ABI 6


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr; older kernels accept a prefix of it."""

    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def _landlock_files(_: Limits) -> None:
    """Handle every right that the kernel's version of Landlock knows, and grant none of them."""
    abi = _syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    rules = _Ruleset(handled_access_fs=(1 << _FS_BITS.get(abi, 16)) - 1)
    size = 8
    if abi >= 4:
        rules.handled_access_net = _NET_BIND_TCP | _NET_CONNECT_TCP
        size = 16
    if abi >= 6:
        rules.scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL
        size = 24
    ruleset = _syscall(_CREATE_RULESET, ctypes.byref(rules), size, 0)
    try:
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _landlock_network(_: Limits) -> None:
    _require_abi(4)


def _landlock_scopes(_: Limits) -> None:
    _require_abi(6)


def _require_abi(least: int) -> None:
    abi = _syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    if abi < least:
        raise OSError(errno.EOPNOTSUPP, f"ABI {abi} of the kernel, {least} is needed")


# Classic BPF (linux/bpf_common.h, linux/filter.h) over struct seccomp_data (linux/seccomp.h).
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ANY, _RETURN = 0x20, 0x15, 0x45, 0x06
_AT_CALL, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_SET_MODE_FILTER, _FILTER_FLAG_TSYNC, _FILTER_FLAG_SPEC_ALLOW = 1, 1, 4

# asm-generic/mman-common.h, asm-generic/mman.h
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MAP_FLAGS = 0x02 | 0x20 | 0x4000 | 0x20000
"""PRIVATE, ANONYMOUS, NORESERVE, STACK: what allocators and threads use. RLIMIT_DATA counts neither
shared mappings nor those that grow downwards."""


@dataclass(frozen=True, slots=True)
class _Machine:
    """An architecture: its AUDIT_ARCH (linux/audit.h), and its column of ``_CALLS``."""

    audit: int
    column: int
    seccomp: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 0, 317),
    "aarch64": _Machine(0xC00000B7, 1, 277),
}

# asm/unistd_64.h of x86_64, asm-generic/unistd.h; the most frequent calls first.
_CALLS = {
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "munmap": (11, 215),
    "brk": (12, 214),
    "madvise": (28, 233),
    "futex": (202, 98),
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "sched_yield": (24, 124),
    "getrandom": (318, 278),
    "rt_sigprocmask": (14, 135),
    "rt_sigaction": (13, 134),
    "rt_sigreturn": (15, 139),
    "restart_syscall": (219, 128),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "getcwd": (79, 17),  # Pillow calls it, though it saves to no file; it returns "/"
}
_MMAP, _MPROTECT, _TGKILL = (9, 222), (10, 226), (234, 131)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_CLONE_THREAD = 0x00010000  # linux/sched.h


class _Instruction(ctypes.Structure):
    """struct sock_filter"""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def _forbid_calls(limits: Limits) -> None:
    """Allow ``_CALLS``, and some calls by their arguments. Others fail with EPERM.

    Libraries can handle that error. ``mremap`` is not among them: RLIMIT_DATA does not count a
    stack that it enlarges, and libc copies instead.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.EOPNOTSUPP, f"no table of calls for {platform.machine()}")
    instructions = _filter(machine, threads=limits.threads > 0)
    array = (_Instruction * len(instructions))(*instructions)
    program = _Program(len(instructions), array)
    if limits.threads:
        _make_first_stack()
    # Without SPEC_ALLOW, kernels before 5.16 slow down every filtered process, to prevent
    # speculative side channels.
    flags = _FILTER_FLAG_TSYNC | _FILTER_FLAG_SPEC_ALLOW
    _syscall(machine.seccomp, _SET_MODE_FILTER, flags, ctypes.byref(program))


def _make_first_stack() -> None:
    """Start a thread and wait for its end.

    With the first one, glibc 2.42 tries how the kernel protects the end of a stack. On Linux before
    6.13 that takes a call that the filter refuses, and the first HEIC would not decode.
    """
    thread = threading.Thread(target=int)
    with suppress(RuntimeError):  # the user has too many already; later there may be fewer
        thread.start()
        thread.join()


def _filter(machine: _Machine, *, threads: bool) -> list[_Instruction]:
    column = machine.column
    refuse = _Instruction(_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = _Instruction(_RETURN, 0, 0, _ALLOW)

    # Only the low half of an argument is tested: the kernel uses 32 bits of all of these.
    def load(argument: int) -> _Instruction:
        return _Instruction(_LOAD, 0, 0, _AT_ARGUMENTS + 8 * argument)

    def only(bits: int) -> list[_Instruction]:
        return [_Instruction(_JUMP_IF_ANY, 0, 1, 0xFFFFFFFF & ~bits), refuse]

    # Memory must be writable, because RLIMIT_DATA counts no other: pages that were written and
    # then made read-only would stay, uncounted.
    writable = [
        load(2),
        *only(_PROT_READ | _PROT_WRITE),
        _Instruction(_JUMP_IF_ANY, 0, 1, _PROT_WRITE),
        allow,
        refuse,
    ]
    # Address space without access is reserved by libc for heaps and stacks.
    mapping = [
        load(3),
        *only(_MAP_FLAGS),
        load(2),
        _Instruction(_JUMP_IF_EQUAL, 0, 1, _PROT_NONE),
        allow,
        *writable,
    ]
    new_thread = [
        load(0),
        _Instruction(_JUMP_IF_ANY, 0, 1, _CLONE_THREAD),
        allow if threads else refuse,
        refuse,
    ]
    # abort() sends a signal to its own process.
    signal = [load(0), _Instruction(_JUMP_IF_EQUAL, 0, 1, os.getpid()), allow, refuse]
    # The filter cannot read clone3's flags. After ENOSYS libc uses clone.
    no_such_call = [_Instruction(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]

    def case(call: tuple[int, int], steps: list[_Instruction]) -> list[_Instruction]:
        return [_Instruction(_JUMP_IF_EQUAL, 0, len(steps), call[column]), *steps]

    program = [
        _Instruction(_LOAD, 0, 0, _AT_ARCHITECTURE),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, machine.audit),
        refuse,
        _Instruction(_LOAD, 0, 0, _AT_CALL),
        *case(_MMAP, mapping),
        *case(_MPROTECT, writable),
    ]
    for call in _CALLS.values():
        program += case(call, [allow])
    return [
        *program,
        *case(_CLONE3, no_such_call),
        *case(_CLONE, new_thread),
        *case(_TGKILL, signal),
        refuse,
    ]


_PARTS: dict[str, Callable[[Limits], None]] = {
    "no_new_privs": _forbid_new_privileges,
    "thread limit": _limit_threads,
    "no capabilities": _drop_capabilities,
    "end with its parent": _end_with_parent,  # a change of capabilities takes it back
    "hidden memory": _hide_memory,
    "Landlock for files": _landlock_files,
    "Landlock for TCP": _landlock_network,
    "Landlock for signals": _landlock_scopes,
    "memory limit": _limit_memory,
    "other limits": _limit_rest,  # after the parts that open a file
    "seccomp": _forbid_calls,  # last: it forbids calls that the others need
}


def _require_linux() -> None:
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, "Linux only")


def _prctl(option: int, value: int) -> None:
    _libc_call("prctl", option, *[ctypes.c_ulong(number) for number in (value, 0, 0, 0)])


def _libc_call(name: str, *arguments: object) -> None:
    _require_linux()
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _syscall(number: int, *arguments: object) -> int:
    _require_linux()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

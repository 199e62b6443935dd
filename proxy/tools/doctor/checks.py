"""Turns measurements into findings. Pure: ``probes`` takes the measurements."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from proxy.config import Config
from proxy.egress.gateway import fetches_at_once
from proxy.egress.http_client import MAX_IDLE
from proxy.imaging.memory_estimate import at_rest, budget, budget_within
from proxy.shared.binary_size import GIB, in_gib
from proxy.tools.doctor.memory_ceiling import ceiling
from proxy.web.open_connections import MAX_CONNECTIONS

Level = Literal["ok", "warn", "fail"]
AccessTimes = Literal["strictatime", "relatime", "noatime"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        fix: what to do about it; empty if there is no problem.
    """

    level: Level
    name: str
    text: str
    fix: str = ""


MAX_SKEW, WARN_SKEW = 300.0, 30.0
"""Seconds. Peers refuse certificates and signatures dated minutes in the future; an error of
seconds only makes ages inexact."""

OWN_FILES = 64
"""Descriptors of a worker besides its connections: libraries, databases, files being read."""


def judge_folder(path: str, error: OSError | None, *, is_there: bool = True) -> Finding:
    """Whether the cache folder can be written.

    Args:
        error: why it cannot; if the folder is missing, why it cannot be created.
    """
    if error is not None:
        where = error.filename or path
        return Finding("fail", "cache folder", f"{where}: {error.strerror}", _fix_of(error))
    if not is_there:
        fix = "start the service, which makes it, or give its configuration with --config"
        return Finding("warn", "cache folder", f"{path} is not there", fix)
    return Finding("ok", "cache folder", f"{path} can be written")


def lacks_room(error: OSError) -> bool:
    """Whether the only problem is missing disk space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _fix_of(error: OSError) -> str:
    if lacks_room(error):
        return (
            "make room there: imageproxy cache cleanup with a smaller cache.max_gb removes entries"
        )
    if error.errno == errno.EROFS:
        return "mount its file system for writing, or set cache.path to another folder"
    return "give it to the user that runs the service, or set cache.path to another folder"


def judge_owner(path: str, owner: str) -> Finding:
    """Report that another user's folder was not checked: root can read and write everything."""
    text = f"{path} belongs to {owner}, and was not looked into"
    return Finding("warn", "cache folder", text, f"run this as {owner}")


def judge_blocks(
    path: str, error: str | None, *, is_there: bool, sign: str | None = None, backup: str = "FILE"
) -> Finding:
    """Whether the blocks can be read and written: without them nothing is served.

    Args:
        error: why not, with the path of the file.
        sign: the path of what shows that there was a file, if it is missing.
        backup: the latest copy.
    """
    restore = f"imageproxy blocks restore {backup}"
    if error is not None:
        fix = f"give it to the user that runs the service; where it is damaged: {restore}"
        return Finding("fail", "blocks", f"nothing is served: {error}", fix)
    if not is_there and sign is not None:
        text = f"nothing is served: {path} is missing, but {sign} is there"
        fix = f"{restore}, or, if nothing was ever blocked here, imageproxy blocks restore --empty"
        return Finding("fail", "blocks", text, fix)
    return Finding("ok", "blocks", f"{path} can be written" if is_there else "none were ever made")


def judge_database(place: str, error: str | None) -> Finding:
    """Whether the database of a cluster can be used: without it nothing is served.

    Args:
        error: why not.
    """
    if error is not None:
        fix = "see cluster.database, its user's rights, and the way there (docs/cluster.md)"
        return Finding("fail", "blocks", f"nothing is served: {place}: {error}", fix)
    return Finding("ok", "blocks", f"{place} answers")


def judge_index(path: str, error: str | None, *, is_there: bool) -> Finding:
    """Whether the index of the cache can be read and written.

    Args:
        error: why not, with the path of the file.
    """
    if error is not None:
        fix = "give it to the user that runs the service, or remove it: it is made from the files"
        return Finding("fail", "cache index", f"nothing is kept: {error}", fix)
    text = f"{path} can be written" if is_there else "there is none yet"
    return Finding("ok", "cache index", text)


def judge_store(url: str, error: str | None) -> Finding:
    """Whether objects can be written to the shared store, read and removed.

    Args:
        error: why not.
    """
    if error is None:
        return Finding("ok", "shared store", f"{url} can be written")
    fix = "check [store], the bucket, and the right to list, read, write and delete in it"
    return Finding("warn", "shared store", f"{url}: {error}", fix)


def judge_room(free: int, kept: int, limit: int) -> Finding:
    """Whether the disk has room for the whole cache. All arguments are in bytes."""
    room = free + kept
    text = f"{in_gib(room)} for a cache of {in_gib(limit)}"
    if room >= limit:
        return Finding("ok", "disk space", text)
    most = math.floor(room / GIB * 10) / 10
    less = f"set cache.max_gb below {most:g}" if most else "make room on it"
    fix = f"{less}, or use a larger disk"
    return Finding("warn", "disk space", f"only {text}", fix)


def judge_clock(skew: float | None) -> Finding:
    """Whether the clock is right.

    Args:
        skew: seconds that it is ahead of the directory's clock; None: unknown.
    """
    fix = "have the clock set by NTP (systemd-timesyncd, chrony)"
    if skew is None:
        text = "there is nothing to compare it with: the directory does not tell the time"
        return Finding("warn", "clock", text, fix)
    ahead = "ahead of" if skew > 0 else "behind"
    text = f"{abs(skew):.0f} s {ahead} the directory's"
    if abs(skew) > MAX_SKEW:
        return Finding("fail", "clock", text, fix)
    if abs(skew) > WARN_SKEW:
        return Finding("warn", "clock", text, fix)
    return Finding("ok", "clock", "agrees with the directory's")


def judge_dns(host: str, error: str | None) -> Finding:
    """Whether names resolve.

    Args:
        error: why ``host`` does not resolve.
    """
    if error is None:
        return Finding("ok", "DNS", f"{host} resolves")
    return Finding("fail", "DNS", f"{host}: {error}", "check /etc/resolv.conf and the resolver")


def judge_directory(url: str, status: int | None, error: str) -> Finding:
    """Whether the PLC directory answers.

    Args:
        status: the status of its answer, which may be 404 for an unknown path; None: no answer.
        error: why there is no answer.
    """
    fix = "open outgoing HTTPS to it, or check identity.plc_url"
    if status is None:
        return Finding("fail", "PLC directory", f"{url}: {error}", fix)
    if status >= 500 or status == 429:
        return Finding("fail", "PLC directory", f"{url} answers {status}", fix)
    return Finding("ok", "PLC directory", f"{url} answers")


def judge_sandbox(isolation: str, missing: Sequence[str], error: str | None) -> Finding:
    """Whether untrusted images are decoded in a working sandbox.

    Args:
        isolation: ``process.isolation``.
        missing: parts of the sandbox that the platform lacks.
        error: why no worker starts.
    """
    if isolation == "thread":
        text = "pictures are decoded in the service itself"
        return Finding("warn", "sandbox", text, 'set process.isolation = "sandbox"')
    if error is not None:
        fix = "give the service more memory and processes (MemoryMax, TasksMax, ulimit)"
        return Finding("fail", "sandbox", f"no worker starts: {error}", fix)
    if missing:
        fix = (
            "use Linux 6.12 or newer, not as root; in a container allow seccomp(2), landlock(7), "
            "and user namespaces for HEIC"
        )
        return Finding("warn", "sandbox", f"without {', '.join(missing)}", fix)
    return Finding("ok", "sandbox", "all parts hold")


def judge_access_times(found: AccessTimes) -> Finding:
    """Whether reads by other programs, such as nginx, update the files' access times."""
    if found == "noatime":
        text = "noatime: what nginx serves straight from the cache counts as unused"
        fix = "mount the file system of the cache with relatime, if nginx reads it"
        return Finding("warn", "access times", text, fix)
    return Finding("ok", "access times", found)


def files_needed(config: Config, cpus: int) -> int:
    """Descriptors that one worker process opens at full load, without client connections."""
    workers = config.process.threads or cpus
    # One connection per fetch, idle ones of two HTTP clients, a socket and a file per worker.
    return fetches_at_once(config.fetch) + 2 * MAX_IDLE + 2 * workers + OWN_FILES


def judge_cpus(threads: int, allowed: int, quota: float | None, cpus: int) -> Finding:
    """How many transforms run at once, and by what.

    Args:
        threads: ``process.threads``; 0: as many as there are CPUs for this process.
        allowed: CPUs of the machine that this process may run on.
        quota: CPU seconds a second that its control groups allow; None: no limit.
        cpus: what follows from both.
    """
    text = f"{threads or cpus} transforms at once, on {allowed} CPUs"
    if quota is not None:
        text += f" of which the control group allows {quota:g}"
    if threads > cpus:
        return Finding("warn", "CPUs", text, "set process.threads = 0, or allow more CPUs")
    return Finding("ok", "CPUs", text)


def judge_files(limit: int, needed: int) -> Finding:
    """Whether a worker process may open as many files as it needs.

    Args:
        limit: the soft RLIMIT_NOFILE.
        needed: see ``files_needed``.
    """
    wanted = needed + MAX_CONNECTIONS
    text = f"{limit} may be open, {wanted} are needed with {MAX_CONNECTIONS} clients"
    fix = f"LimitNOFILE={2 * wanted} in the systemd unit, or ulimit -n {2 * wanted}"
    if limit < needed + OWN_FILES:
        return Finding("fail", "open files", text, fix)
    if limit < wanted:
        return Finding("warn", "open files", text, fix)
    return Finding("ok", "open files", text)


def judge_memory(config: Config, cpus: int, available: int) -> Finding:
    """Whether the peak memory of the service fits in the machine's memory.

    Args:
        available: bytes available to the machine, or to the control group.
    """
    processes = config.server.workers
    most = processes * ceiling(config, cpus, available)
    image_workers = config.process.threads or cpus
    least = processes * at_rest(config, image_workers)
    text = f"at most {in_gib(most)} of {in_gib(available)}"
    wanted, given = budget(config), budget_within(config, image_workers, available)
    if given < wanted:
        text += (
            f"; transforms get {in_gib(given)}, and the largest pictures may need {in_gib(wanted)}"
        )
    fix = (
        "lower process.max_megapixels, fetch.workers, fetch.max_source_mb, process.threads or "
        "server.workers"
    )
    if least > available:
        idle = f"{in_gib(least)} of {in_gib(available)} while it does little"
        return Finding("fail", "memory", idle, fix)
    if most > available:
        return Finding("warn", "memory", text, fix)
    return Finding("ok", "memory", text)


def judge_package(place: str, other: str | None) -> Finding:
    """Whether another distribution has files in this package's folder.

    Args:
        other: its name and version.
    """
    if other is None:
        return Finding("ok", "package", place)
    text = f"{other} has files in {place} too: its upgrade or removal takes this package's away"
    fix = "install atproto-imageproxy into a virtual environment of its own"
    return Finding("warn", "package", text, fix)


def judge_decoders(found: Mapping[str, str]) -> Finding:
    """Report which libraries decode pictures; it is for the operator to compare with advisories."""
    return Finding("ok", "decoders", ", ".join(f"{name} {each}" for name, each in found.items()))


def failed(findings: Sequence[Finding]) -> bool:
    """Whether the service cannot do its work here."""
    return any(finding.level == "fail" for finding in findings)

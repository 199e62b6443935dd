"""Takes the measurements that ``checks`` judges. Each probe ends itself and leaves no traces."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing, suppress
from email.utils import parsedate_to_datetime
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import trio

from proxy.cache.index import FILE_NAME as INDEX
from proxy.config import Config, ConfigError
from proxy.egress.endpoint import configured_origin
from proxy.egress.errors import EgressError
from proxy.egress.gateway import guarded_networks, standalone_gateway
from proxy.egress.guarded_get import Response
from proxy.egress.network import Network
from proxy.imaging import memory_estimate as memory
from proxy.imaging.decoders import decoders
from proxy.imaging.workers.client import CannotStart, fork_server, started
from proxy.imaging.workers.sandbox import Limits
from proxy.moderation.first_start import has_content, latest_backup, sign_in
from proxy.moderation.store import FILE_NAME as STORE
from proxy.moderation.store import OLDER_NAME as OLDER_STORE
from proxy.shared.machine import (
    cpu_quota,
    cpus_allowed,
    cpus_of_this_process,
    memory_of_this_process,
)
from proxy.tools.doctor.checks import (
    AccessTimes,
    Finding,
    files_needed,
    judge_access_times,
    judge_blocks,
    judge_clock,
    judge_cpus,
    judge_database,
    judge_decoders,
    judge_directory,
    judge_dns,
    judge_files,
    judge_folder,
    judge_index,
    judge_memory,
    judge_owner,
    judge_package,
    judge_room,
    judge_sandbox,
    judge_store,
    lacks_room,
)
from proxy.tools.existing_folder import owner_beside_root
from proxy.wiring import disk_cache_of, object_store_of

LOOKUP_SECONDS = 10.0

HEALTH = "/_health"
"""The path where the reference implementation of the directory answers with its version."""

MAX_HEALTH = 65536


async def examine(
    config: Config, networks: tuple[Network, Network] | None = None
) -> AsyncGenerator[Finding, None]:
    """Yield findings one by one.

    The only requests to the outside are one GET to the directory, and those that write, read and
    remove an object where there is a shared store.

    Args:
        networks: see ``open_service``.
    """
    cpus = cpus_of_this_process()
    yield judge_cpus(config.process.threads, cpus_allowed(), cpu_quota(), cpus)
    async with aclosing(_examine_folder(config)) as found:
        async for finding in found:
            yield finding
    if config.store.url:
        yield judge_store(config.store.url, await why_no_store(config))
    host = configured_origin(config.identity.plc_url)[0].host
    yield judge_dns(host, await why_not_resolved(host))
    answer, why = await ask_directory(config, networks)
    status, skew = (answer.status, skew_of(answer, time.time())) if answer else (None, None)
    yield judge_directory(config.identity.plc_url, status, why)
    yield judge_clock(skew)
    missing, broken = await sandbox_parts(config) if _is_sandboxed(config) else ((), None)
    yield judge_sandbox(config.process.isolation, missing, broken)
    package = Path(str(files("proxy")))
    other = await trio.to_thread.run_sync(shares_package_with, package)
    yield judge_package(str(package), other)
    yield judge_decoders(await trio.to_thread.run_sync(decoders))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield judge_files(limit, files_needed(config, cpus))
    yield judge_memory(config, cpus, memory_of_this_process())


def shares_package_with(package: Path, path: Sequence[str] = sys.path) -> str | None:
    """Return name and version of proxy.py, if it is installed where ``package`` is.

    Args:
        path: where installed distributions are looked for.
    """
    for found in metadata.distributions(name="proxy.py", path=list(path)):
        if Path(str(found.locate_file("proxy"))).resolve() == package.resolve():
            return f"{found.name} {found.version}"
    return None


async def _examine_folder(config: Config) -> AsyncGenerator[Finding, None]:
    folder = config.cache.path
    owner = await trio.to_thread.run_sync(_owner_beside_root, folder)
    if owner is not None:
        yield judge_owner(str(folder), owner)
        return
    error = await trio.to_thread.run_sync(why_not_writable, folder)
    is_there = await trio.to_thread.run_sync(os.path.isdir, folder)
    yield judge_folder(str(folder), error, is_there=is_there)
    if not is_there:
        return
    is_full = error is not None and lacks_room(error)
    kept = 0
    if not is_full:  # on a full disk SQLite cannot open files
        index = folder / INDEX
        yield await _examine_blocks(config, folder)
        has_index, broken = await trio.to_thread.run_sync(_look_at, index)
        yield judge_index(str(index), broken, is_there=has_index)
        if has_index and broken is None:
            kept = await _kept(config)
    if error is None or is_full:
        free = (await trio.to_thread.run_sync(shutil.disk_usage, folder)).free
        yield judge_room(free, kept, config.cache.max_bytes)
    if error is None:
        yield judge_access_times(await trio.to_thread.run_sync(access_times_of, folder))


async def _examine_blocks(config: Config, folder: Path) -> Finding:
    if config.cluster.url:
        # Imported late: it needs an extra.
        from proxy.moderation.cluster.parts import why_unusable
        from proxy.shared.postgres import place_of

        why = await trio.to_thread.run_sync(why_unusable, config)
        return judge_database(place_of(config.cluster.url), why)
    store = folder / STORE
    _, broken = await trio.to_thread.run_sync(_look_at, store)
    has_store = broken is None and await trio.to_thread.run_sync(has_content, store)
    if broken is None:
        _, broken = await trio.to_thread.run_sync(_look_at, folder / OLDER_STORE)
    sign, backup = await trio.to_thread.run_sync(_signs_of_a_store, folder)
    return judge_blocks(str(store), broken, is_there=has_store, sign=sign, backup=backup)


def _owner_beside_root(folder: Path) -> str | None:
    try:
        return owner_beside_root(folder)
    except OSError:  # the next probe reports it
        return None


def why_not_writable(folder: Path) -> OSError | None:
    """Return why files in ``folder`` cannot be created, written, removed or changed.

    None: they can; or the folder is missing, and can be created.
    """
    try:
        if not folder.exists():
            _ask_for_access(next(each for each in folder.parents if each.exists()))
            return None
        try:
            # Unbuffered: closing a buffered file on a full disk fails again.
            with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
                file.write(b"x")
        except OSError as error:
            error.filename = str(folder)
            raise
        # A single file of another user is enough to stop the service.
        for path in (*folder.iterdir(), *folder.glob("images/*"), *folder.glob("images/*/*")):
            if path.name == "lost+found":  # the file system creates it at the root of a volume
                continue
            with suppress(FileNotFoundError):  # it was removed just now
                _ask_for_access(path)
    except OSError as error:
        return error
    return None


def _ask_for_access(path: Path) -> None:
    enter = os.X_OK if stat.S_ISDIR(path.stat().st_mode) else 0
    if not os.access(path, os.R_OK | os.W_OK | enter):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _signs_of_a_store(folder: Path) -> tuple[str | None, str]:
    """What shows that a folder had a store, or None; and the latest copy of it, or "FILE"."""
    try:
        sign = sign_in(folder, has_older=(folder / OLDER_STORE).exists())
    except OSError:  # the folder's own finding reports it
        sign = None
    return (str(sign) if sign else None), str(latest_backup(folder) or "FILE")


def _look_at(path: Path) -> tuple[bool, str | None]:
    return os.path.exists(path), why_not_usable(path)


def why_not_usable(path: Path) -> str | None:
    """Return why an SQLite file cannot be read and written; None: it can, or is missing."""
    try:
        if not path.exists():
            return None
        opened = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None
        )
        with closing(opened) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            database.execute("BEGIN IMMEDIATE")
            # The line above passes on a read-only file; this one fails. It is rolled back.
            database.execute("PRAGMA user_version = 0")
            database.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        return f"{path}: {error}"
    return None if found == "ok" else f"{path}: {found}"


def access_times_of(folder: Path) -> AccessTimes:
    """Return how reads change the access times of files in ``folder`` (mount(8), *atime)."""
    hour = 3600
    now = int(time.time())
    with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
        file.write(b"x")
        path = Path(file.name)
        # An access time later than the other two: only strictatime updates it.
        if _changes(path, now + hour, now - hour):
            return "strictatime"
        if _changes(path, now - 2 * hour, now - hour):
            return "relatime"
    return "noatime"


def _changes(path: Path, accessed: int, modified: int) -> bool:
    """Whether a read changes the access time."""
    os.utime(path, (accessed, modified))
    path.read_bytes()
    return int(path.stat().st_atime) != accessed


async def why_no_store(config: Config) -> str | None:
    """Return why an object cannot be written to the shared store, read or removed; None: it can."""
    try:
        store = object_store_of(config)
        if store is not None:
            await store.probe()
    except (ConfigError, OSError) as error:
        return str(error)
    return None


async def why_not_resolved(host: str) -> str | None:
    """Return why the system does not resolve a name; None: it does."""
    try:
        with trio.fail_after(LOOKUP_SECONDS):
            await trio.socket.getaddrinfo(host, 443)
    except trio.TooSlowError:
        return f"no answer within {LOOKUP_SECONDS:g} s"
    except OSError as error:
        return error.strerror or str(error)
    except UnicodeError as error:
        return str(error)
    return None


async def ask_directory(
    config: Config, networks: tuple[Network, Network] | None = None
) -> tuple[Response | None, str]:
    """Return the directory's answer, as the service would get it; or None, and the reason."""
    origin, path = configured_origin(config.identity.plc_url)
    gateway = standalone_gateway(
        config.fetch, *(networks or guarded_networks(config.fetch)), ["operator"]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        try:
            answer = await gateway.get(origin, path + HEALTH, max_bytes=MAX_HEALTH, lane="operator")
            return answer, ""
        except EgressError as error:
            return None, str(error)
        finally:
            nursery.cancel_scope.cancel()


def skew_of(answer: Response, now: float) -> float | None:
    """Return the seconds that ``now`` is ahead of the ``Date`` (RFC 9110, section 6.6.1).

    None if the answer has no valid ``Date``.
    """
    try:
        return now - parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except ValueError:
        return None


async def sandbox_parts(config: Config) -> tuple[Sequence[str], str | None]:
    """Return the sandbox parts that a real worker lacks; or why no worker starts."""
    limits, threads = Limits(memory.budget(config), 60), trio.CapacityLimiter(1)
    room = config.fetch.max_source_bytes
    try:
        async with fork_server(threads) as server, started(server, limits, room, threads) as found:
            return found[1].missing, None
    except CannotStart as error:
        return (), str(error)


async def _kept(config: Config) -> int:
    try:
        async with aclosing(disk_cache_of(config)) as disk:
            return sum(row.bytes for row in (await disk.by_preset()).values())
    except (OSError, sqlite3.Error):
        return 0


def _is_sandboxed(config: Config) -> bool:
    return config.process.isolation == "sandbox"

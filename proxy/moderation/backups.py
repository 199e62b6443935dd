"""Copies of the moderation store: one each day, in the cache folder, and others on demand.

The copy of a day is made by one process for all that share the folder.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import structlog
import trio

from proxy.coordination.interface import Leadership
from proxy.coordination.leader import as_leader
from proxy.moderation.first_start import BACKUPS, copy_name, daily_copies, latest_backup
from proxy.shared.ages import age_of

KEPT = 7
"""How many daily copies are kept."""

DAY = 86400.0
"""Seconds between two copies."""

FIRST_LOOK_SECONDS = 60.0
"""Seconds after the start of a service until the first check. A command is over by then."""

LOOK_SECONDS = 600.0
"""How often it is checked whether a copy is due; after a failure, when it is tried again."""

log = structlog.get_logger(__name__)


def back_up(store: Path, target: Path) -> None:
    """Copy the store to ``target``, completely or not at all. Blocks.

    The store may be in use. A file at ``target`` is replaced.

    Raises:
        sqlite3.Error, OSError: the store cannot be read, it is damaged, or the copy cannot be
            written.
    """
    new = target.with_name(f".{target.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    try:
        copy_database(store, new)
        new.replace(target)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def copy_database(source: Path, target: Path) -> None:
    """Copy an SQLite file that may be in use to a new file, and check the copy. Blocks.

    Raises:
        sqlite3.Error: the source cannot be read, or is damaged.
        OSError: ``target`` cannot be made, or is there.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    uri = f"{source.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as original, closing(_opened(target)) as copy:
        original.backup(copy)
        # One file, without a log beside it.
        copy.execute("PRAGMA journal_mode = DELETE")
        (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(f"{source}: {found}")
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def back_up_today(store: Path, now: float) -> Path:
    """Make the copy of the day of ``now`` (seconds since the epoch), and remove the oldest ones.

    Returns:
        The path of the copy.

    Raises:
        sqlite3.Error, OSError: as ``back_up`` does.
    """
    folder = store.parent / BACKUPS
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / copy_name(now)
    back_up(store, target)
    for old in daily_copies(store.parent, now)[:-KEPT]:
        old.unlink()
    # Of a process that was killed over its copy. A younger one may be under way in a command.
    for unfinished in folder.glob(".moderation-*"):
        with suppress(FileNotFoundError):
            if age_of(unfinished.stat().st_mtime, now) >= DAY:
                unfinished.unlink()
    return target


def is_due(store: Path, now: float) -> bool:
    """Whether the latest copy is a day old, or there is none."""
    latest = latest_backup(store.parent, now)
    return latest is None or age_of(latest.stat().st_mtime, now) >= DAY


async def keep_backed_up(
    store: Path, leadership: Leadership, clock: Callable[[], float] = time.time
) -> None:
    """Make a copy each day while this process is the leader, until cancelled.

    A copy that fails is logged, and tried again after ``LOOK_SECONDS``.

    Args:
        clock: seconds since the epoch.
    """
    await as_leader(leadership, partial(_keep_backed_up, store, clock))


async def _keep_backed_up(store: Path, clock: Callable[[], float]) -> None:
    limiter = trio.CapacityLimiter(1)
    await trio.sleep(FIRST_LOOK_SECONDS)
    while True:
        work = partial(_back_up_if_due, store, clock())
        try:
            await trio.to_thread.run_sync(work, limiter=limiter)
        except (sqlite3.Error, OSError) as error:
            log.error("the blocks were not backed up", error=str(error))
        await trio.sleep(LOOK_SECONDS)


def _back_up_if_due(store: Path, now: float) -> None:
    # A store that is missing is reported by those that follow it.
    if store.exists() and is_due(store, now):
        log.info("the blocks were backed up", path=str(back_up_today(store, now)))

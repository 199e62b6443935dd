"""Makes the moderation store anew: from a copy, from the log of decisions, or empty.

Only the command ``imageproxy blocks restore`` does this. Blocks; call in threads.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from proxy.coordination.replicas import FolderReplicas
from proxy.errors import InvalidRequest
from proxy.model.identifiers import parse_cid, parse_did
from proxy.model.selection import Selection
from proxy.moderation.backups import copy_database
from proxy.moderation.first_start import has_content, leave_marker
from proxy.moderation.store import ModerationStore
from proxy.shared.sqlite import BUSY_SECONDS, code_of

_SQLITE = b"SQLite format 3\x00"
"""How an SQLite file begins (SQLite, Database File Format, section 1.3.1)."""

_DAMAGED = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_ERROR,  # a table is missing
)
"""SQLite's codes for a file that cannot be used. With any other code the file may be good: another
program has locked it, or this user may not read it."""

MAX_LINE = 1 << 20
"""Characters of a line of a log that are read."""


class CannotRestore(Exception):
    """Nothing was changed; the message says why."""


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """A decision as a line of the log has it."""

    action: str
    selection: Selection
    by: str
    reason: str


def restore(store: ModerationStore, replicas: FolderReplicas, source: Path | None) -> int:
    """Put a new store in the place of one that is missing or damaged.

    A damaged one is kept beside it, as ``moderation.sqlite3.damaged``.

    Args:
        replicas: processes that follow the store; they take the new one over.
        source: a copy of a store, or a log with its decisions; None: an empty store.

    Returns:
        The number of lines of the log that tell of decisions without naming them; 0 for a copy.

    Raises:
        CannotRestore: a store is there that is not damaged, or ``source`` is neither of the two.
        sqlite3.Error, OSError: something cannot be read or written.
    """
    path = store.path
    if has_content(path) and _is_readable(path):
        raise CannotRestore(
            f"{path} is there and can be read; to put another one in its place, stop the service"
            " and remove it with its -wal and -shm first"
        )
    new = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        new.unlink()
    try:
        unnamed = _make(new, source)
        _raise_version(new, replicas)
        _put_in_place(new, path)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            new.with_name(new.name + suffix).unlink(missing_ok=True)
    leave_marker(path.parent)
    return unnamed


def _make(new: Path, source: Path | None) -> int:
    if source is not None:
        with source.open("rb") as file:
            is_copy = file.read(len(_SQLITE)) == _SQLITE
        if is_copy:
            copy_database(source, new)
            _check_is_store(source, new)
            return 0
    with closing(ModerationStore(new)) as store:
        store.make()
        if source is None:
            return 0
        with source.open(encoding="utf-8", errors="replace") as lines:
            decisions, unnamed = _read_log(lines)
        if not decisions and not unnamed:
            raise CannotRestore(f"{source} is not a copy of a store, nor a log with its decisions")
        _replay(store, decisions)
    return unnamed


def _check_is_store(source: Path, new: Path) -> None:
    with closing(sqlite3.connect(new)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if not {"blocks", "audit", "purges", "state"} <= tables:
        raise CannotRestore(f"{source} is not a copy of a moderation store")


def _read_log(lines: Iterable[str]) -> tuple[list[LoggedDecision], int]:
    """Return the decisions of a log in JSON lines, and how many lines name no decision."""
    decisions, unnamed = [], 0
    for record in _records(lines):
        found = decision_of(record)
        if found is not None:
            decisions.append(found)
        elif "decisions" in record:
            unnamed += 1
    return decisions, unnamed


def _records(lines: Iterable[str]) -> Iterator[dict[str, object]]:
    """The records of decisions; a prefix of a line, as of journald, is skipped."""
    for line in lines:
        text = line[line.find("{") : MAX_LINE] if "{" in line else ""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record.get("event") == "decided":
            yield record


def decision_of(record: dict[str, object]) -> LoggedDecision | None:
    """The decision of a log line's record; None if it names none. Pure."""
    did, cid = record.get("did"), record.get("cid")
    action, by, reason = record.get("action"), record.get("by"), record.get("reason")
    if action not in ("block", "lift") or not isinstance(by, str):
        return None
    try:
        selection = Selection(
            parse_did(did) if isinstance(did, str) else None,
            parse_cid(cid) if isinstance(cid, str) else None,
        )
    except (InvalidRequest, ValueError):
        return None
    return LoggedDecision(str(action), selection, by, reason if isinstance(reason, str) else "")


def _replay(store: ModerationStore, decisions: Iterable[LoggedDecision]) -> None:
    for each in decisions:
        if each.action == "block":
            store.record("block", [(each.selection, each.reason)], by=each.by, owner="restored")
        else:
            # An operator lifts anybody's block, a labeler only its own.
            of_all = not each.by.startswith("labeler:")
            store.lift(each.selection, by=each.by, reason=each.reason, of_all=of_all)


def _raise_version(new: Path, replicas: FolderReplicas) -> None:
    """Give the new store a version that no running process has noted as in force."""
    noted = replicas.noted_versions()
    with closing(sqlite3.connect(new)) as database, database:
        database.execute(
            "INSERT INTO state VALUES (1, ?, 0)"
            " ON CONFLICT DO UPDATE SET version = max(version, excluded.version) + 1",
            (max(noted, default=0) + 1,),
        )


def _put_in_place(new: Path, path: Path) -> None:
    if has_content(path):
        path.replace(path.with_name(f"{path.name}.damaged"))
    # SQLite would play the log of the old file into the new one.
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with new.open("rb") as written:
        os.fsync(written.fileno())
    new.replace(path)


def _is_readable(path: Path) -> bool:
    """Whether a store is not damaged. Raises CannotRestore if that cannot be found out."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, timeout=BUSY_SECONDS, uri=True)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            database.execute("SELECT 1 FROM blocks, audit, state LIMIT 1").fetchone()
    except sqlite3.Error as error:
        if code_of(error) in _DAMAGED:
            return False
        raise CannotRestore(f"{path} is there, but cannot be opened now: {error}") from error
    return bool(found == "ok")

"""The disk tier: a file per entry, found by its name alone.

A file's modification time is when it was written (the TTL counts from it), its access time when
it was last used; both are set by hand, so that ``noatime`` and ``relatime`` do not matter here.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import trio

from proxy.cache.base import Entry, Selection, Selections
from proxy.cache.layout import (
    TEMPORARY_SUFFIX,
    cid_of,
    entry_folder,
    entry_name,
    owner_folder,
    owner_of,
    possible_formats,
)
from proxy.formats import Format, sniff
from proxy.identifiers import Cid
from proxy.urls import BlobKey, ImageKey

TOUCH_AFTER = 60.0
"""Seconds after which a use is noted again: finer recency is not worth a write per hit."""

LOW_WATER = 0.95
"""Share of the limit that eviction goes down to, so that not every write starts a walk."""

ABANDONED_AFTER = 3600.0
"""Seconds after which a temporary file belongs to no writer that still runs."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What is kept."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size: int
    written: float
    used: float


class DiskCache:
    """A cache in a folder.

    Args:
        path: the folder; made when it is missing.
        max_bytes: sum of file sizes; least recently used entries go first.
        ttl_seconds: age at which an entry goes; 0: never.
        on_evicted: called with ``"ttl"`` or ``"size"`` and how many went.
        clock: seconds since the epoch, as file times are.

    All disk work runs in threads of a limiter of its own.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        ttl_seconds: float = 0,
        on_evicted: Callable[[str, int], None] = lambda reason, count: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = path.absolute()
        self._max_bytes = max_bytes
        self._ttl = ttl_seconds
        self._on_evicted = on_evicted
        self._clock = clock
        self._limiter = trio.CapacityLimiter(16)
        # Not the process id: containers on one volume may share theirs.
        self._temporary_prefix = f".{secrets.token_hex(8)}"
        self._temporary_numbers = itertools.count()
        self._entries = 0
        self._bytes = 0
        self._is_counted = False
        self._tallying = threading.Lock()

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._root

    def statistics(self) -> CacheStatistics:
        """As of the last walk, and what this process did since."""
        return CacheStatistics(self._entries, self._bytes)

    async def check(self) -> None:
        """See ``Cache.check``. Makes the folder where it is missing."""
        await self._in_thread(self._check)

    async def get(self, key: ImageKey) -> Entry | None:
        """See ``Cache.get``. An expired, empty or foreign file is removed, and is a miss."""
        return await self._in_thread(lambda: self._get(key))

    async def put(self, key: ImageKey, entry: Entry) -> None:
        """See ``Cache.put``. What was put survives a crash of this process."""
        await self._in_thread(lambda: self._put(key, entry))
        if self._bytes > self._max_bytes:
            await self.cleanup()

    async def purge(self, *selections: Selection) -> int:
        """See ``Cache.purge``."""
        return await self._in_thread(lambda: self._purge(selections))

    async def cleanup(self) -> int:
        """See ``Cache.cleanup``."""
        expired, evicted = await self._in_thread(self._cleanup)
        for reason, count in (("ttl", expired), ("size", evicted)):
            if count:
                self._on_evicted(reason, count)
        return expired + evicted

    async def by_preset(self) -> dict[str, CacheStatistics]:
        """What is kept, counted anew, by preset and fingerprint."""
        return await self._in_thread(self._by_preset)

    async def verify(self, *, repair: bool) -> list[Path]:
        """The files that are not what their names say; ``repair`` removes them."""
        return await self._in_thread(lambda: self._verify(repair))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    def _check(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        probe = self._root / self._temporary_name()
        try:
            probe.write_bytes(b"ok")
        finally:
            probe.unlink(missing_ok=True)

    def _get(self, key: ImageKey) -> Entry | None:
        folder = self._root / entry_folder(key)
        for format_ in possible_formats(key):
            entry = self._read(folder / entry_name(key, format_), format_)
            if entry is not None:
                return entry
        return None

    def _read(self, path: Path, format_: Format) -> Entry | None:
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        now = self._clock()
        expired = bool(self._ttl) and status.st_mtime <= now - self._ttl
        if expired or len(data) != status.st_size or sniff(data) is not format_:
            self._remove(_File(path, status.st_size, status.st_mtime, status.st_atime))
            return None
        if now - status.st_atime > TOUCH_AFTER:
            with suppress(OSError):  # a use that cannot be noted is still a hit
                os.utime(path, (now, status.st_mtime))
        return Entry(data, format_)

    def _put(self, key: ImageKey, entry: Entry) -> None:
        if not self._is_counted:  # no cleanup has been here: what was there counts too
            self._count(self._files())
        folder = self._root / entry_folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / entry_name(key, entry.format)
        temporary = folder / self._temporary_name()
        try:
            temporary.write_bytes(entry.data)
            now = self._clock()
            os.utime(temporary, (now, now))
            replaced = _size_of(path)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        self._tally(int(replaced is None), len(entry.data) - (replaced or 0))

    def _temporary_name(self) -> str:
        return f"{self._temporary_prefix}-{next(self._temporary_numbers)}{TEMPORARY_SUFFIX}"

    def _purge(self, selections: tuple[Selection, ...]) -> int:
        owners = {each.did for each in selections}
        if None in owners:
            roots = {self._root}
        else:
            roots = {self._root / owner_folder(did) for did in owners if did is not None}
        covering = Selections(selections)
        removed = 0
        unread: list[OSError] = []
        for root in roots:
            for file in self._files(root, unread.append):
                owner = owner_of(PurePosixPath(file.path.relative_to(self._root)))
                if owner and covering.covers_blob(BlobKey(owner, Cid(cid_of(file.path.name)))):
                    removed += self._remove(file)
        for error in unread:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error
        return removed

    def _cleanup(self) -> tuple[int, int]:
        files = list(self._files())
        expired = 0
        if self._ttl:
            limit = self._clock() - self._ttl
            old = [file for file in files if file.written <= limit]
            expired = sum(self._remove(file) for file in old)
            files = [file for file in files if file.written > limit]
        evicted = 0
        total = sum(file.size for file in files)
        if total > self._max_bytes:
            files.sort(key=lambda file: file.used)
            for file in files:
                if total <= self._max_bytes * LOW_WATER:
                    break
                evicted += self._remove(file)
                total -= file.size
        self._count(self._files())
        return expired, evicted

    def _by_preset(self) -> dict[str, CacheStatistics]:
        rows: dict[str, CacheStatistics] = {}
        for file in self._files():
            name = file.path.parent.name
            row = rows.get(name, CacheStatistics(0, 0))
            rows[name] = CacheStatistics(row.entries + 1, row.bytes + file.size)
        return rows

    def _verify(self, repair: bool) -> list[Path]:
        damaged = [file for file in self._files() if not _is_whole(file.path)]
        if repair:
            for file in damaged:
                self._remove(file)
        return [file.path for file in damaged]

    def _tally(self, entries: int, size: int) -> None:
        with self._tallying:  # several threads are here at once
            self._entries = max(self._entries + entries, 0)
            self._bytes = max(self._bytes + size, 0)

    def _count(self, files: Iterator[_File]) -> None:
        sizes = [file.size for file in files]
        with self._tallying:
            self._entries, self._bytes = len(sizes), sum(sizes)
        self._is_counted = True

    def _remove(self, file: _File) -> bool:
        try:
            file.path.unlink()
        except FileNotFoundError:
            return False
        self._tally(-1, -file.size)
        with suppress(OSError):  # not empty, or somebody writes there just now
            for folder in (file.path.parent, file.path.parent.parent):
                if self._root not in folder.parents:
                    break
                folder.rmdir()
        return True

    def _files(
        self, root: Path | None = None, on_error: Callable[[OSError], None] | None = None
    ) -> Iterator[_File]:
        """The entries below ``root``. Abandoned temporary files are removed on the way.

        ``on_error`` is told of folders that cannot be read, which are passed over otherwise.
        """
        for folder, _folders, names in os.walk(root or self._root, onerror=on_error):
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if not name.endswith(TEMPORARY_SUFFIX):
                    yield _File(path, status.st_size, status.st_mtime, status.st_atime)
                elif status.st_mtime < self._clock() - ABANDONED_AFTER:
                    path.unlink(missing_ok=True)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _is_whole(path: Path) -> bool:
    """Whether the content begins as the extension says, or the file is gone by now."""
    try:
        with path.open("rb") as file:
            format_ = sniff(file.read(256))
    except FileNotFoundError:
        return True
    return format_ is not None and path.suffix == f".{format_.extension}"

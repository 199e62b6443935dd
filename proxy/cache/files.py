"""The files of a cache folder and their index, kept consistent. Blocks: call in threads.

    {folder}/images/...           the results; ``layout`` defines their paths
    {folder}/index-1.sqlite3      the index of the results
    {folder}/writing/{process}/   files that are not complete yet
    {folder}/processes/{process}  marks of the processes that share the folder

The modification time of a file is when it was written. The access time is when any process last
read it: nginx serves most hits without this service.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from proxy.cache.index import File, Index, IndexEntry, Rows, Totals
from proxy.cache.interface import Due, Entry
from proxy.cache.lately_read import KnownFile
from proxy.cache.layout import (
    IMAGES,
    blob_of,
    entry_folder,
    entry_name,
    format_of,
    owner_folder,
    possible_formats,
)
from proxy.coordination.liveness import Liveness
from proxy.model.formats import sniff_result
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection, Selections
from proxy.shared.ages import age_of, horizon
from proxy.shared.cached_file import CachedFiles
from proxy.shared.machine import boot_of_machine
from proxy.shared.regular_file import NotRegular, is_regular, open_regular
from proxy.shared.sqlite import TRIES_WITH_ROOM, is_full

TOUCH_AFTER = 60.0
"""Seconds after which a use is recorded again: more precision is not worth a write per hit."""

BATCH = 64
"""Files that one transaction removes. On disks that take one or two milliseconds for each, other
processes wait at most a tenth of a second."""

MOST_PASSED_OVER = 1024
"""How many recently read entries one eviction may skip; after that it removes them too."""

ROOM = 1 << 20
"""Bytes deleted together on a full disk: enough to record several thousand blocks."""

MOST_WEIGHED = 1024
"""How many files are compared by last use on a full disk: all files could take minutes."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Evicted:
    """The number of removed entries, by reason."""

    expired: int = 0
    for_size: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Arrival:
    """An entry that is to be stored."""

    key: ImageKey
    data: bytes
    record: IndexEntry


class CacheFolder:
    """A cache folder as described above. Every method may raise ``OSError`` (disk or index).

    Args:
        path: the folder; created if it is missing.
        max_bytes: limit of the sum of file sizes; least recently used entries are removed first.
        ttl_seconds: age at which an entry expires; 0: never.
        may_keep: called just before a file appears, while no purge can run; False prevents it.
        before_making: called before the index is made, which shows that the folder was used.
        fsync: sync each file before it appears.
        clock: seconds since the epoch, like file times.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        ttl_seconds: float,
        may_keep: Callable[[ImageKey], bool],
        before_making: Callable[[], None] = lambda: None,
        fsync: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        path = path.absolute()
        self._images = path / IMAGES
        # To join paths as ``Path`` does took most of the time of a look for a file.
        self._root = f"{self._images}/"
        self._liveness = Liveness(path / "processes")
        self._all_writing = path / "writing"
        self._writing = self._all_writing / self._liveness.token
        self._index = Index(path, self._liveness.token, before_making)
        self._max_bytes = max_bytes
        self._ttl = ttl_seconds
        self._may_keep = may_keep
        self._fsync = fsync
        self._clock = clock
        self._cached_files = CachedFiles()
        self._numbers = itertools.count()
        self._entering = threading.Lock()
        # Files that the index may be wrong about: the disk was too full to record them.
        self._unrecorded: set[File] = set()
        self.totals = Totals(0, 0)

    @property
    def images(self) -> Path:
        """The absolute path of the folder of results."""
        return self._images

    # Reading

    def get(self, key: ImageKey) -> tuple[Entry, KnownFile] | None:
        """Return the entry of ``key`` and its file, or None.

        A file that is not as it was written is removed.
        """
        folder = entry_folder(key)
        for format_ in possible_formats(key):
            file = File(folder, entry_name(key, format_))
            found = self._read(file)
            if found is not None:
                data, record = found
                path = os.fsencode(self._root + file.path)
                # Without a checksum, which it now has, nothing would be like it.
                digest = record.digest or b""
                known = KnownFile(path, format_, record.size, digest, record.written)
                return Entry(data, format_), known
        return None

    def get_cached(self, file: KnownFile) -> Entry | None:
        """Return the entry of a file, if all of it is in the kernel's memory. Does not block.

        Return None too if the file is not as it was, if it has expired, or if this use of it has
        to be recorded.
        """
        found = self._cached_files.read(file.path, file.size)
        now = self._clock()
        if (
            found is None
            or self._is_too_old(file.written)
            or age_of(found.accessed, now) > TOUCH_AFTER
            or hashlib.sha256(found.data).digest() != file.digest
        ):
            return None
        return Entry(found.data, file.format)

    def is_known_missing(self, key: ImageKey) -> bool:
        """Whether the kernel remembers that ``key`` has no file. Does not block."""
        folder = f"{self._root}{entry_folder(key)}/"
        return all(
            self._cached_files.is_missing(os.fsencode(folder + entry_name(key, each)))
            for each in possible_formats(key)
        )

    def _read(self, file: File) -> tuple[bytes, IndexEntry] | None:
        found = self._load(file)
        if found is None:
            return None
        data, status = found
        with self._index.reading() as rows:
            record = rows.find(file)
        if record is None or not _is_of(record, data):
            found_again = self._judge_or_remove(file)
            if found_again is None:
                return None
            data, record = found_again
        if self._is_too_old(record.written):
            return None  # the next cleanup removes and counts the entry
        now = self._clock()
        if age_of(status.st_atime, now) > TOUCH_AFTER:
            with suppress(OSError):  # a use that cannot be recorded is still a hit
                os.utime(self._root + file.path, (now, status.st_mtime), follow_symlinks=False)
        return data, record

    def _load(self, file: File) -> tuple[bytes, os.stat_result] | None:
        """The content and status of a file; None if there is none, or it is not a regular one."""
        try:
            descriptor = open_regular(self._root + file.path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError, NotRegular):
            return None
        with open(descriptor, "rb") as opened:
            return opened.read(), os.fstat(opened.fileno())

    def _judge_or_remove(self, file: File) -> tuple[bytes, IndexEntry] | None:
        """Return the content and the row of a file; None if it was not valid, and is gone.

        The row and the file agree here, and whatever another process writes next stays.
        """
        self._enter()
        with self._index.writing() as rows:
            found = self._judge(rows, file)
            if found is None:
                self._begin_removal(rows, file)
        if found is None:
            self._finish_removals()
        return found

    def _judge(self, rows: Rows, file: File) -> tuple[bytes, IndexEntry] | None:
        """Return the content of a file and its row, which is completed; None: it is not valid."""
        found = self._load(file)
        if found is None:
            return None
        data, status = found
        record = rows.find(file)
        if record is None and rows.is_leaving(file):
            return None  # a purge that has answered would not have removed it
        if record is not None and record.digest is not None:
            return (data, record) if _is_of(record, data) else None
        if record is not None and record.size != len(data):
            return None
        if sniff_result(data) is not format_of(file.name):
            return None
        # The file was not written by ``put``, or it is older than the index.
        record = _record_of(file, status, hashlib.sha256(data).digest())
        rows.add(record)
        return data, record

    def _is_too_old(self, written: float) -> bool:
        return bool(self._ttl) and age_of(written, self._clock()) >= self._ttl

    # Writing

    def put(self, key: ImageKey, entry: Entry) -> Evicted:
        """Store ``entry``, completely or not at all, even if this process is killed meanwhile.

        Entries that must make room for it are removed first. It is not stored if it is larger than
        ``max_bytes``, if ``may_keep`` refuses it, or if a purge covers it before it appears.
        """
        return self.put_all({key: entry})

    def put_all(self, entries: Mapping[ImageKey, Entry]) -> Evicted:
        """``put`` several entries in two transactions, as one takes.

        Each is stored completely or not at all, and is refused by itself. After an error some may
        have been stored.
        """
        self._enter()
        self._catch_up()
        now = self._clock()
        arrivals = [
            _Arrival(key, entry.data, _record_of_new(key, entry, now))
            for key, entry in entries.items()
            if len(entry.data) <= self._max_bytes
        ]
        return Evicted(for_size=sum(map(self._let_arrive, _fitting(arrivals, self._max_bytes))))

    def _let_arrive(self, arrivals: Sequence[_Arrival]) -> int:
        """Store what together has at most ``max_bytes``; return how many entries made room."""
        left: dict[_Arrival, Path] = {}
        try:
            for each in arrivals:
                left[each] = self._write(each.data, each.record.written)
            # After all were written, so that a journal commits them together.
            self._sync(left.values())
            with self._index.writing() as rows:
                evicted = self._make_room(rows, sum(each.record.size for each in arrivals))
                for each in arrivals:
                    rows.begin_arrival(each.record)
            try:
                with self._index.writing() as rows:
                    failure = self._carry_out_removals(rows)
                    self._doubt_if_emptied(rows)
                    for each in arrivals:
                        is_expected = rows.end_arrival(each.record.file)
                        if failure is None and is_expected and self._may_keep(each.key):
                            self._place(left[each], each.record.file)
                            del left[each]
                            rows.add(each.record)
                    self.totals = rows.totals()
            except BaseException:
                self._unrecorded.update(each.record.file for each in arrivals)
                with suppress(OSError):
                    self._catch_up()
                raise
        finally:
            for temporary in left.values():
                temporary.unlink(missing_ok=True)
        if failure is not None:
            raise failure
        return evicted

    def _write(self, data: bytes, written: float) -> Path:
        """Make a file that is not in its place yet."""
        temporary = self._writing / str(next(self._numbers))
        descriptor = self._create(temporary)
        try:
            with open(descriptor, "wb", buffering=0) as opened:
                left = memoryview(data)
                while left:
                    left = left[opened.write(left) :]
                os.utime(descriptor, (written, written))
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        return temporary

    def _create(self, temporary: Path) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        try:
            return os.open(temporary, flags, 0o666)
        except FileNotFoundError:
            self._writing.mkdir(parents=True, exist_ok=True)
            return os.open(temporary, flags, 0o666)

    def _sync(self, files: Iterable[Path]) -> None:
        """Let the content of files outlive a loss of power, if that is wanted.

        nginx serves a file unchecked, so none may be too short then.
        """
        if not self._fsync:
            return
        for file in files:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _doubt_if_emptied(self, rows: Rows) -> None:
        """Mark the index as incomplete if the folder of all files was removed."""
        if not self._images.exists():
            rows.set_incomplete()

    def _place(self, temporary: Path, file: File) -> None:
        path = self._root + file.path
        try:
            temporary.replace(path)
        except FileNotFoundError:  # its folder is missing
            os.makedirs(self._root + file.folder, exist_ok=True)
            temporary.replace(path)

    # Removing

    def purge(self, selections: Sequence[Selection]) -> int:
        """Remove the selected entries, and cancel their writes that are in progress.

        Files that are not in the index are found by searching the folders. Returns the number of
        removed entries.
        """
        self._enter()
        removed = 0
        while True:
            # One that is lost meanwhile takes along which files were to go.
            index = self._index.identity()
            roots = self._roots_of_unknown(selections)
            removed += sum(self._purge_known(chunk) for chunk in _batches(selections))
            removed += self._remove(self._unknown(selections, roots))
            if index is not None and index == self._index.identity():
                return removed

    def blobs(self, selections: Sequence[Selection]) -> frozenset[BlobKey]:
        """Return the selected blobs that have at least one entry."""
        found: set[File] = set()
        roots = self._roots_of_unknown(selections)
        with self._index.reading() as rows:
            for selection in selections:
                found.update(record.file for record in rows.selected(selection))
        return frozenset(_blobs((*found, *self._unknown(selections, roots))))

    def _purge_known(self, selections: Sequence[Selection]) -> int:
        covering = Selections(selections)
        removed = 0
        while True:
            begun = 0
            with self._index.writing() as rows:
                # Whoever began to remove them may be slow, or dead.
                leaving = [each for each in rows.leaving() if _is_covered(each.file, covering)]
                for record in leaving:
                    rows.begin_removal(record)
                for selection in selections:
                    refused = rows.refuse_arrivals(selection)
                    unrecorded = [each for each in refused if self._is_unrecorded(rows, each.file)]
                    left = max(BATCH - begun - len(unrecorded), 0)
                    for record in (*unrecorded, *rows.selected(selection, left)):
                        rows.begin_removal(record)
                        begun += 1
            if begun or leaving:
                self._finish_removals()
            removed += begun
            if begun < BATCH:
                return removed

    def _is_unrecorded(self, rows: Rows, file: File) -> bool:
        """Whether a file appeared, and its disk was too full to record that it had."""
        return rows.find(file) is None and (self._images / file.path).exists()

    def _roots_of_unknown(self, selections: Sequence[Selection]) -> frozenset[Path]:
        """Return the folders that may have selected files which the index does not have.

        Those of all owners are among them only while the index is incomplete. Call this before the
        index is read: it may be completed meanwhile.
        """
        if any(each.did is None for each in selections) and not self.is_indexed():
            return frozenset((self._images,))
        return frozenset(
            self._images / owner_folder(each.did) for each in selections if each.did is not None
        )

    def _unknown(self, selections: Sequence[Selection], roots: Iterable[Path]) -> Iterator[File]:
        """Yield the selected files below ``roots``, whether or not the index has them."""
        covering = Selections(selections)
        for root in roots:
            for file in self._files(root):
                if _is_covered(file, covering):
                    yield file

    def cleanup(self) -> Evicted:
        """Remove entries past their TTL or over the limit; finish the work of dead processes."""
        self._enter()
        self._catch_up()
        self._finish_removals()
        self._recover()
        if not self._images.exists():
            self.forget_missing()
        expired = for_size = 0
        while True:
            with self._index.writing() as rows:
                old = self._expired(rows)
                for record in old:
                    rows.begin_removal(record)
                room = 0 if old else self._make_room(rows, 0, limit=BATCH)
            if not old and not room:
                with self._index.reading() as rows:
                    self.totals = rows.totals()
                return Evicted(expired, for_size)
            self._finish_removals()
            expired += len(old)
            for_size += room

    def remove_refused(self) -> int:
        """Remove what earlier releases kept under other CIDs of blocked blobs, or of no blob.

        nginx would serve it. Those releases blocked the CID that was named, and no other CID of the
        same bytes. Returns the number of removed entries.
        """
        with self._index.reading() as rows:
            files = rows.with_other_cids()
        return self._remove(file for file in files if not self._may_stay(file))

    def _may_stay(self, file: File) -> bool:
        blob = blob_of(file.folder, file.name)
        preset, _, fingerprint = file.folder.rpartition("/")[2].rpartition("-")
        return blob is not None and self._may_keep(ImageKey(preset, blob, None, fingerprint))

    def _expired(self, rows: Rows) -> list[IndexEntry]:
        if not self._ttl:
            return []
        now = self._clock()
        due = rows.written_until(now - self._ttl, BATCH)
        return due or rows.written_after(horizon(now), BATCH)

    def _make_room(self, rows: Rows, size: int, limit: int | None = None) -> int:
        """Begin to remove entries to make room for ``size`` bytes; return their number."""
        excess = rows.totals().bytes + rows.arriving() + size - self._max_bytes
        if excess > 0:
            now = self._clock()
            rows.correct_uses(horizon(now), now)
        removed = passed_over = 0
        while excess > 0 and (limit is None or removed < limit):
            candidates = rows.least_used(BATCH)
            for record in candidates:
                used = self._last_use(record)
                if used > record.used and passed_over < MOST_PASSED_OVER:
                    rows.set_used(record.file, used)
                    passed_over += 1
                    continue
                rows.begin_removal(record)
                removed += 1
                excess -= record.size
                if excess <= 0 or removed == limit:
                    break
            if not candidates:
                break
        return removed

    def _last_use(self, record: IndexEntry) -> float:
        """Return when an entry was last read, by its access time if that is not of the future."""
        try:
            accessed = (self._images / record.file.path).lstat().st_atime
        except (FileNotFoundError, NotADirectoryError):
            return record.used
        now = self._clock()
        return record.used if accessed > horizon(now) else min(accessed, now)

    def _remove(self, files: Iterable[File]) -> int:
        """Remove files and their rows in the index; return how many files existed."""
        self._enter()
        removed = 0
        for batch in _batches(files):
            with self._index.writing() as rows:
                for file in batch:
                    self._begin_removal(rows, file)
                    removed += (self._images / file.path).exists()
            self._finish_removals()
        return removed

    def _begin_removal(self, rows: Rows, file: File) -> None:
        """Announce the removal of a file, whether or not the index has it."""
        rows.begin_removal(rows.find(file) or IndexEntry(file, 0, None, 0, 0))

    def _finish_removals(self) -> None:
        with self._index.writing() as rows:
            failure = self._carry_out_removals(rows)
            self.totals = rows.totals()
        if failure is not None:
            raise failure

    def _carry_out_removals(self, rows: Rows, process: str | None = None) -> OSError | None:
        """Remove the files whose removal a process announced; failed ones stay announced."""
        failure: OSError | None = None
        for file in rows.removals(process):
            try:
                if rows.find(file) is None:
                    self._unlink(file)
            except OSError as error:
                failure = error
            else:
                rows.end_removal(file, process)
        return failure

    def _unlink(self, file: File) -> None:
        path = self._images / file.path
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        with suppress(OSError):  # not empty
            path.parent.rmdir()
            path.parent.parent.rmdir()

    # On a full disk

    def with_room(self, work: Callable[[], T]) -> T:
        """Run ``work``; while the disk is full and entries can be deleted, run it again.

        If ``work`` counts something, the result is the count of the last attempt.
        """
        for _ in range(TRIES_WITH_ROOM):
            try:
                return work()
            except (OSError, sqlite3.Error) as error:
                if not is_full(error) or not self.give_up():
                    raise
        return work()

    def give_up(self) -> int:
        """Delete files to make room on a full disk, before the index records it.

        The index cannot be written while the disk is full. If it never records the deletion, a
        request for a deleted entry is a miss. Of at most ``MOST_WEIGHED`` files, the least
        recently used are deleted.

        Returns:
            The number of deleted files.
        """
        if not self._images_are_beside_the_index():
            return 0
        found: list[tuple[float, int, File]] = []
        entries = filter(_is_entry, self._files(self._images))
        for file in itertools.islice(entries, MOST_WEIGHED):
            with suppress(FileNotFoundError, NotADirectoryError):
                status = (self._images / file.path).lstat()
                found.append((status.st_atime, status.st_size, file))
        given_up = freed = 0
        for _, size, file in sorted(found, key=lambda each: each[0]):
            if freed >= ROOM:
                break
            self._unrecorded.add(file)  # before it goes: an error may come right after
            self._unlink(file)
            given_up += 1
            freed += size
        if given_up:
            log.warning("the disk is full: entries given up", entries=given_up)
            with suppress(OSError):
                self._catch_up()
        return given_up

    def _catch_up(self) -> None:
        """Record what appeared, and what went, while the disk was too full to record it.

        Raises:
            OSError: there still is no room; a later call records it.
        """
        files = frozenset(self._unrecorded)
        if not files:
            return
        # First: what another thread adds from now on may have happened after the look at it.
        self._unrecorded.difference_update(files)
        try:
            with self._index.writing() as rows:
                announced = {record.file: record for record in rows.arrivals()}
                for file in files:
                    if file in announced:
                        self._settle_arrival(rows, announced[file])
                    if not (self._images / file.path).exists():
                        rows.remove(file)
                self.totals = rows.totals()
        except BaseException:
            self._unrecorded.update(files)
            raise

    def _images_are_beside_the_index(self) -> bool:
        """Whether both are on one file system, so that deleting images makes room for the index."""
        try:
            return self._images.stat().st_dev == self._images.parent.stat().st_dev
        except FileNotFoundError:
            return False

    # Starting, and leftovers of other processes

    def check(self) -> None:
        """Raise ``OSError`` if no entry could be stored. Finishes the work of dead processes."""
        self._enter()
        self._recover()
        temporary = self._write(b"ok", self._clock())
        probe = self._images / f".{self._liveness.token}"
        try:
            self._sync([temporary])
            if not self._images.exists():
                with self._index.writing() as rows:
                    self._doubt_if_emptied(rows)
            self._images.mkdir(parents=True, exist_ok=True)
            temporary.replace(probe)
        finally:
            temporary.unlink(missing_ok=True)
            probe.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove this process's mark, and close the index."""
        with suppress(OSError):
            self._catch_up()
        with suppress(OSError):
            self._writing.rmdir()
        self._liveness.leave()
        self._index.close()

    def _enter(self) -> None:
        with self._entering:
            if self._liveness.is_there():
                return
            self._liveness.leave()  # the mark was deleted: make a new one
            self._doubt_after_a_crash_of_the_machine()
            self._liveness.enter()

    def _doubt_after_a_crash_of_the_machine(self) -> None:
        """Mark the index as incomplete if this is the first to enter after a loss of power.

        The last files may have outlived it, and their rows not (``synchronous = NORMAL``).
        """
        boot = boot_of_machine()
        with self._index.reading() as rows:
            if rows.boot() == boot:
                return
        with self._index.writing() as rows:
            # Who ended with the machine has left its mark, and nobody buries it before this.
            if rows.boot() != boot and self._liveness.are_some_dead():
                rows.set_incomplete()
            rows.set_boot(boot)

    def _recover(self) -> None:
        """Finish the announced moves of processes that have ended, and delete their leftovers."""
        # Read these before the list of living processes, so that no new process seems dead.
        with self._index.reading() as rows:
            moving = rows.moving_processes()
        left_behind = self._leftovers()
        living = self._liveness.living() | {self._liveness.token}
        for process in set(moving) - living:
            with self._index.writing() as rows:
                for record in rows.arrivals(process):
                    self._settle_arrival(rows, record, process)
                failure = self._carry_out_removals(rows, process)
            if failure is not None:
                raise failure
        for left in left_behind:
            if left.name not in living:
                shutil.rmtree(left, ignore_errors=True)
        for token in self._liveness.bury():
            (self._images / f".{token}").unlink(missing_ok=True)

    def _leftovers(self) -> list[Path]:
        try:
            return list(self._all_writing.iterdir())
        except FileNotFoundError:
            return []

    def _settle_arrival(self, rows: Rows, record: IndexEntry, process: str | None = None) -> None:
        """Add a file that did appear to the index; end the announcement in any case."""
        found = self._load(record.file)
        if found is not None and _is_of(record, found[0]):
            rows.add(record)
        rows.end_arrival(record.file, process)

    # Rebuilding and verifying the index

    def is_indexed(self) -> bool:
        """Whether the index has every file."""
        with self._index.reading() as rows:
            return rows.is_complete()

    def shards(self) -> list[Path]:
        """Return the folders, each of which is indexed and verified as a unit."""
        return sorted(path for path in self._images.glob("*/*/") if not path.is_symlink())

    def known_shards(self) -> list[Path]:
        """Return ``shards``, and those that only the index has."""
        with self._index.reading() as rows:
            known = {self._images / shard for shard in rows.shards()}
        return sorted(known.union(self.shards()))

    def index_shard(self, shard: Path) -> int:
        """Add every file of a shard to the index; delete leftovers of older releases.

        Returns:
            The number of files that the index did not have.
        """
        added = 0
        for batch in _batches(self._files(shard)):
            with self._index.writing() as rows:
                added += sum(self._index_file(rows, file) for file in batch)
                self.totals = rows.totals()
        return added

    def forget_missing(self) -> None:
        """Remove the rows of files that do not exist."""
        number = 0
        while True:
            with self._index.writing() as rows:
                page = rows.after(number, BATCH)
                for _, file in page:
                    if not (self._images / file.path).exists():
                        rows.remove(file)
                self.totals = rows.totals()
            if not page:
                return
            number, _ = page[-1]

    def begin_indexing(self) -> str:
        """Return what ``set_indexed`` takes: call before ``shards``."""
        with self._index.writing() as rows:
            return rows.doubt()

    def set_indexed(self, doubt: str) -> None:
        """Record that the index is complete: call after ``index_shard`` and ``forget_missing``.

        Not if it was lost, or the folder emptied, since ``begin_indexing``: then begin again.
        """
        with self._index.writing() as rows:
            rows.end_doubt(doubt)

    def _index_file(self, rows: Rows, file: File) -> bool:
        path = self._images / file.path
        with suppress(FileNotFoundError):
            if file.name.endswith(".tmp"):
                path.unlink()
            elif self._is_unknown(rows, file):
                rows.add(_record_of(file, path.lstat(), None))
                return True
        return False

    def _is_unknown(self, rows: Rows, file: File) -> bool:
        """Whether a file is an entry that the index should have and does not."""
        return (
            _is_entry(file)
            and is_regular(self._images / file.path)
            and rows.find(file) is None
            and not rows.is_leaving(file)
        )

    def verify_above_shards(self, *, repair: bool) -> list[tuple[str, Path]]:
        """Return what lies where only folders of shards do: ``foreign``; ``repair`` removes it.

        Finishes the work of dead processes, so that none of it is taken for a fault.
        """
        self._enter()
        self._recover()
        above = [self._images] if self._images.is_dir() else []
        above += [each for each in self._images.glob("*") if _is_folder(each)]
        found = [each for folder in above for each in folder.iterdir() if not _is_folder(each)]
        # What a process makes at this moment to see whether it can: see ``check``.
        probes = {self._images / f".{token}" for token in self._liveness.living()}
        found = [each for each in found if each not in probes]
        if repair:
            for each in found:
                each.unlink(missing_ok=True)
        return [("foreign", each) for each in sorted(found)]

    def verify_shard(self, shard: Path, *, repair: bool) -> list[tuple[str, Path]]:
        """Return the faults of a shard, each as a word and a path; ``repair`` corrects them.

        ``damaged``: the content is not as written. ``missing``: in the index, but no file exists.
        ``unknown``: the file exists, but is not in the index. ``foreign``: the name is not that of
        an entry, or it is not a regular file.
        """
        self._enter()
        files = set(self._files(shard, with_links=True))
        found = []
        with self._index.reading() as rows:
            known = {record.file: record for record in rows.below(self._relative(shard))}
        for file in sorted(files | known.keys(), key=lambda file: file.path):
            if self._wrong_with(file, known.get(file)) is None:
                continue
            # The file may just have changed. Nothing changes while this looks again.
            with self._index.writing() as rows:
                wrong = self._wrong_with(file, rows.find(file))
                if wrong == "unknown" and rows.is_leaving(file):
                    continue
                if wrong is not None and repair:
                    self._repair(rows, file, wrong)
            if wrong is None:
                continue
            if repair:
                self._finish_removals()
            found.append((wrong, self._images / file.path))
        return found

    def _wrong_with(self, file: File, record: IndexEntry | None) -> str | None:
        if not _is_entry(file) or self._is_special(file):
            return "foreign"
        found = self._load(file)
        if found is None:
            return None if record is None else "missing"
        data, _ = found
        if sniff_result(data) is not format_of(file.name):
            return "damaged"
        if record is None:
            return "unknown"
        return None if record.digest is None or _is_of(record, data) else "damaged"

    def _is_special(self, file: File) -> bool:
        """Whether there is something that is not a regular file."""
        try:
            return not is_regular(self._images / file.path)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _repair(self, rows: Rows, file: File, wrong: str) -> None:
        if wrong == "unknown":
            self._judge(rows, file)
        else:
            self._begin_removal(rows, file)

    def free(self) -> int:
        """Return the bytes that the file system has left for this user.

        Raises:
            OSError: the file system does not report it.
        """
        # The folder does not exist before the first write.
        place = next(each for each in (self._images, *self._images.parents) if each.exists())
        return shutil.disk_usage(place).free

    def by_preset(self, selection: Selection | None = None) -> dict[str, Totals]:
        """Return the totals by preset and fingerprint: those of a selection, or of all."""
        found: dict[str, Totals] = {}
        with self._index.reading() as rows:
            for folder, entries, size in rows.shelves(selection):
                name = folder.rpartition("/")[2]
                before = found.get(name, Totals(0, 0))
                found[name] = Totals(before.entries + entries, before.bytes + size)
        return found

    # Whether PDSes still have the cached blobs

    def due_for_check(self, before: float, limit: int, after: float) -> list[Due]:
        """Return blobs last seen at their PDS after ``after``, until ``before``; oldest first."""
        with self._index.reading() as rows:
            found = rows.checked_between(after, before, limit)
        blobs = ((blob_of(file.folder, file.name), checked) for file, checked in found)
        return [Due(blob, checked) for blob, checked in blobs if blob is not None]

    def last_checked(self, blob: BlobKey) -> float | None:
        """Return when the PDS was last seen to have the blob; None: it is not cached."""
        with self._index.reading() as rows:
            return rows.last_checked(Selection(blob.did, blob.cid))

    def correct_checks(self, time: float) -> None:
        """Let blobs that were last seen in the future have been seen at ``time``."""
        latest = horizon(self._clock())
        with self._index.reading() as rows:
            if not rows.checked_between(latest, math.inf, 1):
                return  # as always, nearly: a full disk need not take a write
        with self._index.writing() as rows:
            rows.correct_checks(latest, time)

    def mark_checked(self, blob: BlobKey) -> None:
        """Record that the PDS has the blob now."""
        with self._index.writing() as rows:
            rows.set_checked(Selection(blob.did, blob.cid), self._clock())

    def _files(self, root: Path, *, with_links: bool = False) -> Iterator[File]:
        """Yield the files below ``root``; ``with_links``: also links to folders."""
        for folder, inner, names in os.walk(root, onerror=_raise_unless_gone):
            relative = self._relative(Path(folder))
            yield from (File(relative, name) for name in names)
            if with_links:
                links = (name for name in inner if os.path.islink(os.path.join(folder, name)))
                yield from (File(relative, name) for name in links)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._images).as_posix()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_of(record: IndexEntry, data: bytes) -> bool:
    """Whether ``data`` has the size and checksum of the row."""
    return record.size == len(data) and record.digest == hashlib.sha256(data).digest()


def _record_of_new(key: ImageKey, entry: Entry, now: float) -> IndexEntry:
    file = File(entry_folder(key), entry_name(key, entry.format))
    # What came from another machine is as old as it was there.
    written = now if entry.seen is None else min(entry.seen, now)
    return IndexEntry(file, len(entry.data), hashlib.sha256(entry.data).digest(), written, now)


def _fitting(arrivals: Iterable[_Arrival], most: int) -> Iterator[list[_Arrival]]:
    """Parts of ``arrivals``, in order, each with at most ``most`` bytes. No arrival has more."""
    part: list[_Arrival] = []
    size = 0
    for each in arrivals:
        if part and size + each.record.size > most:
            yield part
            part, size = [], 0
        part.append(each)
        size += each.record.size
    if part:
        yield part


def _record_of(file: File, status: os.stat_result, digest: bytes | None) -> IndexEntry:
    return IndexEntry(file, status.st_size, digest, status.st_mtime, status.st_atime)


def _is_covered(file: File, covering: Selections) -> bool:
    blob = blob_of(file.folder, file.name)
    return blob is not None and covering.covers_blob(blob)


def _is_entry(file: File) -> bool:
    return format_of(file.name) is not None and blob_of(file.folder, file.name) is not None


def _blobs(files: Iterable[File]) -> Iterator[BlobKey]:
    found = (blob_of(file.folder, file.name) for file in files)
    return (blob for blob in found if blob is not None)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(itertools.islice(left, BATCH)):
        yield batch


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error

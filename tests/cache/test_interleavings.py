"""Two processes at one folder: whatever one does between two steps of the other, promises hold.

A step ends where a process lets go of the index: between two transactions of one, the other may do
anything, as a whole. Every such place is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.cache.files import CacheFolder
from proxy.cache.index import Index, Rows
from proxy.cache.layout import IMAGES
from proxy.model.selection import Selection
from tests.cache import entry, key
from tests.cache.test_disk import path_of

MOST = 200
"""Bytes that the cache may have: one result."""

OLD, NEW = entry(100), entry(120, fill=b"\x01")

BY_CID, BY_DID = Selection(cid=key().blob.cid), Selection(did=key().blob.did)


@dataclass
class Process:
    """A process at a folder. ``step`` is called whenever it is about to ask the index."""

    folder: CacheFolder
    step: Callable[[], None] = field(default=lambda: None)
    is_inside: bool = False

    def __post_init__(self) -> None:
        index = self.folder._index
        for name in ("reading", "writing"):
            setattr(index, name, self._stepping(getattr(index, name)))

    def _stepping(
        self, opened: Callable[[], AbstractContextManager[Rows]]
    ) -> Callable[[], AbstractContextManager[Rows]]:
        @contextmanager
        def stepping() -> Iterator[Rows]:
            if not self.is_inside:
                self.step()
            was, self.is_inside = self.is_inside, True
            try:
                with opened() as rows:
                    yield rows
            finally:
                self.is_inside = was

        return stepping


def get(folder: CacheFolder) -> None:
    folder.get(key())


def put(folder: CacheFolder) -> None:
    folder.put(key(), NEW)


def purge_by_cid(folder: CacheFolder) -> None:
    folder.purge([BY_CID])


def purge_by_did(folder: CacheFolder) -> None:
    folder.purge([BY_DID])


def make_index(folder: CacheFolder) -> None:
    doubt = folder.begin_indexing()
    for shard in folder.shards():
        folder.index_shard(shard)
    folder.forget_missing()
    folder.set_indexed(doubt)


def repair(folder: CacheFolder) -> None:
    folder.verify_above_shards(repair=True)
    for shard in folder.known_shards():
        folder.verify_shard(shard, repair=True)


def clean_up(folder: CacheFolder) -> None:
    folder.cleanup()


def check(folder: CacheFolder) -> None:
    folder.check()


def evict(folder: CacheFolder) -> None:
    """Keep what leaves room for nothing else."""
    folder.put(key(1), entry(MOST))


def give_up(folder: CacheFolder) -> None:
    folder.give_up()


def lose_index(folder: CacheFolder) -> None:
    """As a process does that finds it damaged."""
    path = folder._index._database.path
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def lose_and_make_index(folder: CacheFolder) -> None:
    lose_index(folder)
    make_index(folder)


ALL = (get, put, purge_by_cid, purge_by_did, make_index, repair, clean_up, check, evict, give_up)
PURGES = (purge_by_cid, purge_by_did)


def kept(_path: Path, _folder: CacheFolder) -> None:
    """As it was written."""


def damaged(path: Path, _folder: CacheFolder) -> None:
    path.write_bytes(b"\xff\xd8\xff damaged")


def not_a_picture(path: Path, _folder: CacheFolder) -> None:
    path.write_bytes(b"damaged")


def unknown(_path: Path, folder: CacheFolder) -> None:
    """A file whose row was lost, as the index was."""
    with folder._index.writing() as rows:
        rows.remove(rows.selected(BY_CID)[0].file)
        rows.set_incomplete()


def unread(_path: Path, folder: CacheFolder) -> None:
    """A file that was found, and whose checksum nobody has taken."""
    unknown(_path, folder)
    make_index(folder)


def missing(path: Path, _folder: CacheFolder) -> None:
    path.unlink()


def a_link(path: Path, _folder: CacheFolder) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def gone(_path: Path, folder: CacheFolder) -> None:
    folder.purge([BY_CID])


def leaving(path: Path, folder: CacheFolder) -> None:
    """A process ended before it had removed the file."""
    with dead_process(path) as rows:
        rows.begin_removal(rows.selected(BY_CID)[0])


def arrived(path: Path, folder: CacheFolder) -> None:
    """A process ended, or the disk was full, before it had recorded the file."""
    with dead_process(path) as rows:
        record = rows.selected(BY_CID)[0]
        rows.begin_arrival(record)
        rows.remove(record.file)


def announced(path: Path, folder: CacheFolder) -> None:
    """A process ended before the file was there."""
    arrived(path, folder)
    path.unlink()


@contextmanager
def dead_process(path: Path) -> Iterator[Rows]:
    root = next(each for each in path.parents if each.name == IMAGES).parent
    index = Index(root, "of a dead process")
    with closing(index), index.writing() as rows:
        yield rows


STATES: tuple[Callable[[Path, CacheFolder], None], ...] = (
    kept,
    damaged,
    not_a_picture,
    unknown,
    unread,
    missing,
    a_link,
    gone,
    leaving,
    arrived,
    announced,
)


@dataclass
class Story:
    """What happened: ``second``, in one piece, before the step of ``first`` of that number."""

    path: Path
    mine: Process
    other: Process
    first: Callable[[CacheFolder], None]
    second: Callable[[CacheFolder], None]

    def happens(self, number: int) -> bool:
        """Return False if ``first`` has no such step."""
        steps = 0

        def step() -> None:
            nonlocal steps
            if steps == number:
                self.second(self.other.folder)
                if self.second in PURGES:
                    assert not self.path.exists(), "a purge has answered"
                elif self.second is put:
                    assert self.path.read_bytes() == NEW.data
            steps += 1

        self.mine.step = step
        self.first(self.mine.folder)
        self.mine.step = lambda: None
        return steps > number


@pytest.fixture
def tell(tmp_path: Path) -> Iterator[Callable[..., Story]]:
    folders: list[CacheFolder] = []

    def make(root: Path) -> Process:
        folder = CacheFolder(
            root, max_bytes=MOST, ttl_seconds=0, may_keep=lambda _: True, fsync=False
        )
        folders.append(folder)
        return Process(folder)

    def tell(
        state: Callable[[Path, CacheFolder], None],
        first: Callable[[CacheFolder], None],
        second: Callable[[CacheFolder], None],
    ) -> Story:
        root = tmp_path / str(len(folders))
        mine, other = make(root), make(root)
        mine.folder.check()
        make_index(mine.folder)
        mine.folder.put(key(), OLD)
        path = path_of(mine.folder.images, key())
        state(path, mine.folder)
        return Story(path, mine, other, first, second)

    yield tell
    for folder in folders:
        folder.close()


def name(part: object) -> str:
    return getattr(part, "__name__", str(part)).replace("_", " ")


def every_step(
    tell: Callable[..., Story], *parts: Callable[..., None]
) -> Iterator[tuple[int, Story]]:
    number = 0
    while (story := tell(*parts)).happens(number):
        yield number, story
        number += 1
    # Only these ask the index nothing where there is nothing.
    assert number > 0 or parts[1] in (get, give_up)


@pytest.mark.parametrize("state", STATES, ids=name)
@pytest.mark.parametrize("first", [each for each in ALL if each is not put], ids=name)
@pytest.mark.parametrize("purge", PURGES, ids=name)
def test_nothing_comes_back_after_a_purge_has_answered(
    purge: Callable[[CacheFolder], None],
    first: Callable[[CacheFolder], None],
    state: Callable[[Path, CacheFolder], None],
    tell: Callable[..., Story],
) -> None:
    """Catches a file that is taken for one that the index lost, while it is on its way out."""
    for number, story in every_step(tell, state, first, purge):
        assert not story.path.exists(), number
        assert not story.other.folder.blobs([BY_CID]), number


@pytest.mark.parametrize("state", STATES, ids=name)
@pytest.mark.parametrize("second", [each for each in ALL if each is not put], ids=name)
@pytest.mark.parametrize("purge", PURGES, ids=name)
def test_nothing_keeps_a_file_from_a_purge(
    purge: Callable[[CacheFolder], None],
    second: Callable[[CacheFolder], None],
    state: Callable[[Path, CacheFolder], None],
    tell: Callable[..., Story],
) -> None:
    """Catches a purge whose steps leave time to take the file in again."""
    for number, story in every_step(tell, state, purge, second):
        assert not story.path.exists(), number
        assert not story.mine.folder.blobs([BY_CID]), number


@pytest.mark.parametrize("second", [lose_index, lose_and_make_index], ids=name)
@pytest.mark.parametrize("purge", PURGES, ids=name)
def test_a_purge_outlasts_the_loss_of_its_index(
    purge: Callable[[CacheFolder], None],
    second: Callable[[CacheFolder], None],
    tell: Callable[..., Story],
) -> None:
    """Catches a purge that has noted in the lost index what is to go, and looks in the new one."""
    for state in STATES:
        if state is a_link:  # nothing of ours: an index that is made anew leaves it out
            continue
        for number, story in every_step(tell, state, purge, second):
            assert not story.path.exists(), (state, number)


@pytest.mark.parametrize("state", STATES, ids=name)
@pytest.mark.parametrize(
    "first", [each for each in ALL if each not in (put, *PURGES, evict, give_up)], ids=name
)
def test_a_new_result_is_not_removed_for_what_was_there_before(
    first: Callable[[CacheFolder], None],
    state: Callable[[Path, CacheFolder], None],
    tell: Callable[..., Story],
) -> None:
    """Catches a file that is judged in one step and removed in another."""
    for number, story in every_step(tell, state, first, put):
        assert story.path.read_bytes() == NEW.data, number
        found = story.other.folder.get(key())
        assert found is not None, number
        assert found[0] == NEW, number


@pytest.mark.parametrize("second", ALL, ids=name)
@pytest.mark.parametrize("first", ALL, ids=name)
def test_the_index_has_what_the_folder_has(
    first: Callable[[CacheFolder], None],
    second: Callable[[CacheFolder], None],
    tell: Callable[..., Story],
) -> None:
    """Catches a file without a row, which no eviction counts, and a row without a file."""
    for state in (kept, gone):
        for number, story in every_step(tell, state, first, second):
            known = bool(story.mine.folder.blobs([BY_CID]))
            assert known == story.path.exists(), (state, number)


@pytest.mark.parametrize("repairs", [False, True])
def test_what_a_process_tries_the_folder_with_is_no_fault(
    repairs: bool, tell: Callable[..., Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a ``cache verify`` beside a server that starts, which calls its probe foreign."""
    story = tell(kept, get, get)
    found: list[object] = []
    replace = Path.replace

    def looked_at(path: Path, target: Path) -> Path:
        there = replace(path, target)
        found.extend(story.other.folder.verify_above_shards(repair=repairs))
        return there

    monkeypatch.setattr(Path, "replace", looked_at)
    story.mine.folder.check()
    assert found == []
    left = story.mine.folder.images / ".of somebody who has ended"
    left.write_bytes(b"ok")
    assert story.other.folder.verify_above_shards(repair=repairs) == [("foreign", left)]

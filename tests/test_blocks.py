"""Blocks: what the operator took down stays down, after a restart and in every process.

Two stores on one file stand for two processes: they share nothing but the file.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from proxy import blocks
from proxy.blocks import Block, BlockStore
from proxy.cache.base import Selection
from proxy.errors import BlobBlocked
from proxy.urls import BlobKey

from .cache import blob_cid, owner

A1 = BlobKey(owner(1), blob_cid(1))
A2 = BlobKey(owner(1), blob_cid(2))
B1 = BlobKey(owner(2), blob_cid(1))
B2 = BlobKey(owner(2), blob_cid(2))
ALL = [A1, A2, B1, B2]
OWNER = Selection(did=owner(1))
BLOB = Selection(cid=blob_cid(1))
PAIR = Selection(did=owner(1), cid=blob_cid(1))
SELECTIONS = pytest.mark.parametrize(
    ("selection", "covered"),
    [(OWNER, [A1, A2]), (BLOB, [A1, B1]), (PAIR, [A1])],
    ids=["owner", "blob", "pair"],
)
PATIENCE = 30
"""Seconds after which something will not happen any more; nothing here takes so long."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "blocks.sqlite3"


@pytest.fixture
def store(path: Path) -> BlockStore:
    return BlockStore(path)


@pytest.fixture
def _busy_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are looked for without a pause."""
    monkeypatch.setattr(blocks, "POLL_SECONDS", 0)


@asynccontextmanager
async def following(store: BlockStore) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.follow)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


def blocked(store: BlockStore) -> list[BlobKey]:
    return [blob for blob in ALL if store.is_blocked(blob)]


def plant(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def times_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_atime_ns, status.st_mtime_ns


@SELECTIONS
async def test_a_block_covers_exactly_what_it_names(
    store: BlockStore, selection: Selection, covered: list[BlobKey]
) -> None:
    """Catches an owner's block that spares a blob, and a pair's that takes every owner."""
    assert blocked(store) == []
    await store.add(selection)
    assert blocked(store) == covered
    for blob in ALL:
        if blob in covered:
            with pytest.raises(BlobBlocked):
                store.check(blob)
        else:
            store.check(blob)


@SELECTIONS
async def test_a_block_is_lifted_by_the_same_selection(
    store: BlockStore, selection: Selection, covered: list[BlobKey]
) -> None:
    """Catches a block that cannot be lifted, and an answer that is the wrong way round."""
    assert await store.remove(selection) is False
    await store.add(selection)
    assert await store.remove(selection) is True
    assert blocked(store) == []
    assert await store.remove(selection) is False


async def test_lifting_one_block_leaves_the_others(store: BlockStore) -> None:
    """Catches a pair whose lifting frees its owner, or the blob everywhere."""
    for selection in (OWNER, BLOB, PAIR):
        await store.add(selection)
    assert await store.remove(PAIR)
    assert blocked(store) == [A1, A2, B1]
    assert await store.remove(OWNER)
    assert blocked(store) == [A1, B1]
    assert await store.remove(BLOB)
    assert blocked(store) == []


@SELECTIONS
async def test_a_block_survives_a_restart(
    path: Path, selection: Selection, covered: list[BlobKey]
) -> None:
    """Catches blocks that are kept in memory alone."""
    await BlockStore(path).add(selection)
    after_restart = BlockStore(path)
    await after_restart.load()
    assert blocked(after_restart) == covered


async def test_a_lifted_block_stays_lifted_after_a_restart(path: Path) -> None:
    """Catches a lifting that is kept in memory alone."""
    await BlockStore(path).add(OWNER)
    await BlockStore(path).remove(OWNER)
    after_restart = BlockStore(path)
    await after_restart.load()
    assert blocked(after_restart) == []


async def test_blocks_are_listed_oldest_first_with_their_reasons(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an order by identifier, and a reason or a time that is lost."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    await store.add(Selection(did=owner(9)), "spam")
    now = 2000.0
    await store.add(Selection(cid=blob_cid(1)))
    now = 3000.0
    await store.add(Selection(did=owner(1), cid=blob_cid(1)), "court order; caf\u00e9 \U0001f600")
    assert await store.list() == [
        Block(owner(9), None, "spam", 1000.0),
        Block(None, blob_cid(1), "", 2000.0),
        Block(owner(1), blob_cid(1), "court order; caf\u00e9 \U0001f600", 3000.0),
    ]


async def test_blocking_again_renews_the_reason_and_keeps_the_time(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an error for a block that is there already, and a second row of it."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    await store.add(OWNER, "first")
    now = 2000.0
    await store.add(OWNER, "second")
    assert await store.list() == [Block(owner(1), None, "second", 1000.0)]


async def test_without_a_file_there_are_no_blocks_and_none_is_made(
    store: BlockStore, path: Path
) -> None:
    """Catches a first start that fails, and a file that mere looking makes."""
    await store.load()
    assert blocked(store) == []
    assert await store.list() == []
    with pytest.raises(FileNotFoundError):
        times_of(path)


@pytest.mark.parametrize(
    "content", [b"this is no database, but it is long enough" * 100, b"SQLite format 3\x00" * 200]
)
async def test_a_corrupt_file_fails_the_load(store: BlockStore, path: Path, content: bytes) -> None:
    """Catches a start without blocks where there may be many: everything would be served."""
    plant(path, content)
    with pytest.raises(sqlite3.Error):
        await store.load()
    with pytest.raises(sqlite3.Error):
        await store.list()
    with pytest.raises(sqlite3.Error):
        await store.add(OWNER)
    assert blocked(store) == [], "what could not be kept is not in force"


async def test_a_folder_that_cannot_be_made_fails_the_block(tmp_path: Path) -> None:
    """Catches "blocked" told of a block that the next start forgets."""
    plant(tmp_path / "cache", b"a file in the way")
    store = BlockStore(tmp_path / "cache" / "blocks.sqlite3")
    with pytest.raises((sqlite3.Error, OSError)):
        await store.add(OWNER)
    assert blocked(store) == []


@pytest.mark.usefixtures("_busy_poll")
async def test_other_processes_take_a_block_over_and_its_lifting(path: Path) -> None:
    """Catches workers that go on serving what another one's operator took down."""
    here, there = BlockStore(path), BlockStore(path)
    await there.load()
    async with following(there):
        for selection, covered in ((PAIR, [A1]), (OWNER, [A1, A2]), (BLOB, [A1, A2, B1])):
            await here.add(selection)
            await until(lambda covered=covered: blocked(there) == covered)  # type: ignore[misc]
        await here.remove(OWNER)
        await until(lambda: blocked(there) == [A1, B1])
        await here.remove(BLOB)
        await here.remove(PAIR)
        await until(lambda: blocked(there) == [])


@pytest.mark.usefixtures("_busy_poll")
async def test_a_second_change_within_one_tick_of_the_file_clock_is_seen(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches trust in a time and size that two quick changes leave the same."""
    monkeypatch.setattr(blocks, "SETTLED_SECONDS", float("inf"))  # however slow this machine is
    here, there = BlockStore(path), BlockStore(path)
    await here.add(PAIR)
    await there.load()
    times = times_of(path)
    await here.add(OWNER)
    os.utime(path, ns=times)
    async with following(there):
        await until(lambda: blocked(there) == [A1, A2])


@pytest.mark.usefixtures("_busy_poll")
async def test_a_file_that_does_not_change_is_not_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a query of the whole table twenty times a second, in every worker."""
    monkeypatch.setattr(blocks, "SETTLED_SECONDS", -1)
    store = BlockStore(path)
    await store.add(OWNER)

    def never(*_arguments: Any, **_options: Any) -> Any:
        raise AssertionError("the database was opened")

    monkeypatch.setattr(sqlite3, "connect", never)
    async with following(store):
        for _ in range(100):
            await trio.lowlevel.checkpoint()
    assert blocked(store) == [A1, A2]


@pytest.mark.usefixtures("_busy_poll")
async def test_what_was_last_read_stays_in_force_while_the_file_cannot_be(path: Path) -> None:
    """Catches a damaged file that lifts every block, or ends the task that follows it."""
    here, there = BlockStore(path), BlockStore(path)
    await here.add(OWNER)
    good = path.read_bytes()  # noqa: ASYNC240 (a few kilobytes of a test)
    await there.load()
    with capture_logs() as logs:
        async with following(there):
            plant(path, b"no database" * 1000)
            await until(lambda: len(logs) >= 2)
            assert blocked(there) == [A1, A2]
            plant(path, good)
            await here.add(BLOB)
            await until(lambda: blocked(there) == [A1, A2, B1])
    assert {line["event"] for line in logs} == {"blocks cannot be read"}


async def test_many_blocks_at_once_are_all_kept(path: Path) -> None:
    """Catches writers that lock each other out, or write over each other's rows."""
    stores = [BlockStore(path), BlockStore(path)]
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(stores[number % 2].add, Selection(did=owner(number)))
    assert {block.did for block in await stores[0].list()} == {owner(n) for n in range(20)}
    await stores[1].load()
    assert all(stores[1].is_blocked(BlobKey(owner(n), blob_cid(0))) for n in range(20))


async def test_a_block_waits_for_another_process_that_writes(path: Path) -> None:
    """Catches "database is locked" for an operator who blocks while another one does."""
    store = BlockStore(path)
    await store.add(BLOB)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.add, OWNER)
            await trio.testing.wait_all_tasks_blocked()
            assert blocked(store) == [A1, B1], "it is not in force before it is kept"
            other.rollback()
    assert blocked(store) == [A1, A2, B1]

"""A store of blocks that is lost: nothing is served, and no empty one takes its place."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from click.testing import CliRunner, Result

import proxy.moderation.folder_blocks
import proxy.moderation.restore
from proxy.cache.disk import DiskCache
from proxy.cli import cli
from proxy.coordination.leader import FolderLeadership
from proxy.errors import BlobBlocked, ModerationUnreadable
from proxy.lifecycle import open_moderator
from proxy.model.selection import Selection
from proxy.moderation import backups
from proxy.moderation.backups import KEPT, back_up, back_up_today, is_due, keep_backed_up
from proxy.moderation.configured_store import folder_store_of
from proxy.moderation.first_start import BACKUPS, MARKER, StoreMissing, latest_backup
from proxy.moderation.restore import CannotRestore, restore
from proxy.moderation.store import ModerationStore
from proxy.shared.regular_file import NotRegular
from tests.cache import entry, key
from tests.fakes.world import World
from tests.logs import logged_by
from tests.moderation import (
    A1,
    B1,
    BLOB,
    OWNER,
    PAIR,
    Process,
    StoreIn,
    decide,
    followers_in,
    lift,
    open_store,
    plant_older,
)
from tests.processes import files_in, until
from tests.web import Client, img, serving
from tests.web.test_admin import WITH_TOKEN, admin

STORE = "moderation.sqlite3"
NOW = 1_767_225_600.0


def lose(folder: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (folder / f"{STORE}{suffix}").unlink(missing_ok=True)


def empty_it(folder: Path) -> None:
    lose(folder)
    (folder / STORE).touch()


def leave_only(folder: Path, name: str) -> None:
    """Remove all files of a folder but one, or the files in one folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.relative_to(folder).parts[0] != name and not path.is_dir():
            path.unlink()


def run(config_path: Path, *arguments: str) -> Result:
    environment = {"IMAGE_PROXY_CACHE__PATH": str(config_path)}
    return CliRunner().invoke(cli, arguments, env=environment)


@pytest.mark.parametrize("loss", [lose, empty_it])
async def test_a_lost_store_stops_the_service_until_it_is_restored(
    loss: Callable[[Path], None], world: World
) -> None:
    """Catches a store that the next start, an admin call or a command makes anew, empty: what was
    blocked is served, and /readyz is 200."""
    config = world.config(**WITH_TOKEN)
    did, cid = world.add_blob()
    other = world.add_blob()
    async with serving(world, config) as client:
        assert (await client.get(img(*other))).status == 200
        assert (await admin(client, "POST", "blocks", {"did": did})).status == 200
    folder = world.cache_path
    kept = folder.parent / "kept"
    back_up(folder / STORE, kept)
    loss(folder)
    async with serving(world, config) as client:
        await _nothing_is_served(client, (did, cid), other)
        for method, route in (("POST", "blocks"), ("POST", "purge"), ("GET", "blocks")):
            value = None if method == "GET" else {"did": did}
            assert (await admin(client, method, route, value)).status == 503
        for arguments in (
            ("blocks", "add", "--did", did),
            ("blocks", "remove", "--did", did),
            ("blocks", "list"),
            ("blocks", "list", "--pending-cdn"),
            ("blocks", "audit"),
            ("blocks", "backup"),
            ("cache", "purge", "--did", did),
        ):
            result = await trio.to_thread.run_sync(run, folder, *arguments)
            assert result.exit_code == 1, (arguments, result.output)
            assert "imageproxy blocks restore" in f"{result.stderr}{result.exception}"
        await _nothing_is_served(client, (did, cid), other)
        result = await trio.to_thread.run_sync(run, folder, "blocks", "restore", str(kept))
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("1 blocks restored")
        service = client.service
        await until(lambda: service.blocks.problem is None)
        assert (await client.get("/readyz")).status == 200
        assert (await client.get(img(did, cid))).status == 404
        assert (await client.get(img(*other))).headers["x-cache"] == "hit"


async def _nothing_is_served(client: Client, *blobs: tuple[str, str]) -> None:
    reply = await client.get("/readyz")
    assert (reply.status, reply.text.split(":")[0]) == (503, "blocks cannot be read")
    assert "imageproxy blocks restore" in reply.text
    assert "/" not in reply.text, "no path of the machine"
    for did, cid in blobs:
        assert (await client.get(img(did, cid))).status == 503
        assert (await client.get(f"/blob/{did}/{cid}")).status == 503


@pytest.mark.parametrize("sign", [MARKER, BACKUPS, "images", "index-1.sqlite3", "feeds.sqlite3"])
async def test_any_sign_of_an_earlier_start_keeps_a_start_from_making_a_store(
    sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a loss that is taken for a first start because one more thing is gone, and a log
    that does not say what to type."""
    path = tmp_path / sign
    if sign in (BACKUPS, "images"):
        path.mkdir()
        path /= "content"
    path.write_bytes(b"content")
    process = Process(tmp_path)
    with logged_by(proxy.moderation.folder_blocks, monkeypatch) as logs:
        async with process.following():
            await process.started_again()
            with pytest.raises(ModerationUnreadable):
                process.blocks.check(A1)
    (told,) = (line["error"] for line in logs if line["log_level"] == "error")
    assert f"{tmp_path / STORE} is missing, but {tmp_path / sign} is there" in told
    assert '"imageproxy blocks restore FILE"' in told
    assert '"imageproxy blocks restore --empty"' in told
    with closing(ModerationStore(tmp_path / STORE)) as store:
        for work in (store.load, store.make_at_first_start, lambda: decide(store, OWNER)):
            with pytest.raises(StoreMissing):
                work()
        with pytest.raises(StoreMissing):
            list(store.blocks())
    assert not (tmp_path / STORE).exists()


@pytest.mark.parametrize("name", [STORE, "blocks.sqlite3"])
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/not/mounted/store")])
async def test_a_store_that_is_linked_to_a_missing_disk_is_no_first_start(
    name: str, put: Callable[[Path], None], tmp_path: Path
) -> None:
    """Catches a cache folder that was emptied but for the link to the store, and serves all."""
    put(tmp_path / name)
    process = Process(tmp_path)
    async with process.following():
        await process.started_again()
        with pytest.raises(ModerationUnreadable):
            process.blocks.check(A1)
    with closing(ModerationStore(tmp_path / STORE)) as store, pytest.raises(StoreMissing):
        store.make_at_first_start()


def test_a_fifo_in_the_place_of_older_blocks_is_not_opened(tmp_path: Path) -> None:
    """Catches a read that waits without end."""
    with closing(ModerationStore(tmp_path / STORE)) as store:
        store.make_at_first_start()
        os.mkfifo(tmp_path / "blocks.sqlite3")
        with pytest.raises(NotRegular):
            store.load()


async def test_a_first_start_makes_the_store_and_marks_the_folder(tmp_path: Path) -> None:
    """Catches a new installation that serves nothing, also after a first start on a full disk."""
    (tmp_path / "images").mkdir()
    (tmp_path / "index-1.sqlite3").touch()
    (tmp_path / STORE).touch()
    process = Process(tmp_path)
    async with process.following():
        process.blocks.check(A1)
    assert (tmp_path / STORE).stat().st_size > 0
    assert (tmp_path / MARKER).exists()


async def test_a_store_of_an_earlier_release_gets_its_marker(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a store whose loss after an upgrade is taken for a first start."""
    decide(store_in(tmp_path), OWNER)
    (tmp_path / MARKER).unlink()
    process = Process(tmp_path)
    async with process.following():
        with pytest.raises(BlobBlocked):
            process.blocks.check(A1)
    assert (tmp_path / MARKER).exists()


def test_blocks_of_an_older_version_are_taken_over_beside_its_results(tmp_path: Path) -> None:
    """Catches an upgrade that is taken for a loss."""
    plant_older(tmp_path, (OWNER.did or "", "", "", 1.0))
    (tmp_path / "images" / "plc").mkdir(parents=True)
    with closing(ModerationStore(tmp_path / STORE)) as store:
        assert store.load().blocks.covers(A1)


def test_a_lost_store_is_not_made_from_the_file_of_an_older_version(tmp_path: Path) -> None:
    """Catches blocks of years ago in place of those of yesterday."""
    open_store(tmp_path).close()
    plant_older(tmp_path, (OWNER.did or "", "", "", 1.0))
    lose(tmp_path)
    with closing(ModerationStore(tmp_path / STORE)) as store, pytest.raises(StoreMissing):
        store.load()


async def test_a_command_makes_no_store_for_the_queue_of_the_cdn(world: World) -> None:
    """Catches a queue in a new file that the next start takes for the store."""
    cdn = {"kind": "bunny", "zone": "1", "token": "secret"}
    config = world.config(cdn=cdn, server={"cdn_url": "https://cdn.example"})
    async with world.service(config):
        pass
    lose(world.cache_path)
    async with open_moderator(config) as moderator:
        with pytest.raises(StoreMissing):
            await moderator.purge(OWNER, by="a test")
    async with world.service(config) as service:
        assert service.blocks.problem is not None
        await trio.lowlevel.checkpoint()
    assert not (world.cache_path / STORE).exists()


# Restoring.


def test_a_store_that_can_be_read_is_not_replaced(tmp_path: Path, store_in: StoreIn) -> None:
    """Catches a slip of an operator that loses the blocks since the backup."""
    decide(store_in(tmp_path), OWNER)
    with pytest.raises(CannotRestore):
        restore(store_in(tmp_path), followers_in(tmp_path), None)
    assert store_in(tmp_path).blocks_now(A1)
    assert run(tmp_path, "blocks", "restore", "--empty").exit_code == 2


def test_a_damaged_store_is_replaced_and_kept(tmp_path: Path, store_in: StoreIn) -> None:
    """Catches a damaged file of which nothing can be saved any more."""
    store = store_in(tmp_path)
    store.close()
    store.path.write_bytes(b"garbage" * 1000)
    restore(store, followers_in(tmp_path), None)
    assert list(store.blocks()) == []
    assert (tmp_path / f"{STORE}.damaged").read_bytes() == b"garbage" * 1000


def test_a_store_that_another_program_has_locked_is_not_replaced(
    tmp_path: Path, store_in: StoreIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a good store that is taken for a damaged one: its blocks and its log were lost."""
    store = store_in(tmp_path)
    decide(store, OWNER)
    store.close()
    monkeypatch.setattr(proxy.moderation.restore, "BUSY_SECONDS", 0)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE state SET version = version + 1")
        with pytest.raises(CannotRestore):
            restore(store, followers_in(tmp_path), None)
    assert store.blocks_now(A1)


@pytest.mark.parametrize("content", [b"", b"not a log", b'{"event": "request"}'])
def test_what_is_neither_a_copy_nor_a_log_changes_nothing(tmp_path: Path, content: bytes) -> None:
    """Catches an empty store made from the wrong file."""
    (tmp_path / MARKER).touch()
    source = tmp_path / "source"
    source.write_bytes(content)
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE blocks (x)")
    store = ModerationStore(tmp_path / STORE)
    for wrong in (source, tmp_path / "other"):
        with pytest.raises(CannotRestore):
            restore(store, followers_in(tmp_path), wrong)
    assert not any(STORE in path.name for path in tmp_path.iterdir() if path.suffix != ".lock")


def test_the_log_of_decisions_restores_what_it_names(tmp_path: Path) -> None:
    """Catches lifted blocks that come back, a label that lifts an operator's block, and bulks of
    which nobody is told."""

    def line(action: str, by: str, **what: object) -> str:
        return json.dumps({"event": "decided", "action": action, "by": by, **what})

    did, cid = PAIR.did, PAIR.cid
    lines = [
        "-- Boot --",
        '{"event": "request"}',
        "host imageproxy[1]: " + line("block", "admin", did=did, cid=None, reason="one"),
        line("block", "admin", did=None, cid=cid, reason="two"),
        line("lift", "cli:root", did=None, cid=cid, reason=""),
        line("lift", "labeler:did:web:x.example", did=did, cid=None, reason=""),
        line("purge", "admin", did=did, cid=cid, reason=""),
        line("block", "admin", decisions=2000),
    ]
    log = tmp_path / "log"
    log.write_text("\n".join(lines))
    (tmp_path / MARKER).touch()
    result = run(tmp_path, "blocks", "restore", str(log))
    assert result.exit_code == 1
    assert "1 lines of the log" in result.stderr
    with closing(ModerationStore(tmp_path / STORE)) as store:
        assert [(each.did, each.cid, each.by, each.reason) for each in store.blocks()] == [
            (did, None, "admin", "one")
        ]


async def test_what_is_restored_is_purged_from_the_cache(world: World) -> None:
    """Catches a file of a blocked picture that came with a cache of another machine."""
    did, cid = world.add_blob()
    async with serving(world) as client:
        assert (await client.get(img(did, cid))).status == 200
    other = world.cache_path.parent / "other"
    other.mkdir()
    with closing(open_store(other)) as store:
        decide(store, Selection(did=did))
    lose(world.cache_path)
    result = await trio.to_thread.run_sync(
        run, world.cache_path, "blocks", "restore", str(other / STORE)
    )
    assert result.exit_code == 0, result.output
    assert "1 cached entries removed" in result.stdout
    assert files_in(world.cache_path) == []


async def test_a_block_after_a_restore_waits_for_processes_that_followed_a_later_version(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches "in force everywhere" said of a process that only knows the numbers before it."""
    store = store_in(tmp_path)
    kept = tmp_path / "kept"
    back_up(store.path, kept)
    for _ in range(20):
        decide(store, OWNER)
    process = Process(tmp_path)
    async with process.following():
        noted = process.replicas._liveness.noted(process.replicas.token)
        assert noted == 20
        lose(tmp_path)
        with closing(ModerationStore(tmp_path / STORE)) as restored:
            restore(restored, followers_in(tmp_path), kept)
            assert decide(restored, BLOB) > 20


# Copies.


def test_a_copy_has_every_block_and_replaces_an_earlier_one(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a copy without what is still in the log of the file, and one others can read."""
    target = tmp_path / "copy"
    for selection in (OWNER, BLOB):
        decide(store_in(tmp_path), selection)
        back_up(tmp_path / STORE, target)
    lift(store_in(tmp_path), OWNER)
    assert target.stat().st_mode & 0o777 == 0o600
    with closing(ModerationStore(target)) as copy:
        assert len(copy.load().blocks) == 2
        assert copy.load().blocks.covers(B1)


def test_a_damaged_store_is_not_copied_over_a_good_copy(tmp_path: Path, store_in: StoreIn) -> None:
    """Catches damage that has reached every copy by the time it is noticed."""
    store = store_in(tmp_path)
    decide(store, *(Selection(did=OWNER.did, cid=BLOB.cid),) * 1)
    store.close()
    target = tmp_path / "copy"
    back_up(store.path, target)
    before = target.read_bytes()
    data = bytearray(store.path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    store.path.write_bytes(data)
    with pytest.raises(sqlite3.Error):
        back_up(store.path, target)
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".copy*"))


def test_the_latest_copies_are_kept(tmp_path: Path, store_in: StoreIn) -> None:
    """Catches a folder that grows, and the oldest copy kept in place of the latest."""
    store = store_in(tmp_path)
    assert is_due(store.path, NOW)
    made = [back_up_today(store.path, NOW + day * 86400) for day in range(KEPT + 3)]
    assert sorted((tmp_path / BACKUPS).iterdir()) == made[-KEPT:]
    os.utime(made[-1], (NOW, NOW))
    assert not is_due(store.path, NOW + 86399)
    assert is_due(store.path, NOW + 86400)


def test_copies_of_days_to_come_are_the_oldest(tmp_path: Path, store_in: StoreIn) -> None:
    """Catches: after a clock that was ahead no copy is made for a year, or each goes at once."""
    store = store_in(tmp_path)
    for day in range(KEPT):
        ahead = NOW + (365 + day) * 86400
        os.utime(back_up_today(store.path, ahead), (ahead, ahead))
    assert is_due(store.path, NOW)
    made = back_up_today(store.path, NOW)
    os.utime(made, (NOW, NOW))
    assert made.exists()
    assert latest_backup(tmp_path, NOW) == made
    assert not is_due(store.path, NOW)
    for day in range(1, KEPT):
        made = back_up_today(store.path, NOW + day * 86400)
    left = sorted((tmp_path / BACKUPS).iterdir())
    assert (len(left), left[-1]) == (KEPT, made), "those of the future went first"


def test_what_a_killed_process_left_of_a_copy_goes_with_a_later_one(
    tmp_path: Path, store_in: StoreIn
) -> None:
    """Catches a folder that grows with each kill, and a copy under way that is taken away."""
    store = store_in(tmp_path)
    folder = tmp_path / BACKUPS
    folder.mkdir()
    old, new = folder / ".moderation-x.sqlite3.1", folder / ".moderation-x.sqlite3.2"
    for path, age in ((old, 86400), (new, 86399)):
        path.touch()
        os.utime(path, (NOW - age, NOW - age))
    back_up_today(store.path, NOW)
    assert (old.exists(), new.exists()) == (False, True)


async def test_one_process_makes_the_copy_of_a_day(
    tmp_path: Path, store_in: StoreIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a copy for each worker process, and none."""
    monkeypatch.setattr(backups, "FIRST_LOOK_SECONDS", 0)
    store = store_in(tmp_path)
    decide(store, OWNER)
    with logged_by(backups, monkeypatch) as logs:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                leadership = FolderLeadership(tmp_path / "turns" / "backup")
                nursery.start_soon(keep_backed_up, store.path, leadership, lambda: NOW)
            await until(lambda: bool(logs))
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    assert [line["event"] for line in logs] == ["the blocks were backed up"]
    (copy,) = (tmp_path / BACKUPS).iterdir()
    assert copy.name == "moderation-2026-01-01.sqlite3"
    assert logs[0]["path"] == str(copy)


async def test_a_service_makes_copies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a chore that nobody starts."""
    monkeypatch.setattr(backups, "FIRST_LOOK_SECONDS", 0)
    async with world.service() as service:
        await until(lambda: bool(list(world.cache_path.glob(f"{BACKUPS}/*"))))
        assert service.blocks.problem is None
    with closing(folder_store_of(world.config())) as store:
        assert list(store.blocks()) == []


# A disk that takes files some time after the start


async def test_what_first_uses_a_folder_makes_its_store_before_its_index(tmp_path: Path) -> None:
    """Catches an index that passes for the sign of a lost store: nothing would be served again."""
    process = Process(tmp_path)
    cache = DiskCache(tmp_path, max_bytes=1 << 20, before_making=process.blocks.make_store_at_first)
    await cache.put(key(1), entry())
    async with process.following():
        assert process.blocks.problem is None
    await cache.aclose()


async def test_an_index_that_is_made_anew_makes_no_new_store_of_one_that_was_read(
    tmp_path: Path,
) -> None:
    """Catches blocks that are gone without a word when all of the folder was deleted."""
    process = Process(tmp_path)
    cache = DiskCache(tmp_path, max_bytes=1 << 20, before_making=process.blocks.make_store_at_first)
    async with process.following():
        lose(tmp_path)
        (tmp_path / MARKER).unlink()
        await cache.put(key(1), entry())
        await until(lambda: process.blocks.problem is not None)
        await process.started_again()
        assert process.blocks.problem is not None
    await cache.aclose()

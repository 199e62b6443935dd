"""From one machine to several: its decisions are in the database, or nothing is served."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.config import Config
from proxy.errors import BlobBlocked
from proxy.lifecycle import open_moderator
from proxy.model.selection import Selection
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.cluster.importing import CannotImport, import_folder
from proxy.moderation.cluster.parts import why_unusable
from proxy.moderation.cluster.schema import STEPS, migrate
from proxy.moderation.cluster.store import ClusterStore
from proxy.moderation.configured_store import moderation_database_of
from proxy.moderation.feeds.label_store import FeedStore
from proxy.moderation.feeds.labels import Label
from proxy.moderation.store import FILE_NAME
from proxy.shared.postgres import PostgresDatabase
from tests.fakes.world import World
from tests.moderation import (
    BLOB,
    OWNER,
    PAIR,
    decide,
    feed_store_in,
    followers_in,
    lift,
    open_store,
    plant_older,
)
from tests.moderation.cluster import node, node_config
from tests.postgres import Postgres
from tests.processes import files_in, until

pytestmark = pytest.mark.slow


@pytest.fixture
def target(database_url: str) -> Iterator[PostgresDatabase]:
    """An empty database."""
    with closing(PostgresDatabase(database_url, lock=1, patience=30, prepare=migrate)) as database:
        yield database


def fill(folder: Path) -> None:
    """Decisions of one machine: of all kinds, some of them lifted, one whose purge is not done."""
    with closing(open_store(folder)) as store:
        bulk = store.record("block", [(OWNER, "one"), (PAIR, "two")], by="a", owner="x")
        store.finish(bulk.purge, 7)
        decide(store, BLOB, by="labeler:b")
        assert lift(store, PAIR, by="a")
        store.record("purge", [(PAIR, "four")], by="b", owner="x")
        store.set_cursor("labels", 2**60)


def test_everything_that_is_told_of_a_store_is_told_of_the_database_too(
    tmp_path: Path, target: PostgresDatabase
) -> None:
    """Catches a table that was left out, a number that changed, and one that is given again."""
    fill(tmp_path)
    with closing(open_store(tmp_path)) as before:
        expected = (
            list(before.blocks()), before.audit(100), before.unfinished(), before.cursor("labels"),
        )  # fmt: skip
        version, last = before.version(), before.load().last
    imported = import_folder(tmp_path, target)
    store = ClusterStore(target, "")
    found = (list(store.blocks()), store.audit(100), store.unfinished(), store.cursor("labels"))
    assert found == expected
    assert imported.is_new
    assert imported.rows["blocks"] == 2
    assert store.version() > version
    decide(store, PAIR)
    assert store.audit(1)[0].id == last + 1


def test_a_reason_with_a_nul_stops_no_decision_and_no_import(
    tmp_path: Path, target: PostgresDatabase
) -> None:
    """Catches a folder whose every block is refused for one character, which SQLite has and
    PostgreSQL has not; and a stream of accounts that stands still: its reasons are anybody's."""
    with closing(open_store(tmp_path)) as before:
        decide(before, OWNER)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as older, older:
        older.execute("UPDATE blocks SET reason = ?", ("a\0b",))
    import_folder(tmp_path, target)
    store = ClusterStore(target, "")
    store.record("purge", [(BLOB, "c\0d")], by="a test", owner="nobody")
    assert store.lift(OWNER, by="a test", reason="e\0f", of_all=False)[0]
    assert [each.reason for each in store.audit(10)] == ["", "c\ufffdd", "e\ufffdf"]


def test_labels_and_the_cdns_queue_go_on_where_they_were(
    tmp_path: Path, target: PostgresDatabase
) -> None:
    """Catches a label that nobody negates any more, and a copy that the CDN keeps."""
    fill(tmp_path)
    label = Label("did:web:mod", str(OWNER.did), "", "spam", False, 100.0, None, b"", b"")
    with closing(feed_store_in(tmp_path)) as feeds:
        number = feeds.follow("did:web:mod", "settings")
        assert feeds.put(label, OWNER, 0.0) is not None
    config = Config.model_validate({"cache": {"path": tmp_path}})
    with closing(CdnQueue(moderation_database_of(config), lambda: 5.0)) as queue:
        queue.add([OWNER, BLOB])
        expected = queue.all()
    import_folder(tmp_path, target)
    assert sorted(CdnQueue(target).all(), key=str) == sorted(expected, key=str)
    feeds = FeedStore(target)
    assert feeds.follow("did:web:mod", "settings") == number
    touched = feeds.put(replace(label, neg=True, cts=200.0), OWNER, 0.0)
    assert touched is not None
    assert touched.lift == (OWNER,)
    assert feeds.follow("did:web:other", "settings") > number


def test_an_import_is_repeated_without_harm_and_takes_what_came_since(
    tmp_path: Path, target: PostgresDatabase
) -> None:
    """Catches blocks that are there twice, and those of the last minute that are not there."""
    fill(tmp_path)
    assert import_folder(tmp_path, target).is_new
    assert not import_folder(tmp_path, target).is_new
    with closing(open_store(tmp_path)) as store:
        decide(store, PAIR, by="late")
    assert import_folder(tmp_path, target).rows["blocks"] == 3
    decide(ClusterStore(target, ""), BLOB, by="in the cluster")
    with closing(open_store(tmp_path)) as store:
        decide(store, PAIR, by="later")
    with pytest.raises(CannotImport, match="its own already"):
        import_folder(tmp_path, target)
    assert len(list(ClusterStore(target, "").blocks())) == 4


def test_decisions_of_another_machine_are_not_written_over(
    tmp_path: Path, target: PostgresDatabase
) -> None:
    """Catches an import from a second machine that takes the blocks of the first away."""
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        fill(folder)
    import_folder(first, target)
    with pytest.raises(CannotImport):
        import_folder(second, target)


def test_what_an_older_version_blocked_is_imported(
    tmp_path: Path, target: PostgresDatabase
) -> None:
    """Catches an import that reads the file of today alone."""
    plant_older(tmp_path, (str(OWNER.did), "", "law", 5.0))
    open_store(tmp_path).close()
    with closing(open_store(tmp_path)) as store:
        decide(store, BLOB)
    assert import_folder(tmp_path, target).rows["blocks"] == 2


def test_a_folder_that_is_served_or_has_nothing_is_not_imported(
    tmp_path: Path, target: PostgresDatabase
) -> None:
    """Catches decisions of a server that goes on with its own file, which are lost."""
    with pytest.raises(CannotImport, match="nothing to import"):
        import_folder(tmp_path, target)
    fill(tmp_path)
    running = followers_in(tmp_path)
    running.enter()
    running.note(1)
    with pytest.raises(CannotImport, match="stop them first"):
        import_folder(tmp_path, target)
    running.leave()


async def test_a_machine_with_decisions_of_its_own_serves_nothing_until_they_are_imported(
    world: World, tmp_path: Path, database_url: str, target: PostgresDatabase
) -> None:
    """Catches a first start with a database after which everything blocked is served."""
    did, cid = world.add_blob()
    folder = tmp_path / "a"
    async with world.service(world.config(cache={"path": folder})) as alone:
        await alone.get_image("avatar", did, cid)
        await until(lambda: len(files_in(folder)) == 1)
        await alone.moderator.block(Selection(cid=cid), by="test")
        await alone.moderator.lift_any(Selection(cid=cid), by="test")
        await alone.get_image("avatar", did, cid)
        await until(lambda: len(files_in(folder)) == 1)
    with closing(open_store(folder)) as store:
        decide(store, Selection(did=did))
    async with node(world, folder, database_url) as service:
        assert 'run "imageproxy cluster import"' in str(service.blocks.problem)
        import_folder(folder, target)
        await until(lambda: service.blocks.problem is None)
        with pytest.raises(BlobBlocked):
            await service.get_image("avatar", did, cid)
        assert files_in(folder) == []


@pytest.mark.parametrize("had_joined", [False, True])
async def test_what_was_decided_in_a_folder_after_its_import_is_not_forgotten(
    world: World, tmp_path: Path, database_url: str, target: PostgresDatabase, had_joined: bool
) -> None:
    """Catches a machine that served by its own decisions once more: those are in no database."""
    folder = tmp_path / "a"
    folder.mkdir()
    fill(folder)
    import_folder(folder, target)
    if had_joined:
        async with node(world, folder, database_url) as service:
            await until(lambda: service.blocks.problem is None)
    with closing(open_store(folder)) as store:
        decide(store, PAIR, by="late")
    async with node(world, folder, database_url) as service:
        assert 'run "imageproxy cluster import"' in str(service.blocks.problem)
        import_folder(folder, target)
        await until(lambda: service.blocks.problem is None)


def test_doctor_tells_of_a_database_that_cannot_be_used_and_makes_nothing_in_it(
    tmp_path: Path, database_url: str
) -> None:
    """Catches a finding of the file of one machine, and an examination that makes tables."""

    def found(url: str) -> str | None:
        sections = {"cache": {"path": tmp_path}, "cluster": {"database": url}}
        return why_unusable(Config.model_validate(sections))

    assert found(database_url) is None
    untouched = PostgresDatabase(database_url, lock=1, patience=30)
    with closing(untouched), untouched.reading() as rows:
        assert rows.execute("SELECT to_regclass('state')::text").fetchone() == (None,)
    assert "does not exist" in str(found(f"{database_url}_absent"))
    fill(tmp_path)
    assert "cluster import" in str(found(database_url))


def test_doctor_tells_of_a_database_that_a_server_would_not_start_with(
    tmp_path: Path, database_url: str, postgres: Postgres
) -> None:
    """Catches a finding that all is well where tables are newer than this release, or cannot be
    made: PostgreSQL lets nobody but its owner make them in the schema ``public``."""

    def found(url: str) -> str | None:
        sections = {"cache": {"path": tmp_path}, "cluster": {"database": url}}
        return why_unusable(Config.model_validate(sections))

    name = database_url.rpartition("/")[2]
    postgres.execute(
        f"CREATE ROLE of_{name} LOGIN",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        database=name,
    )
    assert "may make no tables" in str(found(postgres.url(name, user=f"of_{name}")))
    newer = PostgresDatabase(database_url, lock=1, patience=30)
    with closing(newer), newer.reading() as rows:
        migrate(rows, (*STEPS, ("SELECT 1",)))
    assert "newer release" in str(found(database_url))


async def test_a_folder_keeps_to_the_database_that_it_followed(
    world: World, tmp_path: Path, database_url: str, target: PostgresDatabase
) -> None:
    """Catches a misspelled URL, or an empty database after a loss, and everything served."""
    async with node(world, tmp_path / "a", database_url) as service:
        await service.moderator.block(OWNER, by="test")
    with target.reading() as rows:
        rows.execute("UPDATE state SET identity = 'another'")
    async with node(world, tmp_path / "a", database_url) as service:
        assert "cluster.json" in str(service.blocks.problem)
        (tmp_path / "a" / "cluster.json").unlink()
        await until(lambda: service.blocks.problem is None)
    async with open_moderator(node_config(world, tmp_path / "a", database_url)) as moderator:
        assert await moderator.lift_any(OWNER, by="test")

"""The code that opens a file also closes it: the open files are the same before and after."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from proxy.cli import cli
from proxy.config import Config
from proxy.coordination.build_locks import BuildLocks
from proxy.coordination.change_watch import ChangeWatch
from proxy.coordination.leader import FolderLeadership
from proxy.coordination.liveness import Liveness
from proxy.lifecycle import open_moderator
from proxy.model.keys import BlobKey
from proxy.model.selection import Selection
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.configured_store import folder_store_of, moderation_database_of
from proxy.wiring import disk_cache_of
from tests.cache import blob_cid, entry, key, owner
from tests.fakes.world import World
from tests.moderation import feed_store_in
from tests.open_files import RememberedConnection, descriptors
from tests.processes import until

Connections = list[RememberedConnection]
BLOCKED = Selection(did=owner(1))


@contextmanager
def nothing_stays_open(connections: Connections) -> Iterator[None]:
    """Fail where the block leaves a descriptor or an SQLite connection open."""
    before = descriptors()
    yield
    assert not [each for each in connections if not each.is_closed]
    assert descriptors() == before


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """That of a folder which a server has made."""
    (tmp_path / "cache" / "images").mkdir(parents=True)
    config = Config.model_validate({"cache": {"path": tmp_path / "cache"}})
    with closing(folder_store_of(config)) as store:
        store.make()
    return config


async def test_a_service_closes_all_that_it_opened(world: World, connections: Connections) -> None:
    """Catches a store that a feed, the CDN's sender or the index leaves to the collector."""
    config = world.config(
        process={"isolation": "sandbox"},
        labels={"subscribe": (world.make_account(),)},
        accounts={"url": "ws://jetstream.example"},
        cdn={"kind": "cloudflare", "zone": "0" * 32, "token": "secret"},
        server={"cdn_url": "https://img.example"},
        cache={"revalidate_days": 1},
    )
    did, cid = world.add_blob()
    with nothing_stays_open(connections):
        async with world.service(config) as service:
            await service.get_image("avatar", did, cid)
            await service.moderator.block(Selection(did=did), by="a test")
            await until(trio.Path(config.cache.path / "feeds.sqlite3").exists)
        assert len(connections) >= 4, "the index, moderation, the CDN's queue and the feeds"


async def test_a_service_that_ends_by_an_error_closes_all_that_it_opened(
    world: World, connections: Connections
) -> None:
    """Catches closing behind the block, which an exception passes."""
    with nothing_stays_open(connections):
        with pytest.raises(RuntimeError, match="of the block"):
            async with world.service():
                raise RuntimeError("of the block")
        assert connections


async def test_a_service_that_is_cancelled_closes_all_that_it_opened(
    world: World, connections: Connections
) -> None:
    """Catches a close that waits for a thread, and is cancelled itself."""
    with nothing_stays_open(connections):
        with trio.CancelScope() as scope:
            async with world.service():
                scope.cancel()
                await trio.sleep_forever()
        assert connections


async def test_a_moderator_without_a_service_closes_all_that_it_opened(
    config: Config, connections: Connections
) -> None:
    """Catches a command that leaves the index or the queue of the CDN open."""
    with nothing_stays_open(connections):
        async with open_moderator(config) as moderator:
            await moderator.block(BLOCKED, by="a test")
        assert connections


@pytest.mark.parametrize(
    "command",
    [
        ("blocks", "list"),
        ("blocks", "list", "--pending-cdn"),
        ("blocks", "add", "--did", owner(2)),
        ("blocks", "remove", "--did", owner(1)),
        ("blocks", "audit"),
        ("cache", "stats"),
        ("cache", "purge", "--did", owner(1)),
        ("cache", "cleanup"),
        ("cache", "verify"),
    ],
    ids=" ".join,
)
def test_a_command_closes_all_that_it_opened(
    command: tuple[str, ...], config: Config, connections: Connections
) -> None:
    """Catches a listing whose store nobody closes."""

    async def block() -> None:
        async with open_moderator(config) as moderator:
            await moderator.block(BLOCKED, by="a test")

    trio.run(block)
    already = len(connections)
    environment = {"IMAGE_PROXY_CACHE__PATH": str(config.cache.path)}
    with nothing_stays_open(connections):
        result = CliRunner().invoke(cli, command, env=environment)
        assert result.exit_code == 0, result.output
        assert len(connections) > already


async def use_moderation_store(config: Config) -> None:
    with closing(folder_store_of(config)) as store:
        store.record("block", [(BLOCKED, "")], by="a test", owner="nobody")
        assert store.load().blocks.covers(BlobKey(owner(1), blob_cid(1)))


async def use_feed_store(config: Config) -> None:
    with closing(feed_store_in(config.cache.path)) as store:
        store.follow(owner(1), "")
        store.forgotten_since(None)


async def use_cdn_queue(config: Config) -> None:
    with closing(CdnQueue(moderation_database_of(config))) as queue:
        queue.add([Selection(owner(1), blob_cid(1))])
        assert queue.count() == 1


async def use_disk_cache(config: Config) -> None:
    async with aclosing(disk_cache_of(config)) as cache:
        await cache.put(key(1), entry(10))
        assert await cache.get(key(1)) == entry(10)


async def use_change_watch(config: Config) -> None:
    with closing(folder_store_of(config)) as store:
        store.make()
        with closing(ChangeWatch(store.path)) as watch:
            watch.open()
            watch.stamp()


async def use_build_locks(config: Config) -> None:
    with closing(BuildLocks(config.cache.path / "flights.lock", timeout=1)) as locks:
        free, _ = await locks.acquire(key(1))
        free()


async def use_leadership(config: Config) -> None:
    turn = FolderLeadership(config.cache.path / "turns" / "a test")
    assert turn.take()
    turn.give_up()


async def use_liveness(config: Config) -> None:
    liveness = Liveness(config.cache.path / "processes")
    liveness.enter()
    liveness.leave()


USES: list[Callable[[Config], Awaitable[None]]] = [
    use_moderation_store,
    use_feed_store,
    use_cdn_queue,
    use_disk_cache,
    use_change_watch,
    use_build_locks,
    use_leadership,
    use_liveness,
]


@pytest.mark.parametrize("use", USES)
async def test_what_is_closed_leaves_nothing_open(
    use: Callable[[Config], Awaitable[None]], config: Config, connections: Connections
) -> None:
    """Catches a ``close`` that forgets a connection, a lock or a mark."""
    with nothing_stays_open(connections):
        await use(config)

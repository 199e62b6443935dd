"""Several machines on one database: what one decides is in force on all when it has answered."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest
import trio

from proxy.errors import BlobBlocked, ModerationUnreadable
from proxy.lifecycle import open_moderator
from proxy.model.identifiers import Cid, Did
from proxy.model.selection import Selection
from proxy.moderation.interface import NotInForce
from proxy.service import Service
from tests.fakes.world import World, tiny_png
from tests.moderation.cluster import SHORT_LEASE, Relay, node, node_config
from tests.postgres import Postgres
from tests.processes import files_in, until

pytestmark = pytest.mark.slow

PRESET = "avatar_thumbnail"


async def held(service: Service, did: Did, cid: Cid) -> None:
    """Have a picture on the disk of a machine."""
    folder = service.config.cache.path
    count = len(files_in(folder))
    await service.get_image(PRESET, did, cid)
    await until(lambda: len(files_in(folder)) == count + 1)


async def refuses(service: Service, did: Did, cid: Cid) -> bool:
    """Whether a picture is refused as blocked, or as of which nothing can be told."""
    try:
        await service.get_image(PRESET, did, cid)
    except (BlobBlocked, ModerationUnreadable):
        return True
    return False


def is_open(service: Service) -> bool:
    """Whether a machine serves."""
    return service.blocks.problem is None


async def test_a_block_is_in_force_and_off_every_disk_when_it_has_answered(
    world: World, tmp_path: Path, database_url: str
) -> None:
    """Catches a purge of the machine alone that decides: nginx beside another serves its file."""
    did, cid = world.add_blob()
    folders = [tmp_path / name for name in "abc"]
    async with (
        node(world, folders[0], database_url) as first,
        node(world, folders[1], database_url) as second,
        node(world, folders[2], database_url) as third,
    ):
        for service in (first, second, third):
            await held(service, did, cid)
        assert await second.moderator.serving() == 2
        assert await first.moderator.block(Selection(did=did), by="test") == 3
        assert [files_in(folder) for folder in folders] == [[], [], []]
        for service in (first, second, third):
            with pytest.raises(BlobBlocked):
                await service.get_image(PRESET, did, cid)
        assert await third.moderator.lift_any(Selection(did=did), by="test")
        for service in (first, second, third):
            await service.get_image(PRESET, did, cid)


async def test_a_purge_without_a_block_leaves_nothing_of_before_on_any_machine(
    world: World, tmp_path: Path, database_url: str
) -> None:
    """Catches a second machine that goes on serving from its memory or disk what was purged."""
    did, cid = world.add_blob()
    async with (
        node(world, tmp_path / "a", database_url) as first,
        node(world, tmp_path / "b", database_url) as second,
    ):
        for service in (first, second):
            await held(service, did, cid)
            assert (await service.get_image(PRESET, did, cid)).cache == "hit"
        assert await first.moderator.purge(Selection(cid=cid), by="test") == 2
        for service in (first, second):
            assert (await service.get_image(PRESET, did, cid)).cache == "miss"


async def test_a_command_decides_for_all_machines(
    world: World, tmp_path: Path, database_url: str
) -> None:
    """Catches a command that knows the SQLite file of its folder alone."""
    did, cid = world.add_blob()
    async with (
        node(world, tmp_path / "a", database_url) as first,
        node(world, tmp_path / "b", database_url) as second,
    ):
        async with open_moderator(first.config) as moderator:
            await moderator.block(Selection(cid=cid), by="cli:test")
            assert await moderator.serving() == 2
        assert await refuses(first, did, cid)
        assert await refuses(second, did, cid)
        assert not (tmp_path / "a" / "moderation.sqlite3").exists()


async def test_a_command_whose_lease_has_ended_gets_another_and_goes_on(
    world: World, tmp_path: Path, database_url: str
) -> None:
    """Catches a command that was stopped for a while, and whose purges others take for abandoned
    from then on."""
    did, cid = world.add_blob()
    async with (
        node(world, tmp_path / "a", database_url) as service,
        open_moderator(node_config(world, tmp_path / "b", database_url)) as moderator,
    ):
        token = moderator._replicas.token
        with psycopg.connect(database_url, autocommit=True) as database:
            database.execute("UPDATE members SET expires = now() WHERE token = %s", (token,))
        await until(lambda: token in moderator._replicas.living())
        await moderator.block(Selection(cid=cid), by="cli:test")
        assert await refuses(service, did, cid)
        assert moderator.store.unfinished() == []


class Race:
    """Requests for one picture at several machines, while a decision is made.

    Args:
        enough: the decision begins when so many have ended.

    Attributes:
        before: how many ended before the decision was answered.
        after: how many began after it.
        leaked: how many of those got the picture.
    """

    def __init__(self, enough: int) -> None:
        self.before = self.after = self.leaked = 0
        self._enough = enough
        self._is_asked = trio.Event()
        self._is_answered = False

    async def ask(self, service: Service, did: Did, cid: Cid, times: int) -> None:
        """Ask one machine, one request after the other, until ``times`` after the decision."""
        while times:
            was_answered = self._is_answered
            try:
                await service.get_image(PRESET, did, cid)
                self.leaked += was_answered
            except BlobBlocked:
                pass
            self.after += was_answered
            self.before += not self._is_answered
            if self.before == self._enough:
                self._is_asked.set()
            times -= was_answered
            # Threads renew the leases: a loop that never rests leaves them too little of the time.
            await trio.sleep(0.001)

    async def block(self, service: Service, selection: Selection) -> None:
        """Block when enough have the picture."""
        await self._is_asked.wait()
        await service.moderator.block(selection, by="test")
        self._is_answered = True


async def test_after_the_call_has_answered_no_machine_answers_with_the_picture(
    world: World, tmp_path: Path, database_url: str
) -> None:
    """Catches an answer before another machine has put the block in force, under load."""
    rounds, askers, times = 5, 8, 25
    async with (
        node(world, tmp_path / "a", database_url) as first,
        node(world, tmp_path / "b", database_url) as second,
    ):
        for number in range(rounds):
            did, cid = world.add_blob(tiny_png((number, 2, 3)))
            selection = [Selection(did=did), Selection(cid=cid), Selection(did, cid)][number % 3]
            race = Race(enough=2 * askers)
            async with trio.open_nursery() as nursery:
                for service in (first, second) * (askers // 2):
                    nursery.start_soon(race.ask, service, did, cid, times)
                nursery.start_soon(race.block, first, selection)
            assert race.leaked == 0
            assert race.after == askers * times
            assert await refuses(second, did, cid)
            assert files_in(tmp_path / "b") == []


async def test_a_machine_that_is_cut_off_serves_nothing_and_a_decision_waits_for_no_longer(
    world: World, tmp_path: Path, nursery: trio.Nursery, database_url: str, postgres: Postgres
) -> None:
    """Catches a machine that serves what others have decided against, and one for which they wait
    without an end."""
    did, cid = world.add_blob()
    relay = Relay(postgres.port)
    await nursery.start(relay.run)
    cut_off = database_url.replace(str(postgres.port), str(relay.port))
    async with (
        node(world, tmp_path / "a", database_url) as first,
        node(world, tmp_path / "b", cut_off, cluster={"lease": SHORT_LEASE}) as second,
    ):
        await held(second, did, cid)
        await until((tmp_path / "b" / "served").exists)
        relay.cut()
        since = time.monotonic()
        await first.moderator.block(Selection(did=did), by="test")
        assert time.monotonic() - since < SHORT_LEASE + 20
        # It still has the file, which nobody is served any more.
        assert len(files_in(tmp_path / "b")) == 1
        assert not (tmp_path / "b" / "served").exists()
        with pytest.raises(ModerationUnreadable):
            await second.get_image(PRESET, did, cid)
        with pytest.raises((NotInForce, OSError)):
            await second.moderator.block(Selection(cid=cid), by="test")
        relay.heal()
        await until(lambda: is_open(second))
        with pytest.raises(BlobBlocked):
            await second.get_image(PRESET, did, cid)
        assert files_in(tmp_path / "b") == []
        await until((tmp_path / "b" / "served").exists)


async def test_a_machine_that_was_off_removes_what_was_decided_before_it_serves(
    world: World, tmp_path: Path, database_url: str
) -> None:
    """Catches a file of before that nginx serves when the machine is back, and one of a folder
    that the cluster has not seen before."""
    blocked, purged, other = world.add_blob(), world.add_blob(tiny_png((1, 2, 3))), world.add_blob()
    folder = tmp_path / "b"
    async with node(world, tmp_path / "a", database_url) as first:
        async with node(world, folder, database_url) as second:
            for picture in (blocked, purged):
                await held(second, *picture)
            # A decision that it follows, after which it has nothing to remove.
            await first.moderator.block(Selection(did=other[0]), by="test")
        assert len(files_in(folder)) == 2
        await first.moderator.block(Selection(did=blocked[0]), by="test")
        await first.moderator.purge(Selection(cid=purged[1]), by="test")
        async with node(world, folder, database_url) as second:
            assert is_open(second)
            assert files_in(folder) == []
            await held(second, *purged)
        (folder / "cluster.json").unlink()
        async with open_moderator(node_config(world, tmp_path / "a", database_url)) as moderator:
            await moderator.block(Selection(cid=purged[1]), by="test")
        async with node(world, folder, database_url) as second:
            assert files_in(folder) == []


async def test_an_outage_that_is_shorter_than_the_lease_is_noticed_by_nobody(
    world: World, tmp_path: Path, database_url: str, postgres: Postgres
) -> None:
    """Catches pictures refused for as long as the database starts anew."""
    did, cid = world.add_blob()
    async with node(world, tmp_path / "a", database_url) as service:
        await held(service, did, cid)
        await trio.to_thread.run_sync(postgres.kill)
        try:
            for _ in range(20):
                assert is_open(service)
                await service.get_image(PRESET, did, cid)
                await trio.sleep(0.05)
        finally:
            await trio.to_thread.run_sync(postgres.start)
        assert is_open(service)

        async def decided() -> bool:
            try:
                await service.moderator.block(Selection(did=did), by="test")
            except OSError:
                return False
            return True

        await until(decided)
        assert await refuses(service, did, cid)


async def test_an_outage_that_is_longer_ends_service_and_then_it_goes_on_by_itself(
    world: World, tmp_path: Path, database_url: str, postgres: Postgres
) -> None:
    """Catches a machine that serves on without a lease, and one that has to be started again."""
    did, cid = world.add_blob()
    short = {"lease": SHORT_LEASE}
    async with node(world, tmp_path / "a", database_url, cluster=short) as service:
        await held(service, did, cid)
        postgres.stop()
        try:
            await until(lambda: not is_open(service))
            await until(lambda: not (tmp_path / "a" / "served").exists())
            with pytest.raises(ModerationUnreadable):
                await service.get_image(PRESET, did, cid)
            with pytest.raises(OSError, match="PostgreSQL"):
                await service.moderator.block(Selection(did=did), by="test")
        finally:
            await trio.to_thread.run_sync(postgres.start)
        await until(lambda: is_open(service))
        await service.get_image(PRESET, did, cid)

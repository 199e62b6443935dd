"""Another machine decides between two steps of one that follows: what was answered is in force."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
import trio.testing

from proxy.cache.layout import IMAGES
from proxy.coordination.cluster.lease import Lease
from proxy.coordination.cluster.members import Members
from proxy.model.selection import Selection
from proxy.moderation.cluster.blocks import ClusterBlocks
from proxy.moderation.cluster.node_files import NodeFiles
from proxy.moderation.cluster.schema import migrate
from proxy.moderation.cluster.store import ClusterStore
from proxy.shared.postgres import PostgresDatabase, PostgresError
from tests.moderation import A1, PAIR, Served

pytestmark = pytest.mark.slow

Action = Literal["block", "purge"]
Mishap = Literal["fails", "loses its lease"]

STEPS = 13
"""Steps until a follower that begins is open, and looks for changes."""


class Machine(Served):
    """One that follows, and serves what it finds on its disk."""

    async def remove(self, *selections: Selection) -> int:
        """Drop what is selected from the disk."""
        await trio.lowlevel.checkpoint()
        gone = {b for b in self.cached if any(each.covers_blob(b) for each in selections)}
        self.cached -= gone
        return len(gone)


@dataclass
class Decider:
    """A process of another machine: it goes on as far as it can, and is then interrupted."""

    store: ClusterStore
    action: Action
    members: Members
    version: int = 0
    purge: int = 0
    is_finished: bool = False
    has_answered: bool = False

    def go_on(self) -> None:
        """Keep the decision; finish when all follow; answer when all have removed what it names."""
        if not self.version:
            recorded = self.store.record(self.action, [(PAIR, "")], by="a test", owner="nobody")
            self.version, self.purge = recorded.version, recorded.purge
        if self.members.late(self.version):
            return
        if self.is_finished:
            self.has_answered = True
        else:
            self.version = self.store.finish(self.purge, 0)
            self.is_finished = True
            self.has_answered = not self.members.late(self.version)


@pytest.fixture
def database(database_url: str) -> Iterator[PostgresDatabase]:
    """An empty database, whose tables are made by its first use."""
    found = PostgresDatabase(database_url, lock=1, patience=5, prepare=migrate)
    with closing(found):
        yield found


@pytest.mark.parametrize("mishap", ["fails", "loses its lease"])
@pytest.mark.parametrize("action", ["block", "purge"])
async def test_what_was_answered_is_in_force_at_every_step_of_a_follower(
    action: Action,
    mishap: Mishap,
    tmp_path: Path,
    database: PostgresDatabase,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Catches a version that is noted before its files are removed, and what was decided without a
    machine that had no lease."""
    store = ClusterStore(database, "")
    for at in range(STEPS):
        for number, mishap_at in enumerate((-1, *range(at, at + 4))):
            folder = tmp_path / f"{at} {number}"
            (folder / IMAGES / "made before").mkdir(parents=True)
            followed = {"database": store.identity()[0], "removed": store.settled()}
            (folder / "cluster.json").write_text(json.dumps(followed), encoding="utf-8")
            with monkeypatch.context() as patch:
                await happens(store, database, folder, action, at, mishap, mishap_at, patch)
            store.lift(PAIR, by="a test", reason="", of_all=True)


async def happens(
    store: ClusterStore,
    database: PostgresDatabase,
    folder: Path,
    action: Action,
    at: int,
    mishap: Mishap,
    mishap_at: int,
    patch: pytest.MonkeyPatch,
) -> None:
    """A process begins to follow; at its step ``at`` another decides, and then it has a mishap."""
    machine = Machine()
    members = Members(database, folder, Lease(600), None)
    blocks = ClusterBlocks(store, members, NodeFiles(folder, store, machine.remove))
    decider = Decider(store, action, Members(database, folder, Lease(600), None))
    steps = left = 0
    done = trio.Event()

    async def run_sync(work: Callable[..., object], *args: Any, **_options: Any) -> object:
        nonlocal steps, left
        number, steps = steps, steps + 1
        await trio.lowlevel.checkpoint()
        happen(number)
        left += decider.has_answered
        if left > 6 and blocks.problem is None:
            done.set()
        # It never raises.
        is_certain = getattr(work, "func", work) == members.serve
        if number == mishap_at and not done.is_set() and not is_certain:
            if mishap == "fails":
                raise PostgresError("the connection ended")
            with database.reading() as rows:
                rows.execute("UPDATE members SET expires = clock_timestamp()")
            members.lease.end()
        result = work(*args)
        happen(number)
        return result

    def happen(number: int) -> None:
        """People look at what there is, before and after the other process has gone on."""
        look()
        if number >= at:
            decider.go_on()
        look()

    def look() -> None:
        if blocks.problem is None:
            machine.remembered |= machine.cached
            if decider.has_answered:
                served = action == "block" or A1 in machine.remembered
                assert not served or blocks.is_blocked(A1), (at, mishap_at)

    patch.setattr(trio.to_thread, "run_sync", run_sync)
    async with trio.open_nursery() as nursery:
        await nursery.start(blocks.follow, machine.forget, trio.lowlevel.checkpoint)
        with trio.fail_after(60):
            await done.wait()
        assert A1 not in machine.cached, (at, mishap_at)
        nursery.cancel_scope.cancel()

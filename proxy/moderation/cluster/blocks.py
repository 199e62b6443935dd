"""The blocks of a cluster, in the memory of each of its processes.

Nothing is served without a lease: others may have decided something meanwhile, and have answered.
While the lease runs, what was read stays in force, also where the database does not answer:
nothing is decided then without this process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Set
from functools import partial

import structlog
import trio

from proxy.coordination.cluster.members import LeaseLost, Members
from proxy.model.selection import Covering, Everything, Selections
from proxy.moderation.blocks import RETRY_SECONDS, Blocks
from proxy.moderation.cluster.node_files import NodeFiles
from proxy.moderation.cluster.store import ClusterStore
from proxy.moderation.decision_store import Purge

POLL_SECONDS = 0.5
"""How often this process looks for changes that nothing announced; usually it is woken."""

log = structlog.get_logger(__name__)


class ClusterBlocks(Blocks):
    """Follows the store of a cluster; see ``Blocks``.

    Args:
        members: this process among the others.
        files: the files of this machine, from which what is decided is removed before this
            process says that it follows.
    """

    def __init__(self, store: ClusterStore, members: Members, files: NodeFiles) -> None:
        super().__init__(store, members)
        self._cluster = store
        self._members = members
        self._files = files
        self._to_remove: set[int] = set()
        self._acknowledging = trio.Lock()
        self._forget: Callable[[Covering], None] = lambda covering: None
        self._is_warned = False

    @property
    def problem(self) -> str | None:
        """See ``Blocks.problem``."""
        if self._closed_because is None and not self._members.lease.runs():
            return "the lease of this process has ended"
        # A read that hangs changes nothing while the lease runs.
        return self._closed_because

    async def follow(
        self,
        forget: Callable[[Covering], None],
        written: Callable[[], Awaitable[None]],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See ``Blocks.follow``."""
        self._forget = forget
        await super().follow(forget, written, task_status)

    @property
    def _poll_seconds(self) -> float:
        return POLL_SECONDS

    async def _has_changed(self) -> bool:
        if not self._members.lease.runs():
            raise LeaseLost
        changed = await self._read(self._cluster.version) != self._version
        self._is_warned = False
        return changed

    async def _read_all(self, forget: Callable[[Covering], None]) -> None:
        # A confirmation that began under the lease before ends first. It would note as removed
        # what was decided meanwhile.
        async with self._acknowledging:
            await self._enter(forget)

    async def _enter(self, forget: Callable[[Covering], None]) -> None:
        await self._in_thread(self._cluster.close)
        await self._in_thread(self._files.check)
        await self._in_thread(self._members.enter)
        snapshot = await self._in_thread(self._cluster.load)
        self._load(snapshot)
        # What was decided without this process goes from the disk, with what was about to be
        # written there.
        forget(Everything())
        await self._written()
        await self._files.catch_up(snapshot.last)
        # From now on, other processes wait for this one. Their earlier decisions are read now.
        self._noted = snapshot.version
        await self._in_thread(partial(self._members.note, snapshot.version))
        await self._read_changes(forget)
        await self._remove_finished()
        if not self._members.lease.runs():
            raise LeaseLost
        self._open(forget)
        await self._in_thread(self._members.serve)

    def _finish(self, purges: Set[int]) -> None:
        self._to_remove |= purges

    async def _remove_finished(self) -> None:
        """Remove from this machine's disk what was purged, and forget what came back from there."""
        last = None if self._unfinished else self._last
        while self._to_remove:
            number = next(iter(self._to_remove))
            decisions_of = partial(self._cluster.decisions_of, Purge(number, ""))
            selections, _ = await self._in_thread(decisions_of)
            removed = await self._files.remove(*selections)
            self._forget(Selections(selections))
            if removed:
                await self._in_thread(partial(self._cluster.add_removed, number, removed))
            self._to_remove.discard(number)
        if last is not None:
            await self._in_thread(partial(self._files.note, last))

    async def _acknowledge(self, version: int, written: Callable[[], Awaitable[None]]) -> None:
        # In order: who notes a version has done all that those before it ask for.
        async with self._acknowledging:
            while self._is_open and self._members.lease.runs() and version > self._noted:
                reached = self._version
                try:
                    await written()
                    await self._remove_finished()
                    await self._in_thread(partial(self._members.note, reached))
                    self._noted = reached
                except LeaseLost:
                    return
                except (sqlite3.Error, OSError) as error:
                    log.error("a decision is not confirmed", error=str(error))
                    await trio.sleep(RETRY_SECONDS)

    async def _failed(self, error: Exception) -> None:
        if self._follows and self._members.lease.runs():
            if not self._is_warned:
                log.warning("changes cannot be read; the lease still runs", error=str(error))
            self._is_warned = True
            await trio.sleep(RETRY_SECONDS)
        else:
            await self._close(error)

    def _tell(self, error: Exception, reason: str) -> None:
        log.error("blocks cannot be read: nothing is served", error=reason, at=self._cluster.place)

    def _leave(self) -> None:
        self._members.leave()
        self._cluster.close()

"""Carries decisions out in this order: stored, in force in every process, purged, answered.

The purge is stored together with the decision, before anything is removed. If a crash, a
cancellation or a failing disk interrupts it, this process or another one finishes it later.
"""

from __future__ import annotations

import itertools
import math
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Literal, Protocol, TypeVar

import structlog
import trio
from trio_util import periodic

from proxy.coordination.interface import Replicas
from proxy.model.selection import Selection
from proxy.moderation.decision_store import OF_STORE, Action, DecisionStore, Purge
from proxy.moderation.interface import NotInForce
from proxy.shared.sqlite import TRIES_WITH_ROOM, is_full

PATIENCE_SECONDS = 5.0
"""Seconds that processes may take to apply a decision; they look for changes 20 times a second."""

LOOK_SECONDS = 0.005
"""Seconds between looks whether all processes have applied a decision."""

FINISH_SECONDS = 5.0
"""Seconds between looks for purges that no process works on."""

SHARED_SECONDS = 5.0
"""Seconds that a decision waits for the shared tier; what takes longer goes on after its answer."""

AT_ONCE = 2000
"""Decisions of a bulk in one transaction; other processes apply them in one step."""

T = TypeVar("T")

Again = Callable[[], Awaitable[None]]

Invalidate = Callable[[Sequence[Selection]], Awaitable[Again]]
"""Queues for the CDN what it may have of selections; returns what queues the same again."""

log = structlog.get_logger(__name__)


class Remove(Protocol):
    """Removes the selected entries from the cache, and returns their number."""

    async def __call__(self, *selections: Selection) -> int:
        """See ``Cache.purge``."""
        ...


class SharedTier(Protocol):
    """A tier of results that machines share."""

    @property
    def is_resting(self) -> bool:
        """Whether it is left alone at the moment, because it has failed."""
        ...

    async def purge(self, *selections: Selection) -> int:
        """Remove the selected objects, and return their number.

        Raises:
            OSError: not all of them are known to be removed.
        """
        ...


class Moderator:
    """Carries decisions out; implements ``Decisions`` and ``Cursors``.

    A cancelled decision is either not stored, or stored and carried out in the end.

    Args:
        store: the store of the decisions.
        replicas: the processes that must apply them; this process has joined before the first one.
        remove: purges the cache.
        shared: purged before the cache. If it fails, a purge of it is kept and tried again;
            decisions are answered all the same.
        invalidate: queues the selected blobs for the CDN. Called before ``remove``, while the cache
            still knows which blobs an owner has. What it returns is called when nothing serves them
            any more: a CDN that was told by then may have fetched them anew meanwhile.
        is_pending: whether this process knows of an unfinished purge; asked before the store.
        nudge: called after a change was stored, so that this process applies it at once.
        on_decision: called with the action and the number of decisions after they were stored.
        make_room: called if the disk is too full for a record. Returns whether to try again.
        patience: seconds that processes may take to apply a decision.
        removes_everywhere: whether processes on other machines remove what these have, when they
            follow that a purge is finished here. A decision is answered after that.
    """

    def __init__(
        self,
        store: DecisionStore,
        replicas: Replicas,
        *,
        remove: Remove,
        shared: SharedTier | None = None,
        invalidate: Invalidate | None = None,
        is_pending: Callable[[], bool] = lambda: True,
        nudge: Callable[[], None] = lambda: None,
        on_decision: Callable[[Action, int], None] = lambda action, count: None,
        make_room: Callable[[], Awaitable[bool]] | None = None,
        patience: float = PATIENCE_SECONDS,
        removes_everywhere: bool = False,
    ) -> None:
        self.store = store
        self._patience = patience
        self._removes_everywhere = removes_everywhere
        self._replicas = replicas
        self._remove = remove
        self._shared = shared
        self._invalidate = invalidate
        self._is_pending = is_pending
        self._nudge = nudge
        self._on_decision = on_decision
        self._make_room = make_room
        self._limiter = trio.CapacityLimiter(4)
        self._under_way: set[int] = set()
        # The purges that the shared tier alone has yet to do.
        self._of_shared: set[int] = set()

    async def block(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """See ``Decisions``.

        Raises:
            sqlite3.Error, OSError: it was not stored.
            NotInForce: it was stored, but a process has not confirmed it.
        """
        return await self._decide("block", [(selection, reason)], by)

    async def block_all(
        self,
        entries: Iterable[tuple[Selection, str]],
        *,
        by: str,
        on_kept: Callable[[int], None] = lambda count: None,
    ) -> int:
        """Block many selections, each with its reason, and purge them together. See ``block``.

        Args:
            on_kept: called with the number of decisions that were stored since the last call.
        """
        return await self._decide("block", entries, by, on_kept)

    async def purge(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """See ``Decisions``. Raises as ``block`` does."""
        return await self._decide("purge", [(selection, reason)], by)

    async def lift(self, selection: Selection, *, by: str, reason: str = "") -> bool:
        """See ``Decisions``. Raises as ``block`` does."""
        return await self._lift(selection, by, reason, of_all=False)

    async def lift_any(self, selection: Selection, *, by: str, reason: str = "") -> bool:
        """Lift the blocks of exactly ``selection`` of all deciders, as an operator may."""
        return await self._lift(selection, by, reason, of_all=True)

    async def serving(self) -> int:
        """Return the number of other processes that serve.

        Raises:
            OSError: the folder cannot be read.
        """
        return await self._in_thread(self._replicas.serving)

    async def cursor(self, stream: str) -> int | None:
        """See ``Cursors``."""
        return await self._in_thread(partial(self.store.cursor, stream))

    async def set_cursor(self, stream: str, cursor: int) -> None:
        """See ``Cursors``."""
        await self._in_thread(partial(self.store.set_cursor, stream, cursor))

    async def keep_finishing(self) -> None:
        """Finish purges that no process works on, periodically, until cancelled."""
        async with aclosing(periodic(FINISH_SECONDS)) as ticks:
            async for _ in ticks:
                if self._is_pending():
                    # A store that cannot be read is reported by ``Blocks``.
                    with suppress(sqlite3.Error, OSError):
                        await self._finish_abandoned()

    async def _decide(
        self,
        action: Literal["block", "purge"],
        entries: Iterable[tuple[Selection, str]],
        by: str,
        on_kept: Callable[[int], None] = lambda count: None,
    ) -> int:
        version = purge = 0
        meant: list[Selection] = []
        rest = iter(entries)
        try:
            while chunk := list(itertools.islice(rest, AT_ONCE)):
                keep = partial(
                    self.store.record,
                    action,
                    chunk,
                    by=by,
                    owner=self._replicas.token,
                    purge=purge,
                )
                recorded = await self._in_thread(keep)
                version, purge = recorded.version, recorded.purge
                self._under_way.add(purge)
                self._kept(action, chunk, by)
                meant += [selection for selection, _ in chunk]
                on_kept(len(chunk))
            if not meant:
                return 0
            return await self._carry_out(purge, meant, version, waits=action == "purge")
        finally:
            self._under_way.discard(purge)

    async def _lift(self, selection: Selection, by: str, reason: str, *, of_all: bool) -> bool:
        work = partial(self.store.lift, selection, by=by, reason=reason, of_all=of_all)
        lifted, version = await self._in_thread(work)
        if lifted:
            self._kept("lift", [(selection, reason)], by)
            _raise_for(await self._late(version))
        return lifted

    def _kept(self, action: Action, entries: Sequence[tuple[Selection, str]], by: str) -> None:
        self._nudge()
        self._on_decision(action, len(entries))
        if len(entries) == 1:
            ((selection, reason),) = entries
            what: dict[str, object] = {"did": selection.did, "cid": selection.cid, "reason": reason}
        else:
            what = {"decisions": len(entries)}
        log.info("decided", action=action, by=by, **what)

    async def _carry_out(
        self, purge: int, meant: Sequence[Selection], version: int, *, waits: bool = False
    ) -> int:
        """Purge the stored selections when they are in force.

        Args:
            waits: wait afterwards until all processes know that the purge is finished.
        """
        late = await self._late(version)
        # First: what it still has could come back to the cache.
        shared = await self._remove_shared(meant, SHARED_SECONDS)
        invalidate_again = await self._queue_for_cdn(meant)
        removed = await self._remove(*meant)
        _raise_for(late)  # and the purge is tried again: a late process may bring an entry back
        await invalidate_again()
        if shared is None:
            # A purge of its own: what this one removes on other machines must not wait for it.
            # While it is not finished, no process reads or writes what it covers.
            await self._in_thread(partial(self._keep_shared, meant))
        removed += shared or 0
        # Whoever took a bulk for abandoned may have read it before its last decisions.
        finish = partial(self.store.finish, purge, removed, decisions=len(meant))
        finished = await self._in_thread(finish)
        self._nudge()
        log.info("purged", decisions=len(meant), removed=removed)
        if waits or self._removes_everywhere:
            # Until they know, others have it in memory, or on their disks.
            try:
                late = await self._late(finished)
            except (trio.Cancelled, NotInForce):
                with trio.CancelScope(shield=True), suppress(sqlite3.Error, OSError):
                    await invalidate_again()
                raise
            await invalidate_again()
            _raise_for(late)
        if self._removes_everywhere:
            return await self._in_thread(partial(self.store.removed_by, purge))
        return removed

    async def _queue_for_cdn(self, meant: Sequence[Selection]) -> Again:
        if self._invalidate is None:
            return trio.lowlevel.checkpoint
        return await self._invalidate(meant)

    async def _remove_shared(self, meant: Sequence[Selection], seconds: float) -> int | None:
        """Purge the shared tier; None: it failed, or took longer than ``seconds``."""
        if self._shared is None:
            return 0
        with trio.move_on_after(seconds):
            try:
                return await self._shared.purge(*meant)
            except OSError as error:
                log.warning("the store is not purged yet", error=str(error))
        return None

    def _keep_shared(self, meant: Sequence[Selection]) -> None:
        """Record a purge that the shared tier alone has yet to do. Blocks."""
        entries = [(selection, "the store did not answer") for selection in meant]
        recorded = self.store.record("purge", entries, by=OF_STORE, owner=self._replicas.token)
        self._of_shared.add(recorded.purge)

    async def _finish_shared(self, purge: Purge) -> None:
        """Carry out a purge of the shared tier alone, unless that still fails."""
        if self._shared is None or self._shared.is_resting:
            return
        meant, _ = await self._in_thread(partial(self.store.decisions_of, purge))
        removed = await self._remove_shared(meant, math.inf)
        if removed is not None:
            await self._in_thread(partial(self.store.finish, purge.id, removed))
            self._of_shared.discard(purge.id)
            self._nudge()
            log.info("purged", decisions=len(meant), removed=removed)

    async def _late(self, version: int) -> frozenset[str]:
        """Wait until every process applies a version; return those that do not in time."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                late = await self._in_thread(partial(self._replicas.late, version))
            except (sqlite3.Error, OSError) as error:
                raise NotInForce(f"kept, but others cannot be asked: {error}") from error
            if not late or time.monotonic() > deadline:
                return late
            await trio.sleep(LOOK_SECONDS)

    async def _finish_abandoned(self) -> None:
        unfinished = await self._in_thread(self.store.unfinished)
        living = await self._in_thread(self._replicas.living)
        for purge in unfinished:
            if purge.id in self._under_way:
                continue
            is_own = purge.owner == self._replicas.token
            if is_own or purge.owner not in living:
                await self._finish(purge)

    async def _finish(self, purge: Purge) -> None:
        self._under_way.add(purge.id)
        try:
            if purge.id in self._of_shared:
                await self._finish_shared(purge)
            elif await self._in_thread(partial(self.store.claim, purge, self._replicas.token)):
                meant, version = await self._in_thread(partial(self.store.decisions_of, purge))
                await self._carry_out(purge.id, meant, version, waits=True)
        except (sqlite3.Error, OSError) as error:
            log.warning("a purge is not finished yet", error=str(error))
        finally:
            self._under_way.discard(purge.id)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        for _ in range(TRIES_WITH_ROOM):
            try:
                return await trio.to_thread.run_sync(work, limiter=self._limiter)
            except (sqlite3.Error, OSError) as error:
                if self._make_room is None or not is_full(error) or not await self._make_room():
                    raise
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _raise_for(late: frozenset[str]) -> None:
    if late:
        raise NotInForce(f"kept, but running processes that do not follow yet: {len(late)}")

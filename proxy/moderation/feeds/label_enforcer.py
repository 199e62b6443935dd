"""Turns labels into blocks, and lifts these again when labels are negated or expire."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog
import trio

from proxy.config import LabelsSection
from proxy.model.identifiers import Cid
from proxy.moderation.feeds.label_records import RecordGone, RecordReader, RecordUnknown
from proxy.moderation.feeds.label_store import FeedStore, Kept, Touched
from proxy.moderation.feeds.labels import Label, LabelledRecord, selection_of, subject_of
from proxy.moderation.interface import Decisions
from proxy.observability.metrics import Metrics
from proxy.shared.ages import horizon

BATCH = 100
"""Labels handled between two looks at what else is due."""

MAX_ASKED = 8
"""Records asked for at once: a few of the fetch channel's workers, the rest serves people."""

FIRST_RETRY = 60.0
LAST_RETRY = 24 * 3600.0
"""Seconds to the next question about a record, doubled from one to the other.

It never ends: a PDS that does not answer when asked for a record could still give its blobs.
"""

MAX_REASON = 300
"""Characters of a subject in a reason; a record's URI has less than a hundred."""

CLOCK_SECONDS = 60.0
"""How soon a clock that was set is noticed."""

FAILED_SECONDS = 5.0
"""Pause after the store or the blocks failed."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class LabelEnforcer:
    """The labels that block.

    Args:
        clock: seconds since the epoch, which labels count in.

    Attributes:
        waiting: labels whose record's blobs are not known yet.
    """

    def __init__(
        self,
        settings: LabelsSection,
        *,
        store: FeedStore,
        decisions: Decisions,
        records: RecordReader,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._store = store
        self._decisions = decisions
        self._records = records
        self._metrics = metrics
        self._clock = clock
        self._limiter = trio.CapacityLimiter(1)
        # One at a time: what was found wanted must still be so when it is blocked.
        self._carrying_out = trio.Lock()
        self._changed = trio.Event()
        self._asking: set[int] = set()
        self.waiting = 0

    async def put(self, label: Label) -> None:
        """Take over a label whose signature was verified.

        At return it was carried out; one about a record is kept, and ``run`` carries it out.

        Raises:
            BadLabel: about something that is not served here.
            sqlite3.Error, OSError: it has to be put again.
        """
        subject = subject_of(label, self._settings.scope)
        async with self._carrying_out:
            touched = await self._in_store(self._store.put, label, subject, self._clock())
            if touched is None:
                return
            await self._carry_out(touched)
            if not isinstance(subject, LabelledRecord):
                await self._in_store(self._store.settled, touched.label)
        self._wake()

    async def run(self) -> None:
        """Ask for records, and end labels that expire, until cancelled.

        What ended while the clock was ahead is in force again once it is right.
        """
        await self.drop_unwanted()
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._changed
                try:
                    await self._resume_ended()
                    await self._end_expired()
                    await self._ask_for_records(nursery)
                    wait = await self._idle_seconds()
                except (sqlite3.Error, OSError) as error:
                    log.error("labels cannot be carried out", error=str(error))
                    wait = FAILED_SECONDS
                with trio.move_on_after(wait):
                    await changed.wait()

    async def drop_unwanted(self) -> None:
        """Lift what labelers and values asked for that are configured no more.

        Raises:
            sqlite3.Error, OSError: it was not all done.
        """
        settings = self._settings
        while True:
            async with self._carrying_out:
                dropped = await self._in_store(
                    self._store.unwanted, settings.subscribe, settings.values, self._clock(), BATCH
                )
                if not dropped:
                    return
                for touched in dropped:
                    await self._carry_out(touched)
                await self._in_store(self._store.remove, [touched.label for touched in dropped])

    async def _resume_ended(self) -> None:
        while True:
            async with self._carrying_out:
                latest = horizon(self._clock())
                resumed = await self._in_store(self._store.resumed, latest, BATCH)
                if not resumed:
                    return
                for touched in resumed:
                    await self._decide(touched)
                    await self._in_store(self._store.resume, touched.label)

    async def _end_expired(self) -> None:
        while True:
            async with self._carrying_out:
                expired = await self._in_store(self._store.expired, self._clock(), BATCH)
                if not expired:
                    return
                for touched in expired:
                    await self._carry_out(touched)
                    await self._in_store(self._store.ended, touched.label)

    async def _ask_for_records(self, nursery: trio.Nursery) -> None:
        room = MAX_ASKED - len(self._asking)
        if room == 0:
            return
        now = self._clock()
        latest = horizon(now) + LAST_RETRY
        for label, record in await self._in_store(
            self._store.due, now, latest, room, tuple(self._asking)
        ):
            self._asking.add(label.id)
            nursery.start_soon(self._ask, label, record)

    async def _idle_seconds(self) -> float:
        ask_at, expires_at = await self._in_store(self._store.next_at, tuple(self._asking))
        self.waiting = await self._in_store(self._store.waiting)
        moments = [expires_at, ask_at if len(self._asking) < MAX_ASKED else None]
        until = min((at - self._clock() for at in moments if at is not None), default=math.inf)
        return min(max(until, 0.0), CLOCK_SECONDS)

    async def _ask(self, label: Kept, record: LabelledRecord) -> None:
        try:
            blobs = await self._blobs(label, record)
            if blobs is None:
                wait = min(FIRST_RETRY * 2.0 ** min(label.tries, 30), LAST_RETRY)
                await self._in_store(self._store.postpone, label, self._clock() + wait)
                return
            selections = [selection_of(record.did, cid, self._settings.scope) for cid in blobs]
            async with self._carrying_out:
                now = self._clock()
                touched = await self._in_store(self._store.answered, label, selections, now)
                if touched is not None:
                    await self._carry_out(touched)
                    await self._in_store(self._store.settled, label)
        except (sqlite3.Error, OSError) as error:
            log.error("label cannot be carried out", uri=label.uri, error=str(error))
            # It is due still, and would be asked for again at once.
            await trio.sleep(FAILED_SECONDS)
        finally:
            self._asking.discard(label.id)
            self._wake()

    async def _blobs(self, label: Kept, record: LabelledRecord) -> frozenset[Cid] | None:
        """The blobs of a record; None where they cannot be told now."""
        about = {"labeler": label.src, "uri": label.uri, "label": label.val}
        try:
            return await self._records.blobs(record)
        except RecordGone as error:
            self._count("gone")
            log.warning("labelled record is gone: nothing to block", error=str(error), **about)
            return frozenset()
        except RecordUnknown as error:
            self._count("unknown")
            log.warning("labelled record cannot be asked for", error=str(error), **about)
            return None

    async def _carry_out(self, touched: Touched) -> None:
        # Another process that leads may have kept a label since, and be done with it already.
        while touched.block or touched.lift:
            await self._decide(touched)
            touched = await self._in_store(self._store.changed_since, touched, self._clock())

    async def _decide(self, touched: Touched) -> None:
        label = touched.label
        by, reason = f"labeler:{label.src}", f"{label.val} on {label.uri[:MAX_REASON]}"
        for selection in touched.block:
            await self._decisions.block(selection, by=by, reason=reason)
            self._count("blocked")
        for selection in touched.lift:
            if await self._decisions.lift(selection, by=by, reason=reason):
                self._count("lifted")

    async def _in_store(self, work: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(partial(work, *args), limiter=self._limiter)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _count(self, outcome: str) -> None:
        self._metrics.feed_events.labels("labels", outcome).inc()

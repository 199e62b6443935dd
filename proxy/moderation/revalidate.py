"""Purges cached blobs that were taken down or deleted at their PDS.

Each cached blob is asked for once in ``cache.revalidate_days``, without reading it. A blob that its
PDS no longer gives out is purged. If a PDS cannot be asked, its blobs stay, and are asked for
again in the next sweep, until ``cache.unconfirmed_days`` have passed since they were last seen.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from typing import Protocol

import structlog
import trio

from proxy.accounts.did_documents import Resolver
from proxy.accounts.whereabouts import ask_pds
from proxy.cache.interface import Due
from proxy.errors import BlobNotFound, Busy, ImageProxyError
from proxy.model.keys import BlobKey
from proxy.model.selection import Selection
from proxy.moderation.interface import Decisions
from proxy.shared.ages import age_of

BY = "revalidation"
"""The name of the decider in the audit."""

DUE = 0.9
"""Part of the age after which a blob is asked for: the rest is time to get round to it."""

CHECKS_PER_SECOND = 5.0
"""Over all hosts: three million blobs in a week. Bluesky's PDSes allow each client ten."""

AT_ONCE = 4
"""Checks that may wait for slow hosts: few of the fetch workers, and more than one dead host."""

PAGE = 100
"""Blobs that are looked up at once."""

MAX_PAUSE = 3600.0
"""Seconds between two sweeps, at most; of short ages a twentieth."""

log = structlog.get_logger(__name__)


class CheckTimes(Protocol):
    """Remembers when each cached blob was last seen at its PDS; being fetched counts.

    Every method may raise ``sqlite3.Error`` or ``OSError``.
    """

    async def due_for_check(self, before: float, limit: int, *, after: float = 0.0) -> list[Due]:
        """At most ``limit`` blobs last seen later than ``after`` and until ``before``.

        Those not seen for the longest time come first. A blob may come more than once.
        """
        ...

    async def last_checked(self, blob: BlobKey) -> float | None:
        """When ``blob`` was last seen, by any of its entries; None: it is not cached."""
        ...

    async def correct_checks(self, time: float) -> None:
        """Let blobs that were last seen in the future have been seen at ``time``.

        The clock was ahead then. They would not come to be due before it is there again.
        """
        ...

    async def mark_checked(self, blob: BlobKey) -> None:
        """Note that the PDS has ``blob`` now."""
        ...


class Availability(StrEnum):
    """What a check found."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"
    UNCONFIRMED = "unconfirmed"
    """Unknown for so long that it counts as absent."""


def availability_of(error: ImageProxyError) -> Availability:
    """What the failure to find a blob says about it. Pure, total.

    Absent: the PDS does not have it, or the directory says that there is no such account.
    """
    return Availability.ABSENT if isinstance(error, BlobNotFound) else Availability.UNKNOWN


class Revalidator:
    """Asks PDSes for the blobs that are due, and purges those that are gone.

    Args:
        age: seconds after which a cached blob is asked for again.
        unconfirmed_age: seconds after which a blob goes whose PDS gave no clear answer; 0: never.
        times: when each cached blob was last checked.
        exists: whether the PDS at a URL has a blob (``PdsFetcher.exists``).
        timeout: seconds for the questions about one blob.
        decisions: carries out purges.
        on_checked: called with each finding.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        age: float,
        unconfirmed_age: float,
        times: CheckTimes,
        resolver: Resolver,
        exists: Callable[[str, BlobKey], Awaitable[bool]],
        timeout: float,
        decisions: Decisions,
        on_checked: Callable[[Availability], None] = lambda finding: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._age = age
        self._unconfirmed_age = unconfirmed_age
        self._times = times
        self._resolver = resolver
        self._exists = exists
        self._timeout = timeout
        self._decisions = decisions
        self._on_checked = on_checked
        self._wall_clock = wall_clock
        self._at_once = trio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Sweep repeatedly until cancelled. One process at a time is enough."""
        while True:
            try:
                await self.sweep()
            except (sqlite3.Error, OSError) as error:
                log.error("the times of revalidation cannot be read", error=str(error))
            await trio.sleep(min(MAX_PAUSE, self._age / 20) * random.uniform(0.5, 1))  # noqa: S311

    async def sweep(self) -> None:
        """Ask once for each blob that is due now.

        Raises:
            sqlite3.Error, OSError: the times cannot be read.
        """
        before, after = self._wall_clock() - self._age * DUE, 0.0
        await self._times.correct_checks(before)
        # In pages by time: blobs that cannot be asked for stay due, and do not hold up others.
        while page := await self._page(before, after):
            after = page[-1].checked
            async with trio.open_nursery() as nursery:
                for blob in dict.fromkeys(due.blob for due in page):
                    await trio.sleep(random.uniform(0.5, 1.5) / CHECKS_PER_SECOND)  # noqa: S311
                    await self._at_once.acquire()
                    nursery.start_soon(self._check_and_release, blob)

    async def _page(self, before: float, after: float) -> list[Due]:
        """The next blobs that are due: of the moments that they were last seen at, all of each."""
        limit = PAGE
        while True:
            page = await self._times.due_for_check(before, limit, after=after)
            whole = [due for due in page if due.checked < page[-1].checked]
            if len(page) < limit:
                return page
            if whole:
                return whole
            limit *= 2

    async def check(self, blob: BlobKey) -> Availability:
        """Ask for one blob, and purge it if it is gone. Cancellation leaves it due.

        Raises:
            sqlite3.Error, OSError: the result could not be stored or the blob purged; it stays due.
        """
        try:
            await self._find(blob)
            finding = Availability.PRESENT
        except ImageProxyError as error:
            finding = availability_of(error)
            if finding is Availability.UNKNOWN:
                log.info("cannot be revalidated", did=blob.did, cid=blob.cid, cause=str(error))
                # Nothing was asked where this service was at its limits.
                if not isinstance(error, Busy) and await self._is_unconfirmed(blob):
                    finding = Availability.UNCONFIRMED
        match finding:
            case Availability.PRESENT:
                await self._times.mark_checked(blob)
            case Availability.ABSENT:
                selection = Selection(blob.did, blob.cid)
                await self._decisions.purge(selection, by=BY, reason="its PDS no longer has it")
            case Availability.UNCONFIRMED:
                selection = Selection(blob.did, blob.cid)
                reason = "its PDS gave no clear answer for too long"
                await self._decisions.purge(selection, by=BY, reason=reason)
        self._on_checked(finding)
        return finding

    async def _is_unconfirmed(self, blob: BlobKey) -> bool:
        if not self._unconfirmed_age:
            return False
        seen = await self._times.last_checked(blob)
        return seen is not None and age_of(seen, self._wall_clock()) >= self._unconfirmed_age

    async def _find(self, blob: BlobKey) -> None:
        pds = await self._resolver.resolve(blob.did)
        question = partial(self._find_at, blob=blob)
        await ask_pds(self._resolver, blob.did, pds, question, timeout=self._timeout)

    async def _find_at(self, pds: str, *, blob: BlobKey) -> None:
        if not await self._exists(pds, blob):
            raise BlobNotFound(f"{pds} does not have it")

    async def _check_and_release(self, blob: BlobKey) -> None:
        try:
            await self.check(blob)
        except (sqlite3.Error, OSError) as error:
            log.error("revalidation could not be carried out", cid=blob.cid, error=str(error))
        finally:
            self._at_once.release()

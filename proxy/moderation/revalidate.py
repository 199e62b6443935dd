"""Purges cached blobs that were taken down or deleted at their PDS.

Each cached blob is asked for once in ``cache.revalidate_days``, without reading it. A blob that its
PDS no longer gives out is purged. If a PDS cannot be asked, its blobs stay, and are asked for
again in the next sweep.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Protocol

import structlog
import trio

from proxy.accounts.did_documents import MIGRATION_AGE, Resolver
from proxy.cache.interface import Due
from proxy.errors import DidNotFound, ImageProxyError
from proxy.model.keys import BlobKey
from proxy.model.selection import Selection
from proxy.moderation.interface import Decisions

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

    async def mark_checked(self, blob: BlobKey) -> None:
        """Note that the PDS has ``blob`` now."""
        ...


class Availability(StrEnum):
    """What a check found."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"


def availability_of(outcome: bool | ImageProxyError) -> Availability:
    """Return what an answer, or the failure to get one, says about a blob. Pure, total.

    Args:
        outcome: whether the PDS has the blob, or the error because of which that is not known.
    """
    match outcome:
        case True:
            return Availability.PRESENT
        case False | DidNotFound():  # the directory says that there is no such account
            return Availability.ABSENT
        case _:
            return Availability.UNKNOWN


class Revalidator:
    """Asks PDSes for the blobs that are due, and purges those that are gone.

    Args:
        age: seconds after which a cached blob is asked for again.
        times: when each cached blob was last checked.
        exists: whether the PDS at a URL has a blob (``PdsFetcher.exists``).
        decisions: carries out purges.
        on_checked: called with each finding.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        age: float,
        times: CheckTimes,
        resolver: Resolver,
        exists: Callable[[str, BlobKey], Awaitable[bool]],
        decisions: Decisions,
        on_checked: Callable[[Availability], None] = lambda finding: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._age = age
        self._times = times
        self._resolver = resolver
        self._exists = exists
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
        # In pages by time: blobs that cannot be asked for stay due, and do not hold up others.
        while page := await self._times.due_for_check(before, PAGE, after=after):
            after = page[-1].checked
            async with trio.open_nursery() as nursery:
                for blob in dict.fromkeys(due.blob for due in page):
                    await trio.sleep(random.uniform(0.5, 1.5) / CHECKS_PER_SECOND)  # noqa: S311
                    await self._at_once.acquire()
                    nursery.start_soon(self._check_and_release, blob)

    async def check(self, blob: BlobKey) -> Availability:
        """Ask for one blob, and purge it if it is gone. Cancellation leaves it due.

        Raises:
            sqlite3.Error, OSError: the result could not be stored or the blob purged; it stays due.
        """
        try:
            finding = availability_of(await self._is_there(blob))
        except ImageProxyError as error:
            finding = availability_of(error)
            if finding is Availability.UNKNOWN:
                log.info("cannot be revalidated", did=blob.did, cid=blob.cid, cause=str(error))
        match finding:
            case Availability.PRESENT:
                await self._times.mark_checked(blob)
            case Availability.ABSENT:
                selection = Selection(blob.did, blob.cid)
                await self._decisions.purge(selection, by=BY, reason="its PDS no longer has it")
        self._on_checked(finding)
        return finding

    async def _is_there(self, blob: BlobKey) -> bool:
        pds = await self._resolver.resolve(blob.did)
        if await self._exists(pds, blob):
            return True
        # An account that migrated is deactivated at its old PDS: the document may name a new one.
        current = await self._resolver.resolve(blob.did, max_age=MIGRATION_AGE)
        return current != pds and await self._exists(current, blob)

    async def _check_and_release(self, blob: BlobKey) -> None:
        try:
            await self.check(blob)
        except (sqlite3.Error, OSError) as error:
            log.error("revalidation could not be carried out", cid=blob.cid, error=str(error))
        finally:
            self._at_once.release()

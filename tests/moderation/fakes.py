"""The neighbours of what is tested here, in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from proxy.cache.interface import Due
from proxy.model.keys import BlobKey
from proxy.model.selection import Selection
from proxy.shared.ages import horizon


class FakeDecisions:
    """Decisions that are noted down.

    Attributes:
        purged: selection and who asked for it, in order.
        on_purge: carries a purge out.
        error: raised by every call.
    """

    def __init__(self, on_purge: Callable[[Selection], Awaitable[int]] | None = None) -> None:
        self.purged: list[tuple[Selection, str]] = []
        self.on_purge = on_purge
        self.error: Exception | None = None

    async def block(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """See ``Decisions.block``."""
        raise NotImplementedError

    async def lift(self, selection: Selection, *, by: str, reason: str = "") -> bool:
        """See ``Decisions.lift``."""
        raise NotImplementedError

    async def purge(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """See ``Decisions.purge``."""
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.purged.append((selection, by))
        return 0 if self.on_purge is None else await self.on_purge(selection)


class FakeCheckTimes:
    """``CheckTimes`` in a dictionary.

    Args:
        wall_clock: seconds since the epoch.

    Attributes:
        times: when each blob was last seen at its PDS.
        error: raised by every call.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self.times: dict[BlobKey, float] = {}
        self.error: Exception | None = None
        self._wall_clock = wall_clock

    async def due_for_check(self, before: float, limit: int, *, after: float = 0.0) -> list[Due]:
        """See ``CheckTimes.due_for_check``."""
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        due = [Due(blob, at) for blob, at in self.times.items() if after < at <= before]
        return sorted(due, key=lambda each: each.checked)[:limit]

    async def last_checked(self, blob: BlobKey) -> float | None:
        """See ``CheckTimes.last_checked``."""
        await trio.lowlevel.checkpoint()
        return self.times.get(blob)

    async def correct_checks(self, time: float) -> None:
        """See ``CheckTimes.correct_checks``."""
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        for blob, at in self.times.items():
            self.times[blob] = time if at > horizon(self._wall_clock()) else at

    async def mark_checked(self, blob: BlobKey) -> None:
        """See ``CheckTimes.mark_checked``."""
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.times[blob] = self._wall_clock()

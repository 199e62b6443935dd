"""The interface of moderation for sources of decisions: routes, commands, labelers, account events.

Pure.
"""

from __future__ import annotations

from typing import Protocol

from proxy.model.selection import Selection


class NotInForce(TimeoutError):
    """A decision was kept, and a process that lives has not said that it follows it.

    It goes on being carried out: the process follows as soon as it can, and the purge is tried
    again until then.
    """


class Decisions(Protocol):
    """Carries decisions out. Every method may raise ``sqlite3.Error`` or ``OSError``: not done.

    ``NotInForce`` is one of the latter: kept, and not yet in force in every process.

    ``by`` names who decides, as the audit shows it and as blocks are told apart by it: a block
    that a labeler asked for and one of the operator's stand beside each other.
    """

    async def block(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """Block, and purge; at return no byte of it is served. How many entries were purged."""
        ...

    async def lift(self, selection: Selection, *, by: str, reason: str = "") -> bool:
        """Lift the block that ``by`` asked for; whether there was one."""
        ...

    async def purge(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """Remove what is cached; how many entries there were."""
        ...


class Cursors(Protocol):
    """How far streams of events were followed; survives a restart."""

    async def cursor(self, stream: str) -> int | None:
        """Where to go on with ``stream``, or None where nothing of it was followed yet."""
        ...

    async def set_cursor(self, stream: str, cursor: int) -> None:
        """Note that everything of ``stream`` up to ``cursor`` was carried out."""
        ...

"""The interface of moderation for sources of decisions: routes, commands, labelers, account events.

Pure.
"""

from __future__ import annotations

from typing import Protocol

from proxy.model.selection import Selection


class NotInForce(TimeoutError):
    """A decision was stored, but a running process has not confirmed that it applies it.

    The process applies it as soon as it can, and the purge is tried again until then.
    """


class Decisions(Protocol):
    """Carries decisions out. Every method may raise ``sqlite3.Error`` or ``OSError``.

    After these errors the decision was not stored, except after ``NotInForce`` (an ``OSError``):
    then it was stored, and is not yet in force in every process.

    ``by`` is the name of the decider in the audit. Blocks of different deciders are separate: the
    same selection may be blocked by a labeler and by the operator.
    """

    async def block(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """Block and purge. After the return nothing of it is served.

        Returns:
            The number of purged entries.
        """
        ...

    async def lift(self, selection: Selection, *, by: str, reason: str = "") -> bool:
        """Lift the block that ``by`` decided; return whether there was one."""
        ...

    async def purge(self, selection: Selection, *, by: str, reason: str = "") -> int:
        """Remove the cached entries, and return their number."""
        ...


class Cursors(Protocol):
    """Positions up to which streams of events were followed; they survive a restart."""

    async def cursor(self, stream: str) -> int | None:
        """The position in ``stream``, or None if it was not followed yet."""
        ...

    async def set_cursor(self, stream: str, cursor: int) -> None:
        """Record that all events of ``stream`` up to ``cursor`` were carried out."""
        ...

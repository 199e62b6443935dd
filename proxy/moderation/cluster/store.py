"""The moderation store of a cluster, in PostgreSQL."""

from __future__ import annotations

from proxy.model.selection import Selection
from proxy.moderation.decision_store import OF_STORE, DecisionStore, selection_of
from proxy.shared.sql import SqlDatabase

PAGE = 2000
"""Selections that are read at once."""


class ClusterStore(DecisionStore):
    """The decisions of a cluster.

    Args:
        database: has the tables of ``schema``.
        place: the database, for people.
    """

    def __init__(self, database: SqlDatabase, place: str) -> None:
        super().__init__(database)
        self._place = place

    @property
    def place(self) -> str:
        """See ``DecisionStore``."""
        return self._place

    def is_made(self) -> bool:
        """See ``DecisionStore``: its tables are made by the first use."""
        return True

    def identity(self) -> tuple[str, str, int]:
        """Return the name of this store, that of the one imported into it, or "", and the number
        of the last decision that was imported."""
        with self._reading() as connection:
            identity, imported, last = connection.execute(
                "SELECT identity, imported, imported_last FROM state"
            ).fetchone()
        return str(identity), str(imported), int(last)

    def settled(self) -> int:
        """Return the number of the last decision before the first whose purge is not finished."""
        with self._reading() as connection:
            (number,) = connection.execute(
                "SELECT coalesce("
                "(SELECT min(audit.id) - 1 FROM purges JOIN audit ON audit.purge = purges.id"
                " WHERE removed IS NULL), (SELECT max(id) FROM audit), 0)"
            ).fetchone()
        return int(number)

    def add_removed(self, purge: int, count: int) -> None:
        """Count entries that a finished purge removed on another machine, too."""
        with self._reading() as connection:
            connection.execute(
                "UPDATE purges SET removed = removed + ? WHERE id = ?", (count, purge)
            )

    def decided_to_go(self, after: int, up_to: int) -> tuple[list[Selection], int]:
        """Return what decisions after the one with the number ``after`` had removed.

        Returns:
            A page of selections, and the number of the last decision that was looked at; that is
            ``up_to`` after the last page.
        """
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT id, did, cid FROM audit WHERE id > ? AND id <= ? AND action <> 'lift'"
                " ORDER BY id LIMIT ?",
                (after, up_to, PAGE),
            ).fetchall()
        reached = rows[-1][0] if len(rows) == PAGE else up_to
        return [selection_of(did, cid) for _, did, cid in rows], reached

    def purge_again(self, after: int, up_to: int) -> None:
        """Record a purge of what decisions after ``after`` had removed; whoever runs finishes it.

        Not of purges that the shared store needed: those of several machines would add up.
        """
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT DISTINCT did, cid FROM audit WHERE id > ? AND id <= ?"
                " AND action <> 'lift' AND who <> ?",
                (after, up_to, OF_STORE),
            ).fetchall()
        entries = [(selection_of(did, cid), "a machine was away meanwhile") for did, cid in rows]
        if entries:
            self.record("purge", entries, by=OF_STORE, owner="")

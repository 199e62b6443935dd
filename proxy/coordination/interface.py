"""What several processes need of one another, behind one interface.

``folder.FolderCoordination`` is the engine for processes that share a cache folder. To coordinate
over another medium, implement ``Coordination`` and return it from ``wiring.coordination_of``.
"""

from __future__ import annotations

from typing import Protocol

from proxy.coordination.build_locks import BuildLocks
from proxy.coordination.leader import Leadership
from proxy.coordination.replicas import Replicas


class Coordination(Protocol):
    """Makes the parts. None of them opens a file before it is used; whoever asked closes them."""

    def replicas(self) -> Replicas:
        """The processes that follow decisions, and the version that each has in force."""
        ...

    def build_locks(self, *, timeout: float) -> BuildLocks:
        """Single flight across processes: one of them makes a result.

        Args:
            timeout: seconds to wait for another process, after which the work is done twice.
        """
        ...

    def leadership(self, chore: str) -> Leadership:
        """The right to do ``chore``, which one process at a time has."""
        ...

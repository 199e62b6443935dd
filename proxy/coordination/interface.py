"""The interface through which several processes coordinate their work.

``folder.FolderCoordination`` is the engine for processes that share a cache folder. To coordinate
over another medium, implement ``Coordination`` and return it from ``wiring.coordination_of``.
"""

from __future__ import annotations

from typing import Protocol

from proxy.coordination.build_locks import BuildLocks
from proxy.coordination.leader import Leadership
from proxy.coordination.replicas import Replicas


class Coordination(Protocol):
    """Makes the parts. A part opens no file before it is used. The caller closes the parts."""

    def replicas(self) -> Replicas:
        """The processes that follow decisions, and the version that each has in force."""
        ...

    def build_locks(self, *, timeout: float) -> BuildLocks:
        """Single flight across processes: only one of them makes a result.

        Args:
            timeout: seconds to wait for another process, after which the work is done twice.
        """
        ...

    def leadership(self, chore: str) -> Leadership:
        """The right to do ``chore``. Only one process has it at a time."""
        ...

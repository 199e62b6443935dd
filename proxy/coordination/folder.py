"""The engine for processes on one machine that share a cache folder: locks on files in it."""

from __future__ import annotations

from pathlib import Path

from proxy.coordination.build_locks import BuildLocks
from proxy.coordination.leader import FolderLeadership
from proxy.coordination.replicas import FolderReplicas


class FolderCoordination:
    """See ``interface.Coordination``. The kernel frees every lock when its process ends.

    {folder}/followers/     a mark for each process that follows decisions
    {folder}/flights.lock   a byte for each result that is being made
    {folder}/turns/{chore}  locked by the process that does the chore
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def replicas(self) -> FolderReplicas:
        """See ``Coordination.replicas``."""
        return FolderReplicas(self._folder / "followers")

    def build_locks(self, *, timeout: float) -> BuildLocks:
        """See ``Coordination.build_locks``."""
        return BuildLocks(self._folder / "flights.lock", timeout=timeout)

    def leadership(self, chore: str) -> FolderLeadership:
        """See ``Coordination.leadership``."""
        return FolderLeadership(self._folder / "turns" / chore)

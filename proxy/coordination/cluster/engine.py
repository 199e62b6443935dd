"""The engine for processes on several machines: rows and locks in a database.

What concerns the cache folder of one machine is coordinated there, as on one machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from proxy.coordination.build_locks import BuildLocks
from proxy.coordination.cluster.lease import Lease
from proxy.coordination.cluster.members import Members
from proxy.coordination.cluster.served_name import ServedName
from proxy.coordination.cluster.turns import ClusterLeadership
from proxy.coordination.folder import FolderCoordination
from proxy.coordination.interface import Leadership
from proxy.shared.postgres import PostgresDatabase

OF_A_FOLDER = frozenset({"revalidation"})
"""Chores about the files of one cache folder: one process of each machine does them."""


class ClusterCoordination:
    """See ``interface.Coordination``.

    Args:
        folder: the cache folder of this machine.
        connections: connections to the database for one part, with a patience below the lease.
        lease: seconds.
    """

    def __init__(
        self, folder: Path, connections: Callable[[], PostgresDatabase], lease: float
    ) -> None:
        self._folder = folder
        self.connections = connections
        self._lease = lease

    def replicas(self) -> Members:
        """See ``Coordination.replicas``: a process that decides, and serves nothing."""
        return Members(self.connections(), self._folder, Lease(self._lease), None)

    def serving_replicas(self, name: ServedName) -> Members:
        """The same for a process that serves."""
        return Members(self.connections(), self._folder, Lease(self._lease), name)

    def build_locks(self, *, timeout: float) -> BuildLocks:
        """See ``Coordination.build_locks``. Between machines a balancer sends each blob to one."""
        return FolderCoordination(self._folder).build_locks(timeout=timeout)

    def leadership(self, chore: str) -> Leadership:
        """See ``Coordination.leadership``."""
        if chore in OF_A_FOLDER:
            return FolderCoordination(self._folder).leadership(chore)
        return ClusterLeadership(self.connections(), chore)

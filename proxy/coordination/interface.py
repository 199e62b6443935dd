"""The interface through which several processes coordinate their work.

``folder.FolderCoordination`` is the engine for processes that share a cache folder,
``cluster.engine.ClusterCoordination`` that for processes on several machines. To coordinate over
another medium, implement ``Coordination`` and return it from ``wiring.coordination_of``.
"""

from __future__ import annotations

from typing import Protocol

from proxy.coordination.build_locks import BuildLocks


class Replicas(Protocol):
    """This process among those that follow decisions. Blocks; call in threads.

    Every method but ``leave`` may raise ``OSError``: the others cannot be told or asked.
    """

    @property
    def token(self) -> str:
        """The name of this process."""
        ...

    def enter(self) -> None:
        """Join, serving nothing yet."""
        ...

    def note(self, version: int) -> None:
        """Note that ``version`` is in force here. From now on others wait for this process."""
        ...

    def leave(self) -> None:
        """Leave the others. Idempotent."""
        ...

    def living(self) -> frozenset[str]:
        """The tokens of all running processes."""
        ...

    def serving(self) -> int:
        """The number of other running processes that have a version in force."""
        ...

    def late(self, version: int) -> frozenset[str]:
        """The tokens of the processes that have not noted that ``version`` is in force."""
        ...


class Leadership(Protocol):
    """The right to do one chore. Blocks; one thread at a time.

    Attributes:
        can_be_lost: whether it may be lost while this process runs on.
    """

    can_be_lost: bool

    def take(self) -> bool:
        """Whether this process is now the leader. Idempotent.

        Raises:
            OSError: that cannot be told.
        """
        ...

    def holds(self) -> bool:
        """Whether it still is."""
        ...

    def give_up(self) -> None:
        """Let another process become the leader. Idempotent."""
        ...


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

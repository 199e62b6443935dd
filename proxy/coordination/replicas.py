"""Tells which processes follow decisions, and which version each of them has in force.

Each process writes this version into its mark in a shared folder. It does not need to outlive the
process, so it costs no commit.
"""

from __future__ import annotations

from pathlib import Path

from proxy.coordination.liveness import Liveness

SERVES_NOTHING = 2**63 - 1
"""Noted instead of a version: this process serves nothing, so it cannot violate a decision."""


class FolderReplicas:
    """This process among those that share ``folder``. Blocks, for as long as the disk takes.

    Only one thread at a time may call ``enter``, ``note``, ``is_there`` and ``leave``. Any thread
    may call the rest. Every method may raise ``OSError``: the folder cannot be read or written.

    Attributes:
        token: the name of this process.
    """

    def __init__(self, folder: Path) -> None:
        self._liveness = Liveness(folder)
        self.token = self._liveness.token

    def enter(self) -> None:
        """Join, serving nothing yet. Removes the marks of processes that have ended."""
        self._liveness.bury()
        # Make the mark again: somebody may have deleted the folder.
        self._liveness.leave()
        self._liveness.enter()
        self._liveness.note(SERVES_NOTHING)

    def note(self, version: int) -> None:
        """Note that ``version`` is in force here. From now on others wait for this process."""
        self._liveness.note(version)

    def is_there(self) -> bool:
        """Whether other processes can see this process."""
        return self._liveness.is_there()

    def leave(self) -> None:
        """Leave the processes that share the folder. Idempotent."""
        self._liveness.leave()

    def living(self) -> frozenset[str]:
        """The tokens of all running processes."""
        return self._liveness.living()

    def serving(self) -> int:
        """The number of other running processes that have a version in force."""
        return len(self.noted_versions())

    def noted_versions(self) -> list[int]:
        """The versions that other running processes have in force."""
        noted = (self._liveness.noted(token) for token in self.living() - {self.token})
        return [number for number in noted if number is not None and number != SERVES_NOTHING]

    def late(self, version: int) -> frozenset[str]:
        """The tokens of the processes that have not noted that ``version`` is in force."""
        late = set()
        for token in self.living():
            noted = self._liveness.noted(token)
            if noted is not None and noted < version:
                late.add(token)
        return frozenset(late)

"""Which processes follow decisions, and how far each has come.

Each leaves a mark in a shared folder with the version that it has in force. Nothing of that needs
to outlive a process, so it costs no commit.
"""

from __future__ import annotations

from pathlib import Path

from proxy.coordination.liveness import Liveness

SERVES_NOTHING = 2**63 - 1
"""Noted instead of a version: whatever is decided, this process does not act against it."""


class Replicas:
    """This process among those that share ``folder``. Blocks, for as long as its disk takes.

    ``enter``, ``note``, ``is_there`` and ``leave`` are for one thread at a time, the rest for any.
    Every method may raise ``OSError``: the folder cannot be read or written.

    Attributes:
        token: names this process.
    """

    def __init__(self, folder: Path) -> None:
        self._liveness = Liveness(folder)
        self.token = self._liveness.token

    def enter(self) -> None:
        """Be there, serving nothing. The marks of those that have ended are taken away."""
        self._liveness.bury()
        # Anew: somebody may have deleted the folder.
        self._liveness.leave()
        self._liveness.enter()
        self._liveness.note(SERVES_NOTHING)

    def note(self, version: int) -> None:
        """Say that ``version`` is in force here, and be waited for when there is a later one."""
        self._liveness.note(version)

    def is_there(self) -> bool:
        """Whether others know of this process."""
        return self._liveness.is_there()

    def leave(self) -> None:
        """Be no longer there. Idempotent."""
        self._liveness.leave()

    def living(self) -> frozenset[str]:
        """The tokens of all that live."""
        return self._liveness.living()

    def serving(self) -> int:
        """How many others live and have something in force."""
        noted = (self._liveness.noted(token) for token in self.living() - {self.token})
        return sum(number is not None and number != SERVES_NOTHING for number in noted)

    def late(self, version: int) -> frozenset[str]:
        """The tokens of those that have not said that ``version`` is in force."""
        late = set()
        for token in self.living():
            noted = self._liveness.noted(token)
            if noted is not None and noted < version:
                late.add(token)
        return frozenset(late)

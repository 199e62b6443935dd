"""The name through which a web server on this machine reaches the files of results.

It is a symbolic link, there while every process of the folder that lives holds a lease and serves.
A process without a lease may have a file written that was blocked meanwhile, so its neighbours'
leases do not count then. Where the name is missing the web server passes requests on.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from proxy.coordination.cluster.lease import boot_clock
from proxy.coordination.liveness import Liveness

NAME = "served"
"""The link in the cache folder; the results are below it."""


class ServedName:
    """The name in ``folder``, and the mark of this process, with the end of its lease.

    Every method may raise ``OSError``. Blocks, for as long as the disk takes; one thread at a time.

    Args:
        target: what the name leads to.

    Attributes:
        is_watched: whether a watcher takes the name away when this process cannot; without one
            the name is not made.
    """

    def __init__(self, folder: Path, target: str) -> None:
        self.path = folder / NAME
        self._target = target
        self.is_watched = False
        self._marks = Liveness(folder / "leases")

    @property
    def mark(self) -> Path:
        """The file of this process's mark."""
        return self._marks.path

    def enter(self) -> None:
        """Leave a mark of a process without a lease: the name goes."""
        self._marks.bury()
        self._marks.leave()
        self._marks.enter()
        self.withdraw()

    def extend(self, deadline: float) -> None:
        """Note that files may be opened until ``deadline`` (``boot_clock``); make the name if all
        that live serve."""
        self._marks.note(int(deadline * 1e9))
        if self.is_watched and all(self._serves(token) for token in self._marks.living()):
            with suppress(FileExistsError):
                os.symlink(self._target, self.path)

    def hide(self) -> None:
        """Take the name away: nothing watches it. It is made again when something does."""
        self.is_watched = False
        with suppress(FileNotFoundError):
            self.path.unlink()

    def withdraw(self) -> None:
        """Note that this process does not serve, and take the name away."""
        try:
            self._marks.note(0)
        finally:
            with suppress(FileNotFoundError):
                self.path.unlink()

    def leave(self) -> None:
        """Take the name away, and the mark. Those who still serve make the name again."""
        with suppress(OSError):
            self.withdraw()
        self._marks.leave()

    def _serves(self, token: str) -> bool:
        noted = self._marks.noted(token)
        return noted is None or noted > boot_clock() * 1e9

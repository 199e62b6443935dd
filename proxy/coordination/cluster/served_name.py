"""The name through which a web server on this machine reaches the files of results.

It is a symbolic link, there while every process of the folder that lives holds a lease and serves.
A process without a lease may have a file written that was blocked meanwhile, so its neighbours'
leases do not count then. Where the name is missing the web server passes requests on.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from proxy.coordination.cluster.lease import boot_clock
from proxy.coordination.liveness import Liveness

NAME = "served"
"""The link in the cache folder; the results are below it."""


class ServedName:
    """The name in ``folder``, and the mark of this process, with the end of its lease.

    Every method may raise ``OSError``. Blocks, for as long as the disk takes; any thread may call.

    Args:
        target: what the name leads to.

    Attributes:
        is_watched: whether a watcher takes the name away when this process cannot; without one
            the name is not made, by its neighbours neither.
    """

    def __init__(self, folder: Path, target: str) -> None:
        self.path = folder / NAME
        self._target = target
        self.is_watched = False
        self._marks = Liveness(folder / "leases")
        self._changing = threading.RLock()

    @property
    def mark(self) -> Path:
        """The file of this process's mark."""
        return self._marks.path

    def enter(self) -> None:
        """Leave a mark of a process without a lease: the name goes."""
        with self._changing:
            self._marks.bury()
            self._marks.leave()
            self._marks.enter()
            self.withdraw()

    def extend(self, deadline: float) -> None:
        """Note that files may be opened until ``deadline`` (``boot_clock``); make the name if all
        that live serve."""
        with self._changing:
            self._marks.note(int(deadline * 1e9) if self.is_watched else 0)
            if self._all_serve():
                with suppress(FileExistsError):
                    os.symlink(self._target, self.path)
                # Whoever stopped meanwhile noted it first, and then looked for the name in vain.
                if not self._all_serve():
                    self.path.unlink(missing_ok=True)

    def hide(self) -> None:
        """Take the name away: nothing watches it. It is made again when something does."""
        self.is_watched = False
        self.withdraw()

    def withdraw(self) -> None:
        """Note that this process does not serve, and take the name away."""
        with self._changing:
            try:
                self._marks.note(0)
            finally:
                self.path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Take the name away, and the mark. Those who still serve make the name again."""
        with self._changing:
            with suppress(OSError):
                self.withdraw()
            self._marks.leave()

    def _all_serve(self) -> bool:
        return all(self._serves(token) for token in self._marks.living())

    def _serves(self, token: str) -> bool:
        noted = self._marks.noted(token)
        return noted is None or noted > boot_clock() * 1e9

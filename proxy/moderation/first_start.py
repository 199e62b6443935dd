"""Tells a first start from the loss of the moderation store. Blocks; call in threads.

At a first start the folder has no sign of an earlier one, and a new store is made. Where the store
is missing and there is a sign, it was lost, and with it the blocks: nothing makes a new one but
``imageproxy blocks restore``.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from proxy.cache.index import FILE_NAME as INDEX
from proxy.cache.layout import IMAGES
from proxy.shared.ages import horizon

MARKER = "blocks-are-kept-here"
"""A file beside the store, made with it: a folder that has it had a store."""

BACKUPS = "backups"
"""The folder of the daily copies of the store, below the cache folder."""

FEEDS = "feeds.sqlite3"
"""The file of what followed labels are about, beside the store."""

_TEXT = """\
The blocks of this cache folder are in moderation.sqlite3. While this file is here and that one is
not, nothing is served: see "imageproxy blocks restore".
"""


class StoreMissing(FileNotFoundError):
    """The moderation store is missing, and nothing says that there was none."""

    def __init__(self, path: Path, sign: Path | None, backup: Path | None) -> None:
        """Say what to do, in a sentence.

        Args:
            sign: what shows that there was a store; ``path`` itself if it is a link that leads
                nowhere, or no file; None: this process had read it.
            backup: the latest copy.
        """
        text = 'the store is missing: run "imageproxy blocks restore"'
        super().__init__(errno.ENOENT, text, str(path))
        self._path, self._sign, self._backup = path, sign, backup

    def __str__(self) -> str:
        """The whole message, for the operator."""
        source = self._backup or "FILE"
        if self._sign == self._path:
            lack = "is no file"
        else:
            lack = "is missing" + (f", but {self._sign} is there" if self._sign else "")
        return (
            f"{self._path} {lack}: its blocks may be lost, and nothing is served;"
            f' run "imageproxy blocks restore {source}", or, if nothing was ever blocked here,'
            ' "imageproxy blocks restore --empty"'
        )


def sign_in(folder: Path, *, has_older: bool) -> Path | None:
    """What shows that a folder without a store had one; None: this is its first start.

    Args:
        has_older: the file of an older version is there. Its blocks are taken over, so results
            show nothing.

    Raises:
        OSError: the folder cannot be read.
    """
    kept = (MARKER, BACKUPS)
    names = kept if has_older else (*kept, FEEDS, INDEX, IMAGES)
    return next((path for name in names if has_content(path := folder / name)), None)


def leave_marker(folder: Path) -> None:
    """Mark that the folder has a store. Idempotent; does nothing on a disk that takes no file."""
    with suppress(OSError), (folder / MARKER).open("x") as file:
        file.write(_TEXT)


def latest_backup(folder: Path, now: float | None = None) -> Path | None:
    """The latest daily copy of the store of a cache folder, or None.

    Args:
        now: seconds since the epoch; the machine's clock by default.
    """
    try:
        copies = daily_copies(folder, time.time() if now is None else now)
    except OSError:
        return None
    return copies[-1] if copies else None


def copy_name(now: float) -> str:
    """The file name of the copy of a day."""
    return f"moderation-{datetime.fromtimestamp(now, UTC):%Y-%m-%d}.sqlite3"


def daily_copies(folder: Path, now: float) -> list[Path]:
    """The daily copies, oldest first. Those of days to come were made while the clock was ahead, so
    they are older than any that was made since: they come first.

    Raises:
        OSError: the folder cannot be read.
    """
    last = copy_name(horizon(now))
    copies = (folder / BACKUPS).glob("moderation-*.sqlite3")
    return sorted(copies, key=lambda path: (path.name <= last, path.name))


def has_content(path: Path) -> bool:
    """Whether a file is not empty, or a folder has an entry.

    Raises:
        OSError: it cannot be looked at.
    """
    # On a full disk a first start leaves empty files and an empty folder.
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                return any(entries)
        return path.stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False

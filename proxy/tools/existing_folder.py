"""Inspects an existing folder: whether it is a cache folder, and its owner. Creates nothing."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from proxy.cache.index import FILE_NAME as INDEX
from proxy.cache.layout import IMAGES
from proxy.moderation.first_start import BACKUPS, MARKER
from proxy.moderation.store import FILE_NAME as STORE
from proxy.moderation.store import OLDER_NAME as OLDER_STORE

SIGNS = (STORE, OLDER_STORE, INDEX, IMAGES, MARKER, BACKUPS)
"""A folder that contains any of these is the cache folder of a server."""


def signs_in(folder: Path) -> list[Path]:
    """Return the parts of a cache that exist in ``folder``; none if the folder is missing.

    Raises:
        OSError: the folder cannot be read.
    """
    return [path for name in SIGNS if _is_there(path := folder / name)]


def owner_beside_root(folder: Path) -> str | None:
    """Return the owner of the cache if this process runs as root and the owner is another user.

    Root's new files would be unusable for that user. None: no such conflict. The owner of the
    cache's files decides, because root's server may use another user's folder.

    Raises:
        OSError: the folder cannot be read.
    """
    if os.geteuid() != 0 or not _is_there(folder):
        return None
    uid = [*signs_in(folder), folder][0].stat().st_uid
    return _name_of(uid) if uid else None


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a user of a container, or of another machine
        return f"uid {uid}"

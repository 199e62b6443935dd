"""A cache folder as a command finds it: whether it is one, and whose. Nothing is made."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from proxy.cache.index import FILE_NAME as INDEX
from proxy.cache.layout import IMAGES
from proxy.moderation.store import FILE_NAME as STORE
from proxy.moderation.store import OLDER_NAME as OLDER_STORE

SIGNS = (STORE, OLDER_STORE, INDEX, IMAGES)
"""By any of them a folder is known to be that of a server."""


def signs_in(folder: Path) -> list[Path]:
    """What there is of a cache in ``folder``; of none where it is not there.

    Raises:
        OSError: it cannot be looked into.
    """
    return [path for name in SIGNS if _is_there(path := folder / name)]


def owner_beside_root(folder: Path) -> str | None:
    """The user whose cache it is, where this process is root's and would leave root's files there.

    None where all is well. Goes by what is in the folder: a server of root's may be given a
    folder of somebody else's.

    Raises:
        OSError: it cannot be looked into.
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
    except KeyError:  # that of a container, or of another machine
        return f"uid {uid}"

"""Requests below ``server.root_path``, as if they were made at the root. Pure.

What the public asks for is below the path, and nowhere else. Operations stay at the root, for those
who ask the server itself: a front that passes on what is below the path passes nothing else.
"""

from __future__ import annotations

from proxy.config import OPERATIONS
from proxy.web.asgi import Scope

_FOR_ALL = ("healthz", "readyz")

NOWHERE = "/ "
"""A path that no route has."""


def mounted(root: str, scope: Scope) -> Scope:
    """Return the request as one for a service that is mounted nowhere.

    Args:
        root: ``server.root_path``, not empty.
        scope: in origin form.
    """
    path = scope["path"]
    if not path.startswith(f"{root}/"):
        return scope if _first(path) in OPERATIONS else {**scope, "path": NOWHERE}
    below = path[len(root) :]
    if _first(below) in OPERATIONS and _first(below) not in _FOR_ALL:
        below = NOWHERE
    # A path in another spelling stays another one.
    return {**scope, "path": below, "raw_path": scope["raw_path"].removeprefix(root.encode())}


def _first(path: str) -> str:
    # The framework drops slashes at the beginning.
    return path.lstrip("/").partition("/")[0]

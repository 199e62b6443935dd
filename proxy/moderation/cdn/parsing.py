"""Reads the bodies of CDNs' answers. Pure, total."""

from __future__ import annotations

import json


def json_object(body: bytes) -> dict[str, object]:
    """Return the JSON object in ``body``; anything else counts as an empty one."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

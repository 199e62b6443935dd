"""What the modules of this room share. Pure."""

from __future__ import annotations


class NotUnderstood(Exception):
    """A part of the file is damaged, or not one that an allow-list knows."""


def need(condition: object) -> None:
    """Go on only if ``condition`` is true.

    Raises:
        NotUnderstood: it is not.
    """
    if not condition:
        raise NotUnderstood

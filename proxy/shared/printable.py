"""Escapes characters that a terminal acts on or does not show. Pure, total."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    r"""Return ``text`` with every character that is not printable as an escape of Python's.

    These are the control characters (a line break among them), invisible marks that change the
    direction of text, blanks other than the space, and lone surrogates: ``\x1b``, ``\u202e``.

    Args:
        keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else ascii(each)[1:-1] for each in text
    )

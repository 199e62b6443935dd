"""Writes amounts of memory and disk for people. Pure, total."""

from __future__ import annotations

MIB, GIB = 1 << 20, 1 << 30


def in_gib(amount: int) -> str:
    """Return bytes in GiB with three digits, or in MiB where these would be zeros: ``0.01 GiB``."""
    if amount < 0.005 * GIB:
        return f"{amount / MIB:.2f} MiB"
    return f"{amount / GIB:.{0 if amount >= 100 * GIB else 1 if amount >= 10 * GIB else 2}f} GiB"

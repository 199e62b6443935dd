"""How many examples a property is tried with: all of them, or fewer in the quick round."""

from __future__ import annotations

from hypothesis import settings

USUAL = 100
"""Examples of a property that says nothing of their number."""

QUICK = 10
"""The same in the quick round."""


def load_profile(*, quick: bool) -> None:
    """Have properties use the same examples in every run, without a deadline for each."""
    settings.register_profile(
        "imageproxy", max_examples=QUICK if quick else USUAL, deadline=None, derandomize=True
    )
    settings.load_profile("imageproxy")


def many(count: int) -> int:
    """``count`` examples, or as large a share of them as the round asks for."""
    return max(1, count * settings().max_examples // USUAL)


def examples(count: int) -> settings:
    """Decorate a property that needs another number of examples."""
    return settings(max_examples=many(count))

"""A value that is replaced as a whole while others use it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Current(Generic[T]):
    """The value that is in force now, and what is made from it.

    The value itself does not change. Who reads ``now`` once, before any wait, so has one value to
    the end, whatever takes its place meanwhile.

    Attributes:
        now: the value; assign another one, in the event loop.
    """

    def __init__(self, now: T) -> None:
        self.now = now

    def derived(self, make: Callable[[T], R]) -> Callable[[], R]:
        """Return a function that returns ``make(now)``, made once for each value."""
        made_of = self.now
        made = make(made_of)

        def of_now() -> R:
            nonlocal made_of, made
            if made_of is not self.now:
                made_of = self.now
                made = make(made_of)
            return made

        return of_now

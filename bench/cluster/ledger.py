"""What is right: every picture's bytes, and every decision. Pure; times are given to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

Selected = tuple[str, str]
"""The DID and the CID of a decision; one of them may be empty."""


class State(Enum):
    """What is known of a picture."""

    OPEN = "no block of it"
    BLOCKED = "a block, whose call has answered"
    UNKNOWN = "a call failed: it may or may not have decided"


@dataclass(slots=True)
class Entry:
    """A picture.

    Attributes:
        selected: what blocks it.
        since: when the block's call had answered; None unless it holds for certain.
        is_busy: a call for it is under way.
    """

    selected: Selected
    state: State = State.OPEN
    since: float | None = None
    is_busy: bool = False


@dataclass(slots=True)
class Ledger:
    """Everything that was decided.

    Attributes:
        answered: reasons of the calls that answered and must have changed something.
    """

    entries: list[Entry]
    answered: set[str] = field(default_factory=set)

    def begin(self, number: int) -> bool:
        """Note that a decision is called for; return whether it is to block (or else to lift)."""
        entry = self.entries[number]
        entry.is_busy = True
        if entry.state is State.BLOCKED:
            # From here on nobody can say when it is lifted.
            entry.since = None
            return False
        return True

    def end(self, number: int, *, blocks: bool, reason: str, done: bool, now: float) -> None:
        """Note how the call ended."""
        entry = self.entries[number]
        entry.is_busy = False
        if not done:
            entry.state = State.UNKNOWN
            return
        if entry.state is not State.UNKNOWN:
            self.answered.add(reason)
        entry.state = State.BLOCKED if blocks else State.OPEN
        entry.since = now if blocks else None

    def fault(
        self, number: int, *, began: float, status: int, digest: bytes, right: Collection[bytes]
    ) -> str | None:
        """What is wrong with an answer that is whole now, or None.

        Args:
            began: when its request did.
            right: digests of the bytes that it may have.
        """
        if status != 200:
            return None
        since = self.entries[number].since
        if since is not None and since <= began:
            return "the bytes of a blocked picture"
        return None if digest in right else "wrong bytes"

    def blocked_of_late(self, count: int) -> list[int]:
        """The pictures that are blocked for certain, the last ``count`` of them."""
        certain = [
            (entry.since, number)
            for number, entry in enumerate(self.entries)
            if entry.since is not None
        ]
        return [number for _, number in sorted(certain)[-count:]]

    def kept_faults(self, blocks: Collection[Selected], reasons: Collection[str]) -> list[str]:
        """What the database lacks, or has too much, at the end.

        Args:
            blocks, reasons: what it has, of its blocks and of its audit.
        """
        wanted = {each.selected for each in self.entries if each.state is State.BLOCKED}
        unknown = {each.selected for each in self.entries if each.state is State.UNKNOWN}
        found = [f"lost block {each}" for each in sorted(wanted - set(blocks))]
        found += [f"block that was lifted {e}" for e in sorted(set(blocks) - wanted - unknown)]
        found += [f"lost from the audit: {each}" for each in sorted(self.answered - set(reasons))]
        return found

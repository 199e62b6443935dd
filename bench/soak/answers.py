"""What is right at a time: bytes of pictures, and statuses. Pure; times are given to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from bench.cluster.ledger import Ledger

NO_ANSWER = 0
"""In the place of a status: the connection ended without a whole answer."""

REFUSED = 404
NOT_MODIFIED = 304


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for.

    Attributes:
        statuses: of its answers when nothing is broken.
        number: of its picture in the ledger; None for what a fake has.
    """

    path: str
    statuses: frozenset[int]
    number: int | None = None


@dataclass(slots=True)
class Trouble:
    """Something that is broken for a time.

    Attributes:
        statuses: that answers may have meanwhile besides those of their target.
        of_fakes: whether answers for what fakes have may, too.
        by_front: whether answers that nginx gives may; those of the proxy itself always may.
    """

    name: str
    statuses: frozenset[int]
    since: float
    until: float = math.inf
    of_fakes: bool = True

    def overlaps(self, began: float, ended: float) -> bool:
        """Whether it was there at any moment of a request."""
        return self.since <= ended and began <= self.until


@dataclass(frozen=True, slots=True)
class Result:
    """What a target is under one version of the configuration."""

    digest: bytes
    etag: str
    size: int = 0


@dataclass(slots=True)
class Given:
    """An answer, and the request that it is to.

    Attributes:
        known: the ETag that was sent with it; empty: none.
        by_front: it came through nginx.
    """

    target: Target
    began: float
    ended: float
    status: int
    digest: bytes = b""
    known: str = ""
    by_front: bool = True


@dataclass(slots=True)
class Truth:
    """Everything that is right.

    Args:
        right: results by path, of each version of the configuration.
        ledger: of the blocks.

    Attributes:
        troubles: all that there were.
        lifted: when the last lifting of a picture's block had answered.
    """

    right: list[dict[str, Result]]
    ledger: Ledger
    troubles: list[Trouble] = field(default_factory=list)
    lifted: dict[int, float] = field(default_factory=dict)
    _spans: list[tuple[int, float, float]] = field(default_factory=lambda: [(0, 0.0, math.inf)])

    def begin_change(self, version: int, now: float) -> None:
        """Another version begins to be in force, somewhere."""
        self._spans.append((version, now, math.inf))

    def end_change(self, now: float) -> None:
        """It is in force everywhere, and those before it are not."""
        *before, last = self._spans
        self._spans = [(each, since, min(until, now)) for each, since, until in before]
        self._spans.append(last)

    def breaks(
        self, name: str, statuses: Collection[int], now: float, *, of_fakes: bool = True
    ) -> Trouble:
        """Note that something is broken from now on; its ``until`` is to be set."""
        found = Trouble(name, frozenset(statuses), now, of_fakes=of_fakes)
        self.troubles.append(found)
        return found

    def results(self, target: Target, began: float, ended: float) -> Iterator[Result]:
        """What it may be during a request."""
        for version, since, until in self._spans:
            if since <= ended and began <= until and target.path in self.right[version]:
                yield self.right[version][target.path]

    def fault(self, given: Given) -> str | None:
        """What is wrong with an answer, or None."""
        if given.status == 200 and given.target.number is not None:
            found = self.results(given.target, given.began, given.ended)
            return self._shows_blocked(given) or self._wrong(given, {r.digest for r in found})
        if given.status == NOT_MODIFIED:
            tags = {r.etag for r in self.results(given.target, given.began, given.ended)}
            right = given.known in tags
            return self._shows_blocked(given) or (None if right else "a 304 for another picture")
        if given.status == REFUSED and self._may_be_blocked(given):
            return None
        allowed = set(given.target.statuses)
        for trouble in self.troubles:
            if trouble.overlaps(given.began, given.ended):
                if given.target.number is None and not trouble.of_fakes:
                    continue
                allowed |= trouble.statuses
        if given.by_front:  # whatever happens behind nginx, it answers
            allowed.discard(NO_ANSWER)
        return None if given.status in allowed else "a status for which there is no reason"

    def _wrong(self, given: Given, right: Collection[bytes]) -> str | None:
        return None if given.digest in right else "wrong bytes"

    def _shows_blocked(self, given: Given) -> str | None:
        number = given.target.number
        since = None if number is None else self.ledger.entries[number].since
        return "a blocked picture" if since is not None and since <= given.began else None

    def _may_be_blocked(self, given: Given) -> bool:
        number = given.target.number
        if number is None:
            return False
        entry = self.ledger.entries[number]
        return (
            entry.is_busy
            or entry.state.name != "OPEN"
            or self.lifted.get(number, -math.inf) >= given.began
        )

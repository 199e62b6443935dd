"""Fair shares of the processing pool, for the domains that pictures come from, and their owners.

Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996) on two levels: each domain that has jobs
waiting gets the same time of the pool, and within it each owner. A domain that waits alone gets
everything, and pays nothing for it later.

Pure.
"""

from __future__ import annotations

from collections import Counter
from sys import getsizeof
from typing import NamedTuple

from proxy.shared.expiring_map import ExpiringMap
from proxy.shared.memory_cost import ENTRY

MAX_BYTES = 8 * 1024**2
"""Bytes of domains and owners whose use of the pool is remembered: room for about 8,000."""

FORGET_AFTER = 60.0
"""Seconds after which the use of a domain or owner without jobs is forgotten."""


class Publisher(NamedTuple):
    """Where a picture comes from.

    Attributes:
        domain: the registered domain of the PDS, or the block of its address.
        owner: a DID.
    """

    domain: str
    owner: str


UNKNOWN = Publisher("", "")
"""For pictures whose publisher is not given: all of them share one share."""

Party = tuple[str, ...]
"""A domain, or a domain and an owner; () stands for all of them."""

Rank = tuple[bool, float, bool, float]
"""Whether the domain has its share of running jobs, and its time; then the same of the owner."""


class FairShares:
    """The use of the pool by domains and owners.

    Args:
        share: how many jobs of one domain, or of one owner, run before those of others go first.
    """

    def __init__(self, share: int) -> None:
        self._share = share
        self._running: Counter[Party] = Counter()
        # Seconds of the pool, from a start that ``_begin_times`` gives each party.
        self._times: ExpiringMap[Party, float] = ExpiringMap(MAX_BYTES // 2, cost=_cost)
        # By domain, and by () for all domains: the time of the party whose job began last. Parties
        # that come later start there, neither before nor behind the others.
        self._begin_times: ExpiringMap[Party, float] = ExpiringMap(MAX_BYTES // 2, cost=_cost)

    def rank(self, publisher: Publisher, now: float) -> Rank:
        """Return the rank of a waiting job; the smallest is next, and among equals the oldest."""
        domain, owner = parties(publisher)
        return (
            self._running[domain] >= self._share,
            self._time(domain, now),
            self._running[owner] >= self._share,
            self._time(owner, now),
        )

    def begin(self, publisher: Publisher, now: float) -> None:
        """Note that a job begins."""
        for party in parties(publisher):
            time = self._time(party, now)
            self._begin_times.put(party[:-1], time, now + FORGET_AFTER)
            self._times.put(party, time, now + FORGET_AFTER)
            self._running[party] += 1

    def end(self, publisher: Publisher, seconds: float, now: float) -> None:
        """Note that a job ended, which took ``seconds`` of the pool."""
        for party in parties(publisher):
            time = self._times.get(party, now) or 0.0
            self._times.put(party, time + seconds, now + FORGET_AFTER)
            self._running[party] -= 1
            if not self._running[party]:
                del self._running[party]

    def _time(self, party: Party, now: float) -> float:
        begin_time = self._begin_times.get(party[:-1], now) or 0.0
        return max(self._times.get(party, now) or 0.0, begin_time)


def _cost(party: Party, _time: float) -> int:
    """``memory_cost.cost_of``, which takes four times as long: this is asked six times a job."""
    return ENTRY + 48 + getsizeof(party) + sum(map(getsizeof, party))


def parties(publisher: Publisher) -> tuple[Party, Party]:
    """Return the domain and the owner."""
    return (publisher.domain,), (publisher.domain, publisher.owner)

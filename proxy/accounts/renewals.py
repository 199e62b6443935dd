"""Decides how often the directory is asked again because a PDS failed.

Strangers choose the accounts that are asked for, and can have PDSes that always fail. Each account
is asked for again once in ``MIGRATION_AGE`` at most, but there are many accounts. So those of one
registered domain share an allowance, and all share a larger one.

Pure; time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.shared.expiring_map import ExpiringMap
from proxy.shared.memory_cost import cost_of

BURST = 120.0
"""Questions at once, over all domains: a PDS died, and its most popular accounts have moved."""

PER_SECOND = 2.0
"""Questions over a long time. First questions, of accounts that are not known, are not counted."""

SHARE = 0.25
"""The part of both that one registered domain may have."""

MAX_BYTES = 1024**2
"""Bytes of domains remembered: room for about 3,000. A domain is of no interest any more once its
allowance is full again."""


@dataclass(slots=True)
class _Allowance:
    """What is left of an allowance, as of a time. It fills again as time passes."""

    left: float
    at: float

    def refill(self, now: float, share: float) -> None:
        self.left = min(self.left + (now - self.at) * PER_SECOND * share, BURST * share)
        self.at = now


class Renewals:
    """The allowances for questions to the directory that are not the first ones."""

    def __init__(self) -> None:
        self._all: _Allowance | None = None
        self._domains: ExpiringMap[str, _Allowance] = ExpiringMap(MAX_BYTES, cost=cost_of)

    def admit(self, domain: str, now: float) -> bool:
        """Whether the directory may be asked about an account at ``domain``; if so, count it."""
        total = self._all = self._all or _Allowance(BURST, now)
        own = self._domains.get(domain, now) or _Allowance(BURST * SHARE, now)
        total.refill(now, 1.0)
        own.refill(now, SHARE)
        if total.left < 1 or own.left < 1:
            return False
        total.left -= 1
        own.left -= 1
        self._domains.put(domain, own, now + BURST / PER_SECOND)
        return True

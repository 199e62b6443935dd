"""Limits how often one address may try a wrong token. Pure."""

from __future__ import annotations

import math
from ipaddress import IPv6Address, IPv6Network, ip_address

from proxy.shared.expiring_map import ExpiringMap

MAX_FAILURES = 10
"""Wrong tokens that an address may try in ``WINDOW``."""

WINDOW = 60.0
"""Seconds, from the first of them."""

ADDRESSES = 10_000
"""The most addresses that are remembered: about 3 MB."""


class FailedTokens:
    """Counts wrong tokens for each address. ``now`` is always Trio's clock, in seconds."""

    def __init__(self) -> None:
        self._counts: ExpiringMap[str, tuple[int, float]] = ExpiringMap(ADDRESSES)

    def wait(self, address: str, now: float) -> int | None:
        """Return the whole seconds until ``address`` may try again, or None if it may now."""
        count, end = self._counts.get(_network_of(address), now) or (0, now)
        return math.ceil(end - now) if count >= MAX_FAILURES else None

    def add(self, address: str, now: float) -> bool:
        """Count a wrong token. Return whether ``address`` has to wait from now on."""
        network = _network_of(address)
        count, end = self._counts.get(network, now) or (0, now + WINDOW)
        self._counts.put(network, (count + 1, end), end)
        return count + 1 >= MAX_FAILURES


def _network_of(address: str) -> str:
    """Return what one client has: an IPv4 address, or 64 bits of an IPv6 address (RFC 6177)."""
    try:
        parsed = ip_address(address)
    except ValueError:  # a Unix socket has no address
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((int(parsed), 64), strict=False))

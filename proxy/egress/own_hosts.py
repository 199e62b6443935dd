"""Decides which private hosts are the operator's own. Pure, total, no I/O.

``True`` accepts every host, for tests. A list has names, addresses and networks, in the form that
``own_host`` gives. A name may resolve to any address, for its DNS is the operator's. A network
holds address literals alone: names of strangers that resolve into it stay refused, so that nobody
reaches it under a name, or by a DNS answer, of their own choice.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

PrivateHosts = bool | tuple[str, ...]
"""All, none, or those of a list."""

_NAME = re.compile(
    r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
)
_NUMERIC = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


def own_host(text: str) -> str:
    """A name in lower case, or an address or network in its canonical form.

    Raises:
        ValueError: it is none of these, a network of every address, or one with host bits.
    """
    text = text.lower()
    if ":" in text or "/" in text or _NUMERIC.fullmatch(text):
        try:
            network = ip_network(text.strip("[]") if "/" not in text else text)
        except ValueError as error:
            raise ValueError(f"must be NAME, ADDRESS or NETWORK, without a port: {error}") from None
        if network.prefixlen == 0:
            raise ValueError(f"{text} is every address; true says that")
        single = network.prefixlen == network.max_prefixlen
        return str(network.network_address if single else network)
    if not _NAME.fullmatch(text):
        raise ValueError(f"must be NAME, ADDRESS or NETWORK, not {text[:100]!a}")
    return text


def is_own(allowed: PrivateHosts, host: str) -> bool:
    """Whether ``host``, a name or an address literal without brackets, may be private."""
    if isinstance(allowed, bool):
        return allowed
    if host in allowed:
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _networks(allowed))


@lru_cache(maxsize=8)
def _networks(allowed: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(each) for each in allowed if "/" in each)

"""What hosts have in common: the registered domain of a name, and the block of an address. Pure.

One person can make any number of names below a domain, and usually has all addresses of a block.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from pathlib import Path
from urllib.parse import urlsplit

from publicsuffixlist import PSLFILE, PublicSuffixList

from proxy.egress.addresses import Address


def _rules() -> list[str]:
    """The rules of the list that is part of the package, those of other scripts in Punycode too.

    With the private section: names below fly.dev belong to many people. The package would prepare
    each of ten thousand rules by IDNA, though a twentieth are not ASCII and all are prepared.
    """
    lines = Path(PSLFILE).read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("//")]
    return rules + [_in_punycode(rule) for rule in rules if not rule.isascii()]


def _in_punycode(rule: str) -> str:
    return ".".join(
        label if label.isascii() else f"xn--{label.encode('punycode').decode()}"
        for label in rule.split(".")
    )


# Here: at the first fetch it would hold up the event loop.
_SUFFIXES = PublicSuffixList(_rules(), accept_encoded_idn=False)


def registered_domain(host: str) -> str:
    """The part of a host name that somebody registered: ``example.co.uk`` of ``a.example.co.uk``.

    The name itself if there is no such part: a public suffix, or a name of one label.
    """
    return _SUFFIXES.privatesuffix(host) or host


def block_of(address: Address) -> str:
    """The block of an address: a /24 of IPv4, a /48 of IPv6.

    These are the longest prefixes that are routed by themselves, so the least that somebody has;
    an IPv6 site gets a /48 (RFC 6177).
    """
    # As a number: a scope id names no other block.
    if isinstance(address, IPv4Address):
        return str(IPv4Network((int(address), 24), strict=False))
    return str(IPv6Network((int(address), 48), strict=False))


@lru_cache(maxsize=1024)
def groups_by_name(host: str) -> tuple[str, ...]:
    """The groups that the text of a host shows: its domain, or the block of an address literal."""
    try:
        return (block_of(ip_address(host)),)
    except ValueError:
        return (registered_domain(host),)


def group_of_url(url: str) -> str:
    """The widest group of the host of a URL that its text shows; the URL itself if it has none."""
    return groups_by_name(urlsplit(url).hostname or url)[0]
